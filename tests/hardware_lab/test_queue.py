"""The queue, in databases and behind a service: order, demands, leases, and what is refused."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from scripted_board import measurement
from sqlalchemy import text

from coralline.errors import DeviceError, UserError
from hardware_lab import database
from hardware_lab.inventory import Demand
from hardware_lab.jobs import MOST_PRIORITY, Job, JobOptions
from hardware_lab.lab import Lab, open_lab
from hardware_lab.locks import Lock
from hardware_lab.store import AGEING_S, Store

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"
LOCK = Lock(-1, "here:1:1")
BOARD = Demand("b0")


@pytest.fixture
def store(place: str) -> Lab:
    return open_lab(place)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """The clock of SQLite labs, to be set by the test."""
    clock = SimpleNamespace(now=1e9)
    monkeypatch.setattr(database, "time", SimpleNamespace(time=lambda: clock.now))
    return clock


def submit(store: Lab, demand: Demand = BOARD, **options: Any) -> Job:
    return store.submit(INT8, demand, JobOptions(repetitions=1, warmup=0, **options))


def claim(store: Lab, demand: Demand = BOARD, board: str = "b0", runner: str = "r") -> Job:
    job = store.claim(demand, board, f"on-{board}", LOCK, runner)
    assert job is not None
    return job


def test_priority_goes_before_age(store: Lab) -> None:
    jobs = [submit(store, priority=priority) for priority in (0, -1, 2, 0, 2)]
    order = []
    for _ in jobs:
        order.append(claim(store))
        store.finish(order[-1], measurement(id=order[-1].id))
    assert [job.id for job in order] == [jobs[i].id for i in (2, 4, 0, 3, 1)]
    assert [job.id for job in store.jobs()] == [job.id for job in jobs]


def test_no_job_starves(clock: SimpleNamespace, tmp_path: Path) -> None:
    # One board, and every minute somebody who is in more of a hurry.
    store = Store(tmp_path)
    patient = submit(store, priority=0)
    overtaken = 0
    while overtaken < 1000:
        submit(store, priority=3)
        job = claim(store)
        if job.id == patient.id:
            break
        store.cancel([job.id])
        overtaken += 1
        clock.now += 60
    assert 60 * overtaken == pytest.approx(3 * AGEING_S, abs=60)


def test_the_queue_names_demands_in_order(store: Lab) -> None:
    any_tpu, pair = Demand(None, {"edgetpu": 1}), Demand(None, {"edgetpu": 2})
    submit(store, pair), submit(store), submit(store, any_tpu, priority=1), submit(store, pair)
    assert [demand for demand, _ in store.queue()] == [any_tpu, pair, BOARD]
    assert claim(store, pair, "b1").board == "b1"
    assert [demand for demand, _ in store.queue()] == [any_tpu, BOARD, pair]
    assert store.claim(Demand("b2"), "b2", "on-b2", LOCK, "r") is None


def test_a_board_is_leased_once(store: Lab) -> None:
    submit(store), submit(store), submit(store)
    job = claim(store)
    assert store.claim(BOARD, "b0", "on-b0", LOCK, "r2") is None
    # An answer got lost, and the runner asks again.
    assert claim(store) == job
    # By another name for what it works on, or by one board's name for two things.
    assert store.claim(BOARD, "b9", "on-b0", LOCK, "r2") is None
    assert store.claim(BOARD, "b0", "on-b9", LOCK, "r2") is None
    store.finish(job, measurement(id=job.id))
    assert claim(store, runner="r2").attempt == 1


def test_heartbeats_renew_what_a_runner_still_has(store: Lab) -> None:
    submit(store), submit(store, Demand("b1")), submit(store, Demand("b2"))
    one, two = claim(store), claim(store, Demand("b1"), "b1")
    other = claim(store, Demand("b2"), "b2", runner="r2")
    before = {lease.job: lease for lease in store.leases()}
    assert store.beat("r") == {(one.id, 1), (two.id, 1)}
    assert {lease.job: lease.beat - before[lease.job].beat for lease in store.leases()} == {
        one.id: 1,
        two.id: 1,
        other.id: 0,
    }
    store.cancel([two.id])
    assert store.beat("r") == {(one.id, 1)}
    # What has beaten since it was seen is not ended; what has not, is.
    assert not store.expire(before[one.id])
    assert store.expire(before[other.id])
    assert store.job(other.id).state == "queued"
    assert store.beat("r2") == set()


def test_a_stale_result_is_refused(store: Lab) -> None:
    job = submit(store)
    stale = claim(store, runner="first")
    assert store.expire(store.leases()[0])
    with pytest.raises(DeviceError, match="is refused"):
        store.finish(stale, measurement(id=job.id))
    current = claim(store, runner="second")
    assert (current.id, current.attempt) == (job.id, stale.attempt + 1)
    for late in (
        lambda: store.finish(stale, measurement(id=job.id)),
        lambda: store.fail(stale, DeviceError("late")),
    ):
        with pytest.raises(DeviceError, match="is refused"):
            late()
    assert store.job(job.id) == current
    store.finish(current, measurement(id=job.id, model="current"))
    store.finish(current, measurement(id=job.id, model="current"))  # its answer got lost
    with pytest.raises(DeviceError, match="is refused"):
        store.finish(current, measurement(id=job.id))
    assert store.measurement(job.id).model == "current"


def test_a_job_that_loses_its_runners_is_given_up(store: Lab) -> None:
    job = submit(store)
    for _ in range(job.max_attempts):
        claim(store)
        assert store.expire(store.leases()[0])
    found = store.job(job.id)
    assert (found.state, found.error) == ("failed", "its runner ended 3 times while it ran")
    assert store.queue() == []


def test_a_deadline(store: Lab) -> None:
    begun, late, never = (submit(store, deadline_s=s) for s in (1.5, 1.5, 3600))
    assert claim(store).id == begun.id
    time.sleep(1.55)
    assert store.queue()[0][0] == BOARD
    states = {job.id: (job.state, job.error) for job in store.jobs()}
    assert states == {
        begun.id: ("running", None),
        late.id: ("failed", "not begun by its deadline"),
        never.id: ("queued", None),
    }
    assert late.deadline_at is not None and late.deadline_at > late.submitted_at
    with pytest.raises(DeviceError, match="not begun by its deadline"):
        store.job(late.id).raise_error()
    # An attempt after the deadline is none either.
    store.fail(store.jobs(state="running")[0], DeviceError("loose cable", retryable=True))
    assert store.job(begun.id).error == "loose cable; not begun by its deadline"


def test_a_deadline_that_nobody_swept(clock: SimpleNamespace, tmp_path: Path) -> None:
    store = Store(tmp_path)
    submit(store, deadline_s=60)
    clock.now += 61
    assert store.claim(BOARD, "b0", "on-b0", LOCK, "r") is None


def test_groups_are_cancelled_together(store: Lab) -> None:
    jobs = [submit(store, group=group) for group in ("nightly", None, "nightly", "other")]
    running = claim(store)
    assert running.id == jobs[0].id
    assert [job.id for job in store.cancel(group="nightly")] == [jobs[0].id, jobs[2].id]
    assert [job.state for job in store.jobs()] == ["cancelled", "queued", "cancelled", "queued"]
    assert store.jobs(group="nightly")[0].error == "cancelled"
    assert store.cancel(group="nightly") == []
    with pytest.raises(DeviceError, match="is refused"):
        store.finish(running, measurement(id=running.id))
    assert [job.id for job in store.cancel([jobs[1].id], reason="why")] == [jobs[1].id]


def test_what_cannot_be_submitted(store: Lab, tmp_path: Path) -> None:
    for options, said in [
        ({"priority": MOST_PRIORITY + 1}, "priority is 11; it must be at most 10"),
        ({"priority": -11}, "at least -10"),
        ({"deadline_s": 0}, "deadline_s is 0; it must be above 0"),
        ({"deadline_s": float("nan")}, "deadline_s is nan; it must be above 0"),
        ({"deadline_s": 1e12}, "at most"),
        ({"seconds": 0.0}, "seconds is 0.0; it must be above 0"),
        ({"max_attempts": 0}, "max_attempts is 0"),
    ]:
        with pytest.raises(UserError, match=said):
            submit(store, **options)
    assert store.jobs() == []


def test_many_open_a_new_lab_at_once(where: str) -> None:
    stores: list[Store] = []
    threads = [Thread(target=lambda: stores.append(Store(where))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = {submit(store).id for store in stores}
    assert len(ids) == 6
    assert {job.id for job in stores[0].jobs()} == ids


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "DROP TABLE lab",
            "is of version 1, and this Coralline reads version [0-9]+; move it aside",
        ),
        ("UPDATE lab SET version = 99", "is of version 99"),
    ],
)
def test_a_lab_of_another_version(where: str, change: str, said: str) -> None:
    store = Store(where)
    submit(store)
    with store._database._engine.begin() as connection:
        connection.execute(text(change))
    with pytest.raises(UserError, match=said):
        Store(where)


def test_where_a_lab_can_be() -> None:
    for url, said in [
        ("mysql://lab@db/lab", "a lab in 'mysql' is not known"),
        ("://", "is not a database URL"),
    ]:
        with pytest.raises(UserError, match=said):
            Store(url)


def test_labels(store: Lab) -> None:
    night = {"nightly": "2026-11-21", "commit": "e3edc4a"}
    found = submit(store, labels=night)
    submit(store, labels={"nightly": "2026-11-20"})
    submit(store)
    assert found.labels == night
    assert store.jobs(labels={"nightly": "2026-11-21"}) == [found]
    assert len(store.jobs(labels={})) == 3
    assert store.jobs(labels={"it's": "\"odd'"}) == []
