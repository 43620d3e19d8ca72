"""The built site: whole, from files alone, and searched in a browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import DESKTOP, PHONE, Browser

from coralline.staging import planner_names

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import hooks  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


def test_every_verb_option_planner_and_request_is_there(site: Path) -> None:
    verbs = (site / "reference/cli.html").read_text()
    for path, command in hooks.verbs():
        assert f'id="{"-".join(path[1:]) or path[0]}"' in verbs
        for parameter in command.params:
            for name in parameter.opts:
                assert parameter.param_type_name == "argument" or f"<code>{name}</code>" in verbs
    planners = (site / "reference/planners.html").read_text()
    assert all(f"<code>{name}</code>" in planners for name in planner_names())
    assert "PUT /api/v1/artifacts/{ref}" in (site / "reference/http.html").read_text()


def test_no_marker_and_no_link_out_of_the_site_is_left(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert "made here:" not in text, page
        assert not re.search(r'href="[^":]*\.md["#]', text), page


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = re.compile(
        r"""<(?:script|img|iframe|link rel="(?:stylesheet|preconnect|icon)")[^>]*?"""
        r"""(?:src|href)="(https?:)?//"""
    )
    for page in site.rglob("*.html"):
        assert not loaded.search(page.read_text()), page


def test_a_phone_shows_pages_without_scrolling_sideways(site: Path, browser: Browser) -> None:
    browser.size(*PHONE)
    for name in ("index", "tutorial", "limits", "reference/cli", "explanation/staging"):
        browser.open((site / f"{name}.html").as_uri())
        assert browser.eval("document.documentElement.scrollWidth <= innerWidth"), name
    assert not browser.complaints


def test_the_search_answers_from_a_file(site: Path, browser: Browser) -> None:
    browser.size(*DESKTOP)
    browser.open((site / "index.html").as_uri() + "?q=down-sets")
    results = "document.querySelector('.md-search-result__list').textContent"
    found = browser.wait(lambda: browser.eval(results).strip(), "the search")
    assert "Exact plans and their proof" in found
    assert not browser.complaints
