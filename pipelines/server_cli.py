"""`coralline pipeline submit` and the other verbs that speak with a Kubeflow server."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from coralline.errors import DeviceError, UserError

if TYPE_CHECKING:
    from pipelines.server import Server

_HOST = typer.Option(
    ..., "--host", envvar="KF_PIPELINES_ENDPOINT", help="URL of Kubeflow Pipelines."
)
_NAMESPACE = typer.Option("", "--namespace", help="Of the user, on a server of several users.")
_TOKEN_FILE = typer.Option(
    None, "--token-file", help="Bearer token, read anew for each request. Or $KFP_TOKEN."
)
_CA_FILE = typer.Option(None, "--ca-file", help="Certificates to trust instead of the usual.")
_EXPERIMENT = typer.Option("coralline", "--experiment", help="Kubeflow experiment of the runs.")
_NAME = typer.Argument(..., help="Name of a pipeline, or a compiled one (.yaml).")
_SETTINGS = typer.Option(
    [], "--set", help="Argument of the pipeline as NAME=VALUE; VALUE is YAML. Repeatable."
)
_CHECK_IMAGES = typer.Option(
    False, "--check-images", help="Ask the registries whether the images are there."
)
_KUBE_CONTEXT = typer.Option(
    "", "--kube-context", help="Of kubectl: ask that cluster whether its nodes and secrets do."
)
_SERVICE_ACCOUNT = typer.Option("", "--service-account", help="Of the cluster, for the pods.")
_RUN = typer.Argument(..., help="Id of a run.")
_JSON = typer.Option(False, "--json", help="Print one JSON object.")


def add(verb: typer.Typer) -> None:
    """Add the verbs."""
    at = "--host http://localhost:8888"
    for function, example in (
        (submit, rf"submit respect {at} --set models=\[mobilenet_v2]"),
        (schedule, f'schedule respect {at} --cron "0 0 2 * * *"'),
        (runs, f"runs {at}"),
        (status, f"status RUN {at} --watch"),
        (logs, f"logs RUN {at} --step dispatch"),
        (cancel, f"cancel RUN {at}"),
    ):
        verb.command(function.__name__, epilog=f"Example: coralline pipeline {example}")(function)


def submit(
    name: str = _NAME,
    host: str = _HOST,
    settings: list[str] = _SETTINGS,
    experiment: str = _EXPERIMENT,
    service_account: str = _SERVICE_ACCOUNT,
    check_images: bool = _CHECK_IMAGES,
    kube_context: str = _KUBE_CONTEXT,
    namespace: str = _NAMESPACE,
    token_file: Path | None = _TOKEN_FILE,
    ca_file: Path | None = _CA_FILE,
    json: bool = _JSON,
) -> None:
    """Upload a pipeline to a Kubeflow server and start a run."""
    from coralline.cli import output
    from pipelines.arguments import read_arguments, within_reach

    with _package(name, experiment, check_images) as (package, pipeline):
        arguments = within_reach(name, read_arguments(name, settings))
        _check_room(package, kube_context, namespace, service_account)
        run = _server(host, namespace, token_file, ca_file).submit(
            package, pipeline, arguments, experiment=experiment, service_account=service_account
        )
    if json:
        output.print_json(run)
    else:
        typer.echo(f"run {run['run_id']} of {run['version']} is {run['state']}\n{run['url']}")
        typer.echo(f"follow it with: coralline pipeline status {run['run_id']} --watch")


def schedule(
    name: str = _NAME,
    host: str = _HOST,
    cron: str = typer.Option(
        "", "--cron", help="Seconds, minutes, hours, day of month, month, day of week."
    ),
    off: bool = typer.Option(False, "--off", help="Delete the schedule."),
    settings: list[str] = _SETTINGS,
    experiment: str = _EXPERIMENT,
    service_account: str = _SERVICE_ACCOUNT,
    check_images: bool = _CHECK_IMAGES,
    kube_context: str = _KUBE_CONTEXT,
    namespace: str = _NAMESPACE,
    token_file: Path | None = _TOKEN_FILE,
    ca_file: Path | None = _CA_FILE,
    json: bool = _JSON,
) -> None:
    """Run a pipeline on a Kubeflow server again and again, one run at a time."""
    from datetime import UTC, datetime

    from coralline.cli import output
    from pipelines.arguments import read_arguments, within_reach
    from pipelines.cron import parse_cron

    if off == bool(cron):
        raise UserError("give either --cron EXPRESSION or --off")
    if off:
        server = _server(host, namespace, token_file, ca_file)
        deleted = server.unschedule(_pipeline_name(name), experiment=experiment)
        if json:
            output.print_json({"name": _pipeline_name(name), "deleted": deleted})
        else:
            typer.echo(f"{deleted} schedules deleted")
        return
    when = parse_cron(cron)
    with _package(name, experiment, check_images) as (package, pipeline):
        arguments = within_reach(name, read_arguments(name, settings))
        _check_room(package, kube_context, namespace, service_account)
        made = _server(host, namespace, token_file, ca_file).schedule(
            package,
            pipeline,
            arguments,
            when.text,
            experiment=experiment,
            service_account=service_account,
        )
    following = when.next_after(datetime.now(UTC))
    if json:
        output.print_json({**made, "next_utc": following and following.isoformat()})
    else:
        typer.echo(f"schedule {made['recurring_run_id']} of {made['version']} {made['change']}")
        typer.echo(f"next run: {following:%Y-%m-%d %H:%M:%S} where Kubeflow's clock is UTC")


def runs(
    host: str = _HOST,
    count: int = typer.Option(20, "--count", min=1, help="How many, the newest first."),
    experiment: str = _EXPERIMENT,
    namespace: str = _NAMESPACE,
    token_file: Path | None = _TOKEN_FILE,
    ca_file: Path | None = _CA_FILE,
    json: bool = _JSON,
) -> None:
    """List the runs on a Kubeflow server."""
    from coralline.cli import output

    found = _server(host, namespace, token_file, ca_file).runs(experiment=experiment, count=count)
    if json:
        output.print_json({"runs": [{k: v for k, v in r.items() if k != "steps"} for r in found]})
        return
    for run in found:
        typer.echo(f"{run['run_id']}  {run['state']:9}  {run['created_at'] or '-'}  {run['name']}")


def status(
    run: str = _RUN,
    host: str = _HOST,
    watch: bool = typer.Option(False, "--watch", help="Wait until it has ended."),
    every_s: float = typer.Option(5.0, "--every", min=0.1, help="Seconds between looks."),
    namespace: str = _NAMESPACE,
    token_file: Path | None = _TOKEN_FILE,
    ca_file: Path | None = _CA_FILE,
    json: bool = _JSON,
) -> None:
    """Show a run on a Kubeflow server; exit code 1 if it has failed."""
    from coralline.cli import output

    server = _server(host, namespace, token_file, ca_file)
    seen: dict[str, str] = {}
    for found in server.follow(run, every_s) if watch else [server.run(run)]:
        if watch and not json:
            _say_changes(found, seen)
    if json:
        output.print_json(found)
    else:
        _print_run(found)
    if found["state"] == "FAILED":
        raise DeviceError(f"run {run} failed: {found['error'] or 'see its logs'}")


def logs(
    run: str = _RUN,
    host: str = _HOST,
    step: str = typer.Option("", "--step", help="Only this step."),
    namespace: str = _NAMESPACE,
    token_file: Path | None = _TOKEN_FILE,
    ca_file: Path | None = _CA_FILE,
    json: bool = _JSON,
) -> None:
    """Print the logs of a run's steps, while their pods are there."""
    from coralline.cli import output

    found = _server(host, namespace, token_file, ca_file).logs(run, step)
    if json:
        logs = [{"step": name, "pod": pod, "log": log} for name, pod, log in found]
        output.print_json({"run_id": run, "logs": logs})
        return
    pod = ""
    for name, pod, log in found:
        typer.echo(f"==> {name} ({pod})")
        typer.echo(log.rstrip("\n"))
    if not pod:
        typer.echo("no log is there: no step has begun, or the pods are gone", err=True)


