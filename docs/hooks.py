"""What MkDocs asks while it builds the site: the parts of pages that are made from the code.

A page names such a part by a comment, as in `<!-- made here: cli -->`, so that its file can be
read without the site too.
"""

from __future__ import annotations

import ast
import inspect
import os.path
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
MARKER = re.compile(r"<!-- made here: (\w+) ?([\w.-]*) -->")
LINK = re.compile(r"(?<=\]\()([^):#\s]+\.md)")

OUTSIDE = {"k8s/README.md": "k8s.md", "mlflow/README.md": "mlflow.md"}
"""Pages of the site that lie beside what they describe, and their names in the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/."""
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is made here, and lead links out of docs/ to the pages of the site."""
    here = next((f for f, name in OUTSIDE.items() if name == page.file.src_uri), None)
    folder = os.path.dirname(here or f"docs/{page.file.src_uri}")

    def link(found: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(folder, found[1]))
        name = OUTSIDE.get(target) or target.removeprefix("docs/")
        return os.path.relpath(name, os.path.dirname(page.file.src_uri))

    made = MARKER.sub(lambda found: MAKERS[found[1]](*filter(None, [found[2]])), markdown)
    return LINK.sub(link, made)


def cli() -> str:
    """Every verb with its arguments and options."""
    return "\n".join(_verb(command, path) for path, command in verbs())


def verbs() -> Iterator[tuple[tuple[str, ...], Any]]:
    """The commands that do something or have options, and the words that call them."""
    import typer

    from coralline.cli import main

    if not main.app.registered_commands:
        main._add_verbs()
    root = typer.main.get_command(main.app)

    def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        below = getattr(command, "commands", {})
        if not below or command.params:
            yield path, command
        for name in below:
            yield from walk(below[name], (*path, name))

    return walk(root, ("coralline",))


def _verb(command: Any, path: tuple[str, ...]) -> str:
    parameters = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    verb = ["VERB", "..."] if hasattr(command, "commands") else []
    usage = " ".join([*path, "[OPTIONS]", *(_metavar(p) for p in arguments), *verb])
    # In a terminal brackets are markup, and written with a backslash.
    help_text, example = inspect.cleandoc(command.help), command.epilog.replace("\\[", "[")
    title = " ".join(path[1:]) or path[0]
    lines = [f"## {title}", "", help_text, "", "```sh", usage, "```", ""]
    for parameter in parameters:
        lines += [_term(parameter), f":   {_meaning(parameter)}", ""]
    lines += ["```sh", f"{example.removeprefix('Example: ')}", "```", ""]
    return "\n".join(lines)


def _metavar(argument: Any) -> str:
    name = str(argument.metavar or argument.name).strip("[]").removesuffix("...").upper()
    name = f"{name}..." if argument.nargs == -1 else name
    return name if argument.required else f"[{name}]"


def _term(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_metavar(parameter)}`"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return names if parameter.is_flag else f"{names} *{_type(parameter)}*"


def _type(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    of = (get_args(annotation) or (annotation,))[0]
    return {str: "text", int: "whole number", float: "number", Path: "path"}[of]


def _meaning(parameter: Any) -> str:
    said = str(parameter.help or "").strip()
    if parameter.param_type_name == "argument":
        return said
    notes = []
    if parameter.required:
        notes.append("Required.")
    elif not parameter.is_flag and parameter.default not in (None, "", []):
        notes.append(f"Default: `{parameter.default}`.")
    if parameter.envvar:
        notes.append(f"Else `${parameter.envvar}`.")
    return " ".join([said, *notes])


def modules(package: str) -> str:
    """The public modules of a package, for mkdocstrings; nothing is imported."""
    shown = []
    for path in sorted((ROOT / package.replace(".", "/")).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text(encoding="utf-8")
        if ast.get_docstring(ast.parse(text)) and not re.search(r"[._]cli\b|\._", name):
            # What a package lends from its modules is shown with them.
            lends = path.name == "__init__.py" and "__all__" in text
            shown.append(f"::: {name}" + "\n    options: {members: false}" * lends)
    return "\n\n".join(shown)


def planners() -> str:
    """The registered planners and the first sentence that each says of itself."""
    from coralline.staging import problem

    lines = ["| planner | is |", "|---|---|"]
    for name in problem.planner_names():
        _, planner, _ = problem._PLANNERS[name]
        first = (planner.__doc__ or "").strip().split("\n\n")[0]
        lines.append(f"| `{name}` | {' '.join(first.split())} |")
    return "\n".join(lines)


def figures(device: str) -> str:
    """What a device model says beside every published figure."""
    from coralline.devices.check import published_error

    lines = [
        "| model | px | stages | published | model says | error | fitted |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for p in published_error(device).predictions:
        f, unit = p.figure, "ms" if p.figure.quantity == "latency_ms" else "MiB streamed"
        lines.append(
            f"| [{f.model}]({_address(f.source)}) | {f.input_size} | {f.stages} | "
            f"{f.value:.4g} {unit} | {p.predicted:.4g} | {100 * p.relative_error:+.0f} % | "
            f"{'yes' if f.fitted else ''} |"
        )
    return "\n".join(lines)


def http() -> str:
    """The requests that the lab's service takes, by who may make them."""
    from hardware_lab.service.app import Settings, create_app
    from hardware_lab.store import Store

    with tempfile.TemporaryDirectory() as folder:
        paths = create_app(Store(Path(folder)), Settings()).openapi()["paths"]
    sections: dict[str, list[str]] = {}
    for path, methods in paths.items():
        for method, request in methods.items():
            lines = sections.setdefault(request["tags"][0], [])
            asked = [p["name"] for p in request.get("parameters", []) if p["in"] == "query"]
            query = f"?{'&'.join(asked)}" if asked else ""
            said = request["description"].split("\n\n")[0]
            lines += [f"`{method.upper()} {path}{query}`", f":   {' '.join(said.split())}", ""]
    return "\n".join(
        line for name, lines in sections.items() for line in [f"## {name.capitalize()}", "", *lines]
    )


def _address(source: str) -> str:
    found = re.search(r"https?://[^\s,]+", source)
    assert found, f"{source}: has no address"
    return found[0]


MAKERS = {f.__name__: f for f in (cli, figures, http, modules, planners)}
"""What makes a part, by the name that pages give it."""
