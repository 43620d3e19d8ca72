"""`coralline lab meters`: what the power meters of the inventory are, and what one reads now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from coralline.cli import output


def meters(
    name: str | None = typer.Argument(None, help="Read this one."),
    seconds: float = typer.Option(2.0, "--seconds", "-s", help="How long to read it."),
    inventory: Path | None = typer.Option(
        None, "--inventory", help="Inventory file; else the one in the package."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """List the power meters and what each lacks, or read one; exit code 1 when one fails."""
    from coralline.errors import UserError
    from hardware_lab.inventory import load_inventory
    from hardware_lab.show import print_table

    if not 0.1 <= seconds <= 3600:
        raise UserError(f"seconds {seconds:g} must be from 0.1 to 3600")
    found = load_inventory(inventory)
    if name is not None:
        read = {"meter": name, **_read(found.meter(name), seconds)}
        if json:
            output.print_json(read)
        else:
            print(
                f"{read['device']} at {read['at']}: {read['power_w']:.6g} W, mean of "
                f"{read['samples']} samples in {read['seconds']:.2f} s ({read['rate_hz']:.1f} Hz), "
                f"{read['lost_share']:.2%} lost"
            )
            for note in read["notes"]:
                print(note)
        return
    rows = [
        {
            "name": meter.name,
            "kind": meter.kind,
            "at": meter.at,
            "accuracy_percent": meter.accuracy_percent,
            "boards": [
                board.name
                for board in found.boards.values()
                if getattr(board, "meter", None) is meter
            ],
            **_state(meter),
        }
        for meter in found.meters.values()
    ]
    if json:
        output.print_json({"meters": rows})
    elif rows:
        print_table(
            ["meter", "kind", "at", "on", "says"],
            [
                [row["name"], row["kind"], row["at"], ", ".join(row["boards"]), row["says"]]
                for row in rows
            ],
        )
    else:
        print("the inventory has no meters; name them under `meters`, and on a board as `meter`")
    if not all(row["works"] for row in rows):
        raise typer.Exit(1)


def _state(meter: Any) -> dict[str, Any]:
    from coralline.errors import CorallineError
    from hardware_lab.meters.process import Recording

    recording = Recording(meter)
    try:
        return {"works": True, "says": recording.identify()}
    except CorallineError as error:
        return {"works": False, "says": str(error)}
    finally:
        recording.end()


def _read(meter: Any, seconds: float) -> dict[str, Any]:
    from time import sleep

    from coralline.runtime.energy import mean_power
    from hardware_lab.meters.process import Recording

    recording = Recording(meter)
    try:
        device = recording.identify()
        recording.start()
        sleep(seconds)
        trace = recording.stop()
    finally:
        recording.end()
    return {
        "kind": meter.kind,
        "device": device,
        "at": meter.at,
        "accuracy_percent": meter.accuracy_percent,
        **mean_power(trace),
        "notes": list(trace.notes),
    }
