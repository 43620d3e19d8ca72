"""`coralline lab` and `coralline bench`: what the boards are, and what they measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from coralline.cli import output
from hardware_lab import artifact_cli, trend_cli
from hardware_lab.meters_cli import meters
from hardware_lab.options import artifacts as _artifacts
from hardware_lab.options import inventory as _inventory
from hardware_lab.options import json_only as _json
from hardware_lab.options import seconds_of
from hardware_lab.options import where as _where
from hardware_lab.service_cli import add_service
from hardware_lab.show import print_files, print_result, print_table, write_files, write_result

if TYPE_CHECKING:
    from hardware_lab.inventory import Demand, Inventory
    from hardware_lab.jobs import Job
    from hardware_lab.lab import Lab

REPETITIONS = 1024
SECONDS = 60.0
"""A mode ends with the first of the two; both are numbers of MLPerf Mobile's rules
(github.com/mlcommons/mobile_open, rules/mobile_inference_rules.adoc)."""
WARMUP = 10

lab = typer.Typer(
    help="Boards, jobs and measurements of the device lab.",
    epilog="Example: coralline lab submit segments --board host && coralline lab run",
    no_args_is_help=True,
)


def add(app: typer.Typer) -> None:
    """Add the verb `lab`."""
    artifact_cli.add(lab)
    trend_cli.add(lab)
    app.add_typer(lab, name="lab")


def add_bench(app: typer.Typer) -> None:
    """Add the verb `bench`."""
    app.command("bench", epilog="Example: coralline bench segments --board host")(bench)


def _group() -> Any:
    return typer.Option(None, "--group", help="Only the jobs of this group.")


def _repetitions() -> Any:
    return typer.Option(
        None,
        "--repetitions",
        "-n",
        help=f"Samples, one in flight and again full; else {REPETITIONS}, or what {SECONDS:.0f} s "
        "give.",
    )


def _at_most() -> Any:
    return typer.Option(None, "--seconds", help="Take no more samples after so long.")


def _percentile() -> Any:
    return typer.Option(
        None, "--percentile", help="Take enough samples to bound this one with 99 % confidence."
    )


def _against() -> Any:
    return typer.Option(
        None, "--against", help="Compare with this folder or .tflite, in turns on the same board."
    )


def _allow_fallback() -> Any:
    return typer.Option(
        False, "--allow-fallback", help="Accept that another processor runs than asked for."
    )


def _samples(
    repetitions: int | None, seconds: float | None, percentile: float | None
) -> dict[str, Any]:
    """How many samples the options ask for, and for how long at most."""
    from coralline.errors import UserError
    from coralline.runtime.statistics import fewest_samples

    if percentile is not None:
        if not 0 < percentile < 100:
            raise UserError(f"percentile {percentile:g} must be above 0 and below 100")
        repetitions = max(repetitions or 0, fewest_samples(percentile))
    elif repetitions is None:
        return {"repetitions": REPETITIONS, "seconds": seconds or SECONDS}
    return {"repetitions": repetitions, "seconds": seconds}


def _labels(given: list[str]) -> dict[str, str]:
    from coralline.errors import UserError

    labels = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UserError(f"label {text!r} must be of the form NAME=VALUE")
        labels[name] = value
    return labels


def _warmup() -> Any:
    return typer.Option(WARMUP, "--warmup", help="Inferences before the first sample.")


@lab.command("boards", epilog="Example: coralline lab boards --inventory lab.yaml")
def boards(inventory: Path | None = _inventory(), json: bool = _json()) -> None:
    """List the boards of the inventory."""
    from dataclasses import asdict

    from hardware_lab.inventory import load_inventory

    found = load_inventory(inventory)
    rows = [
        {
            "kind": board.kind,
            "resource": board.resource,
            "tags": dict(found.tags[name]),
            **asdict(board),  # type: ignore[call-overload]
            "meter": None if (meter := getattr(board, "meter", None)) is None else meter.name,
        }
        for name, board in found.boards.items()
    ]
    if json:
        output.print_json({"boards": rows})
        return
    hidden = ("name", "kind", "tags", "resource")
    shown = [
        [
            row["name"],
            row["kind"],
            ", ".join(f"{tag} {count}" for tag, count in row["tags"].items()),
            ", ".join(f"{k} {v}" for k, v in row.items() if k not in hidden and v is not None),
        ]
        for row in rows
    ]
    print_table(["board", "kind", "tags", "options"], shown)


add_service(lab)
lab.command("meters", epilog="Example: coralline lab meters hub --seconds 5")(meters)


@lab.command("health", epilog="Example: coralline lab health pi --set unknown --why 'new cable'")
def health(
    board: str | None = typer.Argument(None, help="Only this board, and what became of it."),
    state: str | None = typer.Option(
        None, "--set", help="Do not ask it, but say: unknown, bad, maintenance or retired."
    ),
    why: str = typer.Option("", "--why", help="Kept with --set."),
    inventory: Path | None = _inventory(),
    where: str | None = _where(),
    json: bool = _json(),
) -> None:
    """Ask the boards whether they can work; exit code 1 when one cannot.

    A board that is bad, in maintenance or retired gets no jobs until it is set to unknown.
    """
    from coralline.errors import UserError
    from hardware_lab.checks import survey
    from hardware_lab.inventory import load_inventory
    from hardware_lab.lab import open_lab

    boards, store = load_inventory(inventory), open_lab(where)
    chosen = [one for one in boards.boards.values() if board in (None, one.name)]
    if board is not None and board not in store.health.known():
        boards.board(board)
    if state is not None:
        if board is None or not why:
            raise UserError("--set needs the name of a board, and --why")
        store.health.set(board, state, why)
    else:
        survey(store, chosen)
    known = store.health.known()
    names = [one.name for one in chosen] if board is None else [board]
    rows = [known[name].to_json() for name in names if name in known]
    if json:
        history = {} if board is None else {"log": store.health.log(board)}
        output.print_json({"boards": rows, **history})
    else:
        print_table(
            ["board", "health", "says"],
            [[row["board"], row["state"], row["cause"]] for row in rows],
        )
        for line in store.health.log(board) if board is not None else ():
            print(f"{line['at']}  {line['state']}: {line['cause']}")
    if state is None and any(row["state"] in ("looping", "bad") for row in rows):
        raise typer.Exit(1)


@lab.command("submit", epilog="Example: coralline lab submit segments --board host")
def submit(
    path: Path = typer.Argument(..., help="A folder that `coralline split` wrote, or a .tflite."),
    board: str | None = typer.Option(None, "--board", "-b", help="Name in the inventory."),
    need: list[str] = typer.Option(
        [], "--need", help="Any board with this tag: usb3, or edgetpu=4; may be repeated."
    ),
    priority: int = typer.Option(0, "--priority", help="From -10 to 10; a step is worth an hour."),
    deadline: str | None = typer.Option(
        None, "--deadline", help="Give the job up unless it begins within 90s, 30m, 8h or 2d."
    ),
    group: str | None = typer.Option(None, "--group", help="Name to run or cancel jobs by."),
    label: list[str] = typer.Option(
        [], "--label", help="NAME=VALUE, to find the job by; may be repeated."
    ),
    repetitions: int | None = _repetitions(),
    seconds: float | None = _at_most(),
    percentile: float | None = _percentile(),
    warmup: int = _warmup(),
    against: Path | None = _against(),
    allow_fallback: bool = _allow_fallback(),
    inventory: Path | None = _inventory(),
    where: str | None = _where(),
    artifacts: str | None = _artifacts(),
    json: bool = _json(),
) -> None:
    """Queue a measurement; `coralline lab run` makes it."""
    from coralline.errors import UserError
    from hardware_lab.inventory import Demand, parse_needs
    from hardware_lab.jobs import JobOptions
    from hardware_lab.lab import open_lab

    if board is None and not need:
        raise UserError("no board is asked for; give --board or --need")
    demand = Demand(board, parse_needs(need))
    store = open_lab(where, artifacts)
    _check(store, demand, inventory)
    job = store.submit(
        path,
        demand,
        JobOptions(
            **_samples(repetitions, seconds, percentile),
            warmup=warmup,
            allow_fallback=allow_fallback,
            priority=priority,
            deadline_s=seconds_of(deadline, "deadline"),
            group=group,
            labels=_labels(label),
        ),
        against=against,
    )
    if json:
        output.print_json(job.to_json())
    else:
        print(f"job {job.id} is queued for {job.demand}")


@lab.command("cancel", epilog="Example: coralline lab cancel --group nightly")
def cancel(
    jobs: list[str] = typer.Argument(None, metavar="JOB...", help="Ids of jobs."),
    group: str | None = typer.Option(None, "--group", help="All jobs of this group."),
    where: str | None = _where(),
    json: bool = _json(),
) -> None:
    """End jobs that are queued or running; boards that work on them are left in seconds."""
    from coralline.errors import UserError
    from hardware_lab.lab import open_lab

    if not jobs and group is None:
        raise UserError("nothing to cancel; give ids of jobs, or --group")
    store = open_lab(where)
    for job_id in jobs or ():
        store.job(job_id)
    ended = store.cancel(jobs or (), group)
    if json:
        output.print_json({"jobs": [job.to_json() for job in ended]})
    else:
        _print_jobs(ended)


@lab.command("run", epilog="Example: coralline lab run")
def run(
    group: str | None = _group(),
    inventory: Path | None = _inventory(),
    where: str | None = _where(),
    artifacts: str | None = _artifacts(),
    json: bool = _json(),
) -> None:
    """Run the queued jobs, and those whose runner was lost; exit code 1 unless all are done."""
    from hardware_lab.inventory import load_inventory
    from hardware_lab.lab import open_lab
    from hardware_lab.waiting import why_waiting

    store, boards = open_lab(where, artifacts), load_inventory(inventory)
    ended = _run(store, boards, group, quiet=json)
    if json:
        output.print_json({"jobs": [job.to_json() for job in ended]})
    else:
        _print_jobs(ended)
    left = store.jobs(state="queued", group=group)
    for job in left:
        typer.echo(f"{job.id} is left in the queue: {why_waiting(store, job)}", err=True)
    # Those for the boards of other runners are not this one's to do.
    undone = [job for job in left if boards.meeting(job.demand)]
    if undone or any(job.state in ("failed", "invalid") for job in ended):
        raise typer.Exit(1)


@lab.command("jobs", epilog="Example: coralline lab jobs --state failed")
def jobs(
    state: str | None = typer.Option(
        None, "--state", help="queued, running, done, invalid, failed or cancelled."
    ),
    group: str | None = _group(),
    label: list[str] = typer.Option([], "--label", help="Only those with NAME=VALUE."),
    where: str | None = _where(),
    json: bool = _json(),
) -> None:
    """List the jobs."""
    from coralline.errors import UserError
    from hardware_lab.database import STATES
    from hardware_lab.lab import open_lab

    if state is not None and state not in STATES:
        raise UserError(f"state {state!r} is not known; choose {', '.join(STATES)}")
    found = open_lab(where).jobs(state=state, group=group, labels=_labels(label))
    if json:
        output.print_json({"jobs": [job.to_json() for job in found]})
    else:
        _print_jobs(found)


@lab.command("show", epilog="Example: coralline lab show 1f0c9a7be2d34f68 --out measurement.json")
def show(
    job_id: str = typer.Argument(..., metavar="JOB", help="Id of the job."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Write the measurement here."),
    where: str | None = _where(),
    json: bool = _json(),
) -> None:
    """Show a job and what it measured."""
    from hardware_lab.lab import open_lab

    store = open_lab(where)
    job = store.job(job_id)
    kept = job.state in ("done", "invalid")
    result = store.result(job_id) if kept or out is not None else None
    if out is not None and result is not None:
        write_result(out, result)
    files = store.files(job_id)
    if json:
        measured = None if result is None else result.to_json()
        output.print_json({"job": job.to_json(), "measurement": measured, "files": files.to_json()})
        return
    _print_jobs([job])
    if result is not None:
        print_result(result)
        print_files(files)


def bench(
    path: Path = typer.Argument(..., help="A folder that `coralline split` wrote, or a .tflite."),
    board: str = typer.Option("host", "--board", "-b", help="Name in the inventory."),
    repetitions: int | None = _repetitions(),
    seconds: float | None = _at_most(),
    percentile: float | None = _percentile(),
    warmup: int = _warmup(),
    against: Path | None = _against(),
    allow_fallback: bool = _allow_fallback(),
    out: Path | None = typer.Option(None, "--out", "-o", help="Write the measurement here."),
    inventory: Path | None = _inventory(),
    where: str | None = _where(),
    artifacts: str | None = _artifacts(),
    json: bool = _json(),
) -> None:
    """Run a split model as a pipeline on a board; a job of the lab, run at once.

    A service's runners run it.
    """
    from uuid import uuid4

    from hardware_lab.inventory import Demand, load_inventory
    from hardware_lab.jobs import JobOptions
    from hardware_lab.lab import open_lab
    from hardware_lab.waiting import why_waiting

    store, demand = open_lab(where, artifacts), Demand(board)
    _check(store, demand, inventory)
    group = f"bench-{uuid4().hex[:8]}"
    job = store.submit(
        path,
        demand,
        JobOptions(
            **_samples(repetitions, seconds, percentile),
            warmup=warmup,
            allow_fallback=allow_fallback,
            group=group,
        ),
        against=against,
    )
    try:
        if store.served:
            _wait(store, group, quiet=json)
        else:
            _run(store, load_inventory(inventory), group, quiet=json)
        store.cancel([job.id], reason=why_waiting(store, job))
    finally:
        store.cancel([job.id], reason="interrupted")
    store.job(job.id).raise_error()
    result = store.result(job.id)
    if out is not None:
        write_result(out, result)
        write_files(out, store, job.id)
    if json:
        output.print_json(result.to_json())
    else:
        print_result(result)


def _check(store: Lab, demand: Demand, inventory: Path | None) -> None:
    """See that a board could do what is demanded: one of the service's, or of the inventory."""
    from coralline.errors import UserError
    from hardware_lab.inventory import check_demand, load_inventory
    from hardware_lab.waiting import boards_of_others

    if not store.served:
        load_inventory(inventory).check(demand)
    elif inventory is not None:
        raise UserError(f"the boards of {store.where} are its runners'; leave --inventory out")
    else:
        check_demand(boards_of_others(store, unfit=True), demand)


def _run(store: Lab, inventory: Inventory, group: str | None, *, quiet: bool) -> list[Job]:
    from hardware_lab.runner import run_jobs

    with _progress(quiet) as advance:
        return run_jobs(store, inventory, group, advance)


def _wait(store: Lab, group: str, *, quiet: bool) -> None:
    from hardware_lab.waiting import wait_for

    with _progress(quiet) as advance:
        wait_for(store, group, advance)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Job, int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        bars: dict[str, Any] = {}
        waiting = bar.add_task("waiting for a board", total=None)

        def advance(job: Job, done: int, total: int) -> None:
            bar.update(waiting, visible=False)
            if job.id not in bars:
                bars[job.id] = bar.add_task(f"{Path(job.path).name} on {job.board}", total=total)
            bar.update(bars[job.id], completed=done)

        yield advance


def _print_jobs(found: list[Job]) -> None:
    rows = [
        [
            job.id,
            job.board or str(job.demand),
            Path(job.path).name,
            job.group or "",
            job.state,
        ]
        for job in found
    ]
    print_table(["job", "board", "model", "group", "state"], rows)
    # A sentence in a column of its own would be cut to nothing.
    for job in found:
        if job.error:
            print(f"{job.id}: attempt {job.attempt}: {job.error}")