def cancel(
    run: str = _RUN,
    host: str = _HOST,
    namespace: str = _NAMESPACE,
    token_file: Path | None = _TOKEN_FILE,
    ca_file: Path | None = _CA_FILE,
    json: bool = _JSON,
) -> None:
    """End a run on a Kubeflow server; one that has ended stays as it is."""
    from coralline.cli import output

    found = _server(host, namespace, token_file, ca_file).cancel(run)
    if json:
        output.print_json(found)
    else:
        typer.echo(f"run {run} is {found['state']}")


def _server(host: str, namespace: str, token_file: Path | None, ca_file: Path | None) -> Server:
    from pipelines.server import Access, Server

    def say(why: str, pause_s: float) -> None:
        print(f"{why}\ntrying again in {pause_s:.0f} s", file=sys.stderr)

    return Server(Access(host, namespace, token_file, ca_file), say)


def _check_room(package: Path, context: str, namespace: str, service_account: str) -> None:
    if not context:
        return
    from pipelines.room import Cluster, check_room

    # Where a server of one user runs its pods.
    check_room(package, Cluster(context), namespace or "kubeflow", service_account)


def _pipeline_name(name: str) -> str:
    return Path(name).stem if name.endswith((".yaml", ".yml")) else name


@contextlib.contextmanager
def _package(name: str, experiment: str, check_images: bool) -> Iterator[tuple[Path, str]]:
    """The compiled pipeline, checked, and its name on the server."""
    from tempfile import TemporaryDirectory

    from pipelines.acceptance import check_names
    from pipelines.package import check_package, find_image
    from pipelines.registry import compile_pipeline

    check_names(_pipeline_name(name), experiment)
    with TemporaryDirectory() as folder:
        package = Path(name)
        if package.suffix not in (".yaml", ".yml"):
            package = Path(folder) / f"{name}.yaml"
            compile_pipeline(name, package)
        images = check_package(package)
        for image in images if check_images else ():
            found = find_image(image)
            if found is False:
                raise UserError(
                    f"image {image.reference} is not at {image.registry}; push it, or set "
                    "$CORALLINE_IMAGE to one that is"
                )
            if found is None:
                typer.echo(
                    f"image {image.reference}: {image.registry} does not say whether it is there",
                    err=True,
                )
        yield package, _pipeline_name(name)


def _say_changes(run: dict[str, Any], seen: dict[str, str]) -> None:
    for step in run["steps"]:
        if seen.get(step["step"]) != step["state"]:
            seen[step["step"]] = step["state"]
            typer.echo(f"{step['state'] or 'PENDING':9} {step['step']}", err=True)


def _print_run(run: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for column in ("step", "state", "s"):
        table.add_column(column, justify="right" if column == "s" else "left")
    for step in run["steps"]:
        seconds = "-" if step["seconds"] is None else f"{step['seconds']:.0f}"
        table.add_row(escape(step["step"] or "-"), step["state"] or "-", seconds)
    console = Console()
    console.print(f"{escape(run['name'])}: [bold]{run['state']}[/bold]", soft_wrap=True)
    if run["error"]:
        console.print(escape(run["error"]), style="red", soft_wrap=True)
    if run["steps"]:
        console.print(table)
    console.print(run["url"], soft_wrap=True)
