"""What a lab deletes: only what is old and what no recent job needs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from scripted_board import measurement
from service_server import serving

from coralline.errors import UserError
from hardware_lab import database
from hardware_lab.artifacts import File, Files
from hardware_lab.inventory import Demand
from hardware_lab.jobs import Job, JobOptions
from hardware_lab.lab import Lab, open_lab
from hardware_lab.locks import Lock
from hardware_lab.store import Store

DAY_S = 24 * 3600.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock of the lab, to be set by the test; that of the artifacts goes on as it does."""
    clock = SimpleNamespace(now=time.time())
    monkeypatch.setattr(database, "time", SimpleNamespace(time=lambda: clock.now))
    return clock


@pytest.fixture
def store(tmp_path: Path, clock: SimpleNamespace) -> Store:
    return Store(tmp_path / "lab")


@pytest.fixture(params=["database", "service"])
def lab(
    request: pytest.FixtureRequest, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Lab]:
    """The lab as who prunes it sees it."""
    if request.param == "database":
        yield store
        return
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path / "home"))
    with serving(store) as url:
        yield open_lab(url)


def submit(store: Store, tmp_path: Path, name: str) -> Job:
    (tmp_path / name).write_text(name)
    return store.submit(tmp_path / name, Demand(name), JobOptions(repetitions=1, warmup=0))


def run(store: Store, job: Job, tmp_path: Path) -> Job:
    lock = Lock(-1, "here:1:1")
    claimed = store.claim(job.demand, "b0", "on-b0", lock, "r")
    assert claimed is not None
    (tmp_path / "raw").write_text(f"raw samples of {job.id}")
    files = Files({"samples.parquet": File(store.artifacts.put(tmp_path / "raw"), 1)})
    store.finish(claimed, measurement(id=job.id), files)
    return store.job(job.id)


def test_what_jobs_need_stays(
    lab: Lab, store: Store, tmp_path: Path, clock: SimpleNamespace
) -> None:
    old, waiting, both = (submit(store, tmp_path, name) for name in ("old", "waiting", "both"))
    run(store, old, tmp_path), run(store, both, tmp_path)
    clock.now += 50 * DAY_S
    again = submit(store, tmp_path, "both")
    run(store, again, tmp_path)
    clock.now += 50 * DAY_S
    raw = [store.files(job.id).kept["samples.parquet"].ref for job in (old, both, again)]

    assert lab.prune(101 * DAY_S).artifacts == ()
    wanted = {old.artifact, raw[0], raw[1]}
    found = lab.prune(90 * DAY_S, dry_run=True)
    assert {artifact.ref for artifact in found.artifacts} == wanted
    assert found.to_json()["size_bytes"] == sum(store.artifacts.size(r) or 0 for r in wanted)
    assert all(store.artifacts.size(ref) is not None for ref in wanted)

    left = Path(store.artifacts.where) / "unfinished" / "left"
    left.write_bytes(b"half")
    os.utime(left, (1000, 1000))
    found = lab.prune(90 * DAY_S)
    assert {artifact.ref for artifact in found.artifacts} == wanted and found.unfinished == 1
    assert {a.ref for a in store.artifacts.stored()} == {
        waiting.artifact,
        both.artifact,
        raw[2],
    }
    assert store.measurement(old.id).latency_ms == (1.0, 2.0, 3.0)
    assert list(store.files(old.id).kept) == ["samples.parquet"]


def test_what_has_just_been_put_stays(store: Store, tmp_path: Path, clock: SimpleNamespace) -> None:
    job = submit(store, tmp_path, "model")
    store.cancel([job.id])
    path = next(p for p in Path(store.artifacts.where).rglob("*") if p.name == job.artifact[7:])
    clock.now += 100 * DAY_S
    # As somebody puts it, who will submit a job the next moment.
    os.utime(path, (clock.now, clock.now))
    assert store.prune(90 * DAY_S).artifacts == ()
    os.utime(path, (1000, 1000))
    assert len(store.prune(90 * DAY_S).artifacts) == 1


def test_what_is_young_cannot_be_pruned(lab: Lab) -> None:
    with pytest.raises(UserError, match="only what is older than 2 days"):
        lab.prune(DAY_S)
