"""What the documentation says, held against the code: commands, examples, numbers, links."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from coralline.devices import model
from coralline.devices.check import published_error
from coralline.graph import json_format
from coralline.runtime import measurement
from coralline.staging import problem
from coralline.tflite import segments
from hardware_lab import inventory, jobs
from hardware_lab.boards import board_kinds
from hardware_lab.meters import meter_kinds
from hardware_lab.power import switch_kinds

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import hooks  # noqa: E402

PAGES = [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in ("README.md", *hooks.OUTSIDE))]

ONLY_WHEN_BUSY = {"loaded", "slower"}
"""What a measurement says only when something else used the machine."""


def blocks(*languages: str) -> Iterator[tuple[str, str]]:
    """(page, text) of every fenced block in one of the languages."""
    for page in sorted(PAGES):
        for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S):
            if language in languages:
                yield str(page.relative_to(ROOT)), text


def test_every_command_that_a_page_shows_exists() -> None:
    verbs = dict(hooks.verbs())
    wrong, count = [], 0
    for page, text in blocks("", "sh", "console"):
        for line in text.replace("\\\n", " ").splitlines():
            line = re.sub(r"^(\w+=\S+ )+", "", line.removeprefix("$ "))
            if not line.startswith("coralline "):
                continue
            words = shlex.split(line, comments=True)
            count += 1
            paths = [tuple(words[:n]) for n in (1, 2, 3, 4) if tuple(words[:n]) in verbs]
            if not paths or hasattr(verbs[paths[-1]], "commands"):
                wrong.append(f"{page}: {line}: there is no such verb")
                continue
            options = [p for path in paths for p in verbs[path].params]
            known = {n for p in options for n in (*p.opts, *p.secondary_opts)} | {"--help"}
            asked = {w.partition("=")[0] for w in words if re.match("--?[a-z]", w)}
            wrong += [f"{page}: {line}: no option {option}" for option in asked - known]
    assert not wrong, "\n".join(wrong)
    assert count > 50


@pytest.mark.slow
def test_the_tutorial_can_be_followed(tmp_path: Path) -> None:
    """With a small model in place of ResNet50, whose conversion takes long."""
    env = {**os.environ, "CORALLINE_HOME": str(tmp_path / "home"), "COLUMNS": "80"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    shutil.copy(ROOT / "tests/data/small_int8.tflite", tmp_path / "resnet50.tflite")
    text = "".join(text for page, text in blocks("console") if page == "docs/tutorial.md")
    steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M)
    assert steps[0][0] == "coralline zoo build resnet50"
    for command, shown in steps[1:]:
        run = subprocess.run(
            command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{command}\n{run.stderr}"
        missing = first_words(shown) - set(re.findall(r"\w+", run.stdout)) - ONLY_WHEN_BUSY
        assert not missing, f"{command}\n{run.stdout}"


def test_the_table_of_verbs_has_all() -> None:
    text = (ROOT / "docs/reference/cli.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text, re.M)
    listed = set(re.findall("`(.*?)`", " ".join(rows)))
    assert listed == {path[1] for path, _ in hooks.verbs() if path[1:]}


def first_words(output: str) -> set[str]:
    """What the lines of an output begin with, and the words of the heads of its tables."""
    heads = [
        word
        for row in re.findall("^┃.*", output, re.M)
        for word in re.findall(r"[A-Za-z]\w{2,}", row)
    ]
    return {*heads, *re.findall(r"^ *([a-z]\w{3,})\b(?![_.])", output, re.M)}


EXAMPLES = {
    model.SCHEMA: model.DeviceModel.from_json,
    json_format.SCHEMA: json_format.from_json,
    measurement.SCHEMA: measurement.Measurement.from_json,
    problem.SCHEMA: problem.Plan.from_json,
}
"""How an example of a file in JSON or YAML is read, by its schema."""


def test_the_examples_of_files_are_read_and_have_all_fields(tmp_path: Path) -> None:
    seen = set()
    for page, text in blocks("json", "yaml"):
        data: dict[str, Any] = yaml.safe_load(text)
        schema, keys = data["schema"], data.keys()
        seen.add(schema)
        if schema == inventory.SCHEMA:
            file = tmp_path / "lab.yaml"
            file.write_text(text)
            assert list(inventory.load_inventory(file).boards) == list(data["boards"]), page
        elif schema == segments.SCHEMA:
            (tmp_path / segments.MANIFEST).write_text(json.dumps(data))
            for name in [data["model_file"], *(s["file"] for s in data["segments"])]:
                (tmp_path / name).touch()
            assert segments.SegmentSet.read(tmp_path).to_json().keys() == keys, page
        elif schema == jobs.SCHEMA:
            assert {"schema", *(field.name for field in fields(jobs.Job))} == keys, page
        else:
            read = EXAMPLES[schema](data)
            if page.endswith("formats.md") and schema != json_format.SCHEMA:
                assert read.to_json().keys() == keys, page
    assert seen == {*EXAMPLES, inventory.SCHEMA, segments.SCHEMA, jobs.SCHEMA}


def test_the_python_of_the_pages_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problem, "_PLANNERS", dict(problem._PLANNERS))
    ran = 0
    for page, text in blocks("python"):
        code = compile(text, page, "exec")
        # mlflow/README.md is run by the tests of the record.
        if page.startswith("docs/") and "tensorflow" not in text:
            exec(code, {})
            ran += 1
    assert ran
    assert "above the optimum" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "docs/limits.md", "docs/explanation/devices.md"])
def test_the_errors_of_the_device_models_are_those_of_the_check(page: str) -> None:
    text = (ROOT / page).read_text()
    for device in ("edgetpu-usb", "edgetpu-pcie"):
        error = published_error(device)
        assert error.median_held_out is not None
        median = f"{100 * error.median_held_out:.0f} %"
        said = re.findall(rf"{device}`.*?(\d+ %)\D*?(\d+)\D", text)
        assert (median, str(error.n_held_out)) in said, f"{page}: {device}: {median}"
    worst = max(p.relative_error for p in published_error("edgetpu-usb").predictions)
    assert f"{1 + worst:.1f} times too slow" in text


@pytest.mark.parametrize(
    "page,kinds",
    [
        ("own-board.md", board_kinds()),
        ("meters.md", meter_kinds()),
        ("recovery.md", switch_kinds()),
    ],
)
def test_the_kinds_of_boards_meters_and_switches_are_all_named(
    page: str, kinds: Mapping[str, Any]
) -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/how-to" / page).read_text(), re.M)
    assert set(re.findall("`(.*?)`", " ".join(rows))) == set(kinds)


def test_links_lead_to_files_and_headings() -> None:
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, heading = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or (heading and heading not in headings(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken, "\n".join(broken)


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_no_example_of_a_verb_is_taken_for_markup() -> None:
    examples = [command.epilog or "" for _, command in hooks.verbs()]
    assert not [example for example in examples if re.search(r"(?<!\\)\[", example)]
    assert any("[" in example for example in examples)
