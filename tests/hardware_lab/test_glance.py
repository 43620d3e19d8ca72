"""A few of many jobs, found in both kinds of database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scripted_board import measurement

from hardware_lab.inventory import Demand
from hardware_lab.jobs import Job, JobOptions
from hardware_lab.store import Store

MODEL = Path(__file__).parents[1] / "data" / "small_int8.tflite"


@pytest.fixture
def store(where: str, tmp_path: Path) -> Store:
    return Store(where, artifacts=str(tmp_path / "artifacts"))


def submit(store: Store, **options: Any) -> Job:
    return store.submit(MODEL, Demand("b"), JobOptions(repetitions=1, warmup=0, **options))


def finish(store: Store, job: Job) -> str:
    with store.lock(f"lock-{job.id}") as lock:
        assert lock is not None
        claimed = store.claim(job.demand, "b", "r", lock, "runner")
    assert claimed is not None
    store.finish(claimed, measurement(id=job.id))
    return claimed.id


def test_the_queue_in_the_order_of_its_turns(store: Store) -> None:
    late, first, second = (submit(store, priority=p) for p in (-1, 5, 5))
    assert store.glance.queued(2) == [first.id, second.id]
    assert [store.glance.ahead(job.id) for job in (first, second, late)] == [0, 1, 2]
    assert finish(store, first) == first.id
    assert store.glance.queued(9) == [second.id, late.id]
    assert store.glance.ahead(late.id) == 1


def test_what_ended_last_is_first(store: Store) -> None:
    jobs = [submit(store, priority=i) for i in range(3)]
    for job in reversed(jobs):
        assert finish(store, job) == job.id
    assert store.glance.ended(2) == [jobs[0].id, jobs[1].id]


def test_jobs_are_chosen_by_all_that_is_asked(store: Store) -> None:
    jobs = [
        submit(store, group=f"g{i % 2}", labels={"commit": f"c{i % 3}", "a $.c'": "d'e"})
        for i in range(6)
    ]
    finish(store, jobs[0])
    ids = [job.id for job in jobs]

    def chosen(**wanted: Any) -> list[int]:
        return [ids.index(one) for one in store.glance.chosen(**{"limit": 9, **wanted})]

    assert chosen() == [5, 4, 3, 2, 1, 0]
    assert chosen(limit=2, after=ids[4]) == [3, 2]
    assert chosen(group="g1", label=("commit", "c0")) == [3]
    assert chosen(label=("a $.c'", "d'e"), state="done", board="b") == [0]
    assert chosen(label=("commit", "none")) == []


def test_labels_and_what_has_ended_with_them(store: Store) -> None:
    jobs = [submit(store, labels={"nightly": name}) for name in ("b", "a", "b")]
    submit(store)
    assert store.glance.labelled("nightly") == ["a", "b"]
    seen = {store.glance.ended_like("nightly", "b", "accepted")}
    finish(store, jobs[0])
    seen.add(store.glance.ended_like("nightly", "b", "accepted"))
    store.label(jobs[0].id, {"accepted": "so be it"})
    seen.add(store.glance.ended_like("nightly", "b", "accepted"))
    assert len(seen) == 3
    finish(store, jobs[1])
    assert store.glance.ended_like("nightly", "b", "accepted") in seen
