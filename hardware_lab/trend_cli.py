"""`coralline lab trend` and `coralline lab accept`: the nights of the lab, and what is normal."""

from __future__ import annotations

from pathlib import Path

import typer

from coralline.cli import output
from hardware_lab import options

_WHERE = options.where()
_NAME = typer.Option("nightly", "--name", help="Which nightly, where a lab has several.")
_JSON = options.json_only()


def add(lab: typer.Typer) -> None:
    """Add the verbs."""
    for function, example in (
        (trend, "trend --board host --out page.html"),
        (accept, "accept mobilenet_v2/2/host --why 'the new kernel is slower and safer'"),
    ):
        lab.command(function.__name__, epilog=f"Example: coralline lab {example}")(function)


def trend(
    model: str | None = typer.Option(None, "--model", help="Only this model."),
    board: str | None = typer.Option(None, "--board", help="Only this board."),
    name: str = _NAME,
    out: Path | None = typer.Option(None, "--out", "-o", help="Write a page (.html) here."),
    where: str | None = _WHERE,
    json: bool = _JSON,
) -> None:
    """Tell which series have become slower, by how much and since when."""
    from datetime import UTC, datetime

    from coralline.errors import UserError
    from hardware_lab.lab import open_lab
    from hardware_lab.nights import read_trends, with_commits
    from hardware_lab.show import print_trends

    store = open_lab(where)
    found = with_commits(read_trends(store, name, model=model, board=board), Path.cwd())
    if not found:
        raise UserError(
            f"{store.where}: has no night of {name!r} like that; `coralline pipeline run nightly` "
            "makes them"
        )
    if out is not None:
        from hardware_lab.trend_page import write_page

        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_page(f"Trend: {name}", now, found, {"lab": store.where}, out)
    if json:
        output.print_json({"trends": found})
        return
    print_trends(found)
    if out is not None:
        typer.echo(f"written to {out}")


def accept(
    what: str = typer.Argument(
        ..., metavar="JOB|MODEL/STAGES/BOARD", help="Id of a night's job, or the name of a series."
    ),
    why: str = typer.Option(..., "--why", help="Kept and shown with the trend."),
    name: str = _NAME,
    where: str | None = _WHERE,
    json: bool = _JSON,
) -> None:
    """Make a slower level the normal one: with the given night, or with the last."""
    from hardware_lab import nights
    from hardware_lab.lab import open_lab

    job = nights.accept(open_lab(where), what, why, name)
    if json:
        output.print_json({"job": job.to_json()})
    else:
        typer.echo(f"the level of job {job.id} is accepted")
