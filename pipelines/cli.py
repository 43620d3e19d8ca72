"""`coralline pipeline`: run and compile the Kubeflow pipelines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from coralline.errors import UserError


def add(app: typer.Typer) -> None:
    """Add the verb."""
    verb = typer.Typer(
        no_args_is_help=True,
        help="Run and compile the Kubeflow pipelines.",
        epilog="Example: coralline pipeline run respect",
    )
    verb.command(
        "run", epilog="Example: coralline pipeline run respect --set models=[my_model.tflite]"
    )(run)
    verb.command("compile", epilog="Example: coralline pipeline compile respect --out r.yaml")(
        compile_
    )
    verb.command("list", epilog="Example: coralline pipeline list")(list_)
    app.add_typer(verb, name="pipeline")


def run(
    name: str = typer.Argument(..., help="Name of a pipeline, or a compiled one (.yaml)."),
    settings: list[str] = typer.Option(
        [], "--set", help="Argument of the pipeline as NAME=VALUE; VALUE is YAML. Repeatable."
    ),
    fresh: bool = typer.Option(False, "--fresh", help="Reuse nothing from earlier runs."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Execute a pipeline on this machine and print what it found."""
    from coralline.cli import output
    from pipelines.display import Display
    from pipelines.local import code_version, run_pipeline

    arguments = _checked(name, _arguments(settings) | {"code_version": code_version()})
    with Display(sys.stderr, quiet=json) as display:
        outputs, folder = run_pipeline(name, arguments, reuse=not fresh, on_event=display.show)
    from pipelines.results import print_results, read_results

    results = read_results(Path(outputs["Output"]), folder)
    if json:
        output.print_json(results)
    else:
        print_results(results)


def compile_(
    name: str = typer.Argument(..., help="Name of a pipeline."),
    out: Path = typer.Option(..., "--out", "-o", help="The YAML file to write."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Write a pipeline as the YAML that a Kubeflow server takes."""
    from coralline.cli import output
    from pipelines.registry import compile_pipeline

    compile_pipeline(name, out)
    if json:
        output.print_json({"pipeline": name, "file": str(out)})
    else:
        typer.echo(f"written to {out}")


def list_(json: bool = typer.Option(False, "--json", help="Print one JSON object.")) -> None:
    """List the pipelines."""
    from coralline.cli import output
    from pipelines.registry import NAMES

    if json:
        output.print_json({"pipelines": list(NAMES)})
    else:
        typer.echo("\n".join(NAMES))


def _arguments(settings: list[str]) -> dict[str, Any]:
    import yaml

    arguments = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write NAME=VALUE")
        try:
            arguments[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {setting}: the value is not YAML") from None
    return arguments


def _checked(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"{name}: no such file; make it with `coralline pipeline compile`")
        from kfp import components

        try:
            pipeline = components.load_component_from_file(name)
        except Exception as error:  # KFP and its YAML reader raise many kinds
            raise UserError(
                f"{name}: is no compiled pipeline ({error}); make it with "
                "`coralline pipeline compile`"
            ) from None
    else:
        from pipelines.registry import load_pipeline

        pipeline = load_pipeline(name)
    from kfp.dsl.types import type_utils

    inputs = pipeline.component_spec.inputs
    whole, double = (type_utils.get_parameter_type(t) for t in (int, float))
    checked = {}
    for key, value in arguments.items():
        if key not in inputs:
            raise UserError(
                f"pipeline {name} has no argument {key!r}; it has {', '.join(sorted(inputs))}"
            )
        wanted = type_utils.get_parameter_type(inputs[key].type)
        given = type_utils.get_parameter_type(type(value))
        if (wanted, given) == (double, whole):
            value = float(value)
        elif wanted != given:
            raise UserError(f"--set {key}: {value!r} is not of type {inputs[key].type}")
        checked[key] = value
    return checked
