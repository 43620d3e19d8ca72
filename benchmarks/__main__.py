"""`python -m benchmarks`: run the benchmarks, keep the results, print the tables."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

import typer
from rich.console import Console

from benchmarks import frame
from coralline.errors import CorallineError

WIDTH = 150


def main(
    only: list[str] = typer.Option([], "--only", help="Run this one; may be repeated."),
    quick: bool = typer.Option(False, "--quick", help="Small sizes: does it work at all?"),
    out: Path = typer.Option(frame.RESULTS, "--out", help="Folder of the results."),
) -> None:
    """Run every benchmark, one after the other, on an otherwise idle machine."""
    # Wide tables wrap in a narrow terminal, which is easier to read than cells cut short.
    console = Console(width=max(Console().width, WIDTH))
    try:
        chosen = {name: frame.load(name) for name in only or frame.bench_names()}
        for name, run in chosen.items():
            # A line and no spinner: a benchmark that takes long says itself how far it is.
            print(f"benchmark {name}", file=sys.stderr)
            start = perf_counter()
            result = run(quick)
            seconds = perf_counter() - start
            frame.write(name, result, quick=quick, seconds=seconds, folder=out)
            for part in (result, *result.more):
                console.print(frame.table(part))
    except CorallineError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from None
    console.print(f"results in {out}")


if __name__ == "__main__":
    typer.run(main)
