"""Traces as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coralline.errors import UserError
from coralline.runtime.power import Trace, Window, read_trace, write_trace

T_S = np.linspace(5, 6, 11)


@pytest.mark.parametrize("kind", ["power_w", "energy_j"])
def test_a_trace_is_kept_whole(tmp_path: Path, kind: str) -> None:
    import pyarrow.parquet as pq

    values = np.arange(11.0)
    trace = Trace(
        T_S,
        **{kind: values},
        channels={"voltage_v": np.full(11, 5.0)},
        bound_s=0.001,
        stale_s=0.002,
        notes=("it was charging",),
    )
    path = write_trace(trace, tmp_path / "power.parquet", [Window("alone", 5.25, 5.5, 7)])
    table = pq.read_table(path)
    assert table.column_names == ["t_s", kind, "voltage_v", "window"]
    assert table["window"].to_pylist() == [""] * 3 + ["alone"] * 3 + [""] * 5
    assert b'"inferences": 7' in table.schema.metadata[b"windows"]
    back = read_trace(path)
    assert back.facts() == trace.facts() and back.is_counter == trace.is_counter
    assert np.array_equal(back.t_s, T_S)
    assert np.array_equal(back.channels["voltage_v"], trace.channels["voltage_v"])


def test_csv_with_voltage_and_current(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("t_s,voltage_v,current_a\n0.0,5,0.1\n0.5,5,0.3\n1.0,5,0.3\n")
    trace = read_trace(path)
    assert trace.power_w is not None and trace.power_w.tolist() == [0.5, 1.5, 1.5]
    assert trace.energy_until([0.5, 1.0]).tolist() == [0.5, 1.25]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("", "is not a table"),
        ("power_w\n1\n2\n", "needs a column t_s"),
        ("t_s,power_w\n1,2\n", "two rows at least"),
        ("t_s,volts\n1,2\n2,2\n", "needs one of power_w and energy_j"),
        ("t_s,power_w,energy_j\n1,2,3\n2,2,3\n", "needs one of power_w and energy_j"),
        ("t_s,power_w\n1,two\n2,2\n", "something else than numbers"),
        ("t_s,power_w\n2,2\n1,2\n", "ran backwards"),
        ("t_s,power_w\n1,2\n2,\n", "no numbers"),
    ],
)
def test_files_that_are_no_traces(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "own.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f"own.csv: .*{message}"):
        read_trace(path)
