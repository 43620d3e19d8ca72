"""The raw samples of a measurement as Parquet, for tools that read tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coralline.errors import UserError
from coralline.files import replacing
from coralline.runtime.measurement import Measurement


def write_samples(measurement: Measurement, out: Path) -> Path:
    """Write a row a sample: `at_s`, `latency_ms`, `full_latency_ms`, and for each stage s
    `busy_ms_s`, `queue_wait_ms_s` and `transfer_ms_s`, as `Measurement` explains them.

    Raises:
        UserError: The board gave no samples, or the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not measurement.latency_ms:
        raise UserError(
            f"measurement {measurement.id} has no samples: the program that runs on board "
            f"{measurement.board!r} reports a summary only"
        )
    columns = {"latency_ms": measurement.latency_ms, "full_latency_ms": measurement.full_latency_ms}
    if measurement.at_s:
        columns = {"at_s": measurement.at_s, **columns}
    for name, rows in (
        ("busy_ms", measurement.stage_busy_ms),
        ("queue_wait_ms", measurement.queue_wait_ms),
        ("transfer_ms", measurement.transfer_ms),
    ):
        columns |= {f"{name}_{s}": row for s, row in enumerate(rows)}
    facts = {
        "measurement": measurement.id,
        "model": measurement.model,
        "model_digest": measurement.model_digest,
        "board": measurement.board,
        "simulated": "yes" if measurement.simulated else "no",
        "started_at": measurement.started_at,
    }
    arrays = {name: np.array(values, dtype=np.float64) for name, values in columns.items()}
    table = pa.table(arrays).replace_schema_metadata(facts)
    with replacing(out) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return out
