"""The client of a service: answers that get lost, a service that is gone, and what errors mean."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from cutting_proxy import CuttingProxy
from scripted_board import measurement, notes, scripted_lab
from service_server import serving
from waiting import wait_for

from coralline.errors import DeviceError, UserError
from hardware_lab import database
from hardware_lab.artifacts import File, Files
from hardware_lab.compare import Comparison
from hardware_lab.inventory import Demand
from hardware_lab.jobs import JobOptions
from hardware_lab.lab import Lab, open_lab
from hardware_lab.locks import Lock
from hardware_lab.runner import run_jobs
from hardware_lab.service import transport
from hardware_lab.service.app import Settings
from hardware_lab.service.transport import CA, TOKEN, TOKEN_FILE
from hardware_lab.store import Store

INT8 = Path(__file__).parents[2] / "data" / "small_int8.tflite"
LOCK = Lock(-1, "here:1:1")
BOARD = Demand("b0")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(transport, "PAUSE_S", 0.01)
    monkeypatch.setattr(transport, "MOST_PAUSE_S", 0.05)
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path / "home"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "lab")


@pytest.fixture
def proxy(store: Store) -> Iterator[CuttingProxy]:
    with serving(store) as url, CuttingProxy(httpx.URL(url).port or 0) as proxy:
        yield proxy


@pytest.fixture
def lab(proxy: CuttingProxy) -> Lab:
    return open_lab(f"http://127.0.0.1:{proxy.port}")


class Lossy:
    """Loses the next answer of a service, and no other."""

    def __init__(self, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch) -> None:
        self._proxy = proxy
        real = httpx.Client.request
        lossy = self
        self.losing = False

        def request(client: httpx.Client, *arguments: Any, **options: Any) -> httpx.Response:
            if not lossy.losing:
                return real(client, *arguments, **options)
            lossy.losing = False
            real(client, "GET", "/queue")  # so that there is a connection
            proxy.answers_left = 0  # the request arrives, and its answer does not
            try:
                return real(client, *arguments, **options)
            finally:
                proxy.answers_left = None

        monkeypatch.setattr(httpx.Client, "request", request)


@pytest.fixture
def lossy(proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch) -> Lossy:
    return Lossy(proxy, monkeypatch)


def submit(lab: Lab, **options: Any) -> Any:
    return lab.submit(INT8, BOARD, JobOptions(repetitions=1, warmup=0, **options))


def claim(lab: Lab) -> Any:
    return lab.claim(BOARD, "b0", "on-b0", LOCK, "r")


def test_every_answer_may_get_lost_once(lab: Lab, lossy: Lossy, store: Store) -> None:
    lossy.losing = True
    job = submit(lab)
    assert [one.id for one in store.jobs()] == [job.id]
    lossy.losing = True
    claimed = claim(lab)
    assert (claimed.id, claimed.attempt) == (job.id, 1)
    lossy.losing = True
    assert lab.beat("r", {job.id: (3, 10)}) == {(job.id, 1)}
    assert store.job(job.id).progress == (3, 10)
    lossy.losing = True
    lab.fail(claimed, DeviceError("loose cable", retryable=True))
    lossy.losing = True
    claimed = claim(lab)
    assert claimed.attempt == 2
    lossy.losing = True
    lab.give_back(claimed, DeviceError("unfit"))
    assert store.job(job.id).max_attempts == job.max_attempts + 1
    claimed = claim(lab)
    lossy.losing = True
    lab.finish(claimed, measurement(id=job.id))
    assert store.job(job.id).state == "done"
    other = submit(lab)
    lossy.losing = True
    lab.cancel([other.id])
    assert store.job(other.id).state == "cancelled"
    assert not lossy.losing


def test_a_strike_is_never_counted_twice(lab: Lab, lossy: Lossy, store: Store) -> None:
    lossy.losing = True
    with pytest.raises(DeviceError, match="does not answer") as caught:
        lab.health.failed("b0", "no answer")
    assert caught.value.retryable
    assert store.health.known()["b0"].strikes == 1


def test_a_key_is_of_one_submission(proxy: CuttingProxy, store: Store) -> None:
    url = f"http://127.0.0.1:{proxy.port}/api/v1"
    ref = store.artifacts.put(INT8)
    body = {
        "model": {"name": "m", "ref": ref},
        "demand": {"board": "b0"},
        "repetitions": 1,
        "warmup": 0,
    }
    headers = {"Idempotency-Key": "12345678"}
    first = httpx.post(f"{url}/jobs", json=body, headers=headers).json()
    assert httpx.post(f"{url}/jobs", json=body, headers=headers).json() == first
    other = {**body, "demand": {"board": "b1"}}
    refused = httpx.post(f"{url}/jobs", json=other, headers=headers)
    assert refused.status_code == 400 and "another job already" in refused.json()["error"]
    assert httpx.post(f"{url}/jobs", json=body).json()["id"] != first["id"]


def test_a_service_that_is_gone_and_comes_back(
    lab: Lab, proxy: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hardware_lab.runner.POLL_S", (0.02, 0.1))
    jobs = [submit(lab), submit(lab)]
    thread = Thread(target=run_jobs, args=(lab, scripted_lab(tmp_path, 1, seconds=0.3)))
    thread.start()
    wait_for(lambda: notes(tmp_path))
    proxy.left = 0
    with pytest.raises(DeviceError, match="does not answer") as caught:
        lab.jobs()
    assert caught.value.retryable
    wait_for(lambda: len(notes(tmp_path)) == 2)  # the board has ended, and nobody can be told
    proxy.left = None
    thread.join(60)
    assert [(job.state, job.attempt) for job in lab.jobs()] == [("done", 1)] * 2
    assert [note[:2] for note in notes(tmp_path)] == [["begin", "b0"], ["end", "b0"]] * len(jobs)


def test_a_service_that_is_gone_for_good(tmp_path: Path) -> None:
    lab = open_lab("http://127.0.0.1:1")
    with pytest.raises(DeviceError, match=r"127\.0\.0\.1:1: does not answer") as caught:
        lab.jobs()
    assert caught.value.retryable
    with pytest.raises(DeviceError, match="does not answer"):
        run_jobs(lab, scripted_lab(tmp_path, 1))


def test_the_disk_of_the_service_is_full(
    lab: Lab, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(lab)
    claimed = claim(lab)

    def full(*_: object) -> None:
        raise database.FullError("lab.sqlite: cannot be used (disk I/O error)")

    monkeypatch.setattr(store, "finish", full)
    with pytest.raises(DeviceError, match="disk I/O error") as caught:
        lab.finish(claimed, measurement(id=job.id))
    assert caught.value.retryable  # the runner keeps the result until there is room
    monkeypatch.undo()
    lab.finish(claimed, measurement(id=job.id))


def test_a_result_that_is_refused(lab: Lab, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner goes on with other jobs, as it does when a database refuses."""
    job = submit(lab)
    claimed = claim(lab)
    for result in (
        measurement(id=job.id, latency_ms=(1.0, float("nan"))),
        measurement(id=job.id, wall_s=0.0),
    ):
        for where in (lab, store):
            with pytest.raises(DeviceError, match=f"job {job.id}: .*result") as caught:
                where.finish(claimed, result)
            assert not caught.value.retryable
    monkeypatch.setattr("hardware_lab.service.running.ending.route_class.most_bytes", 100)
    with pytest.raises(DeviceError, match="larger than 100 bytes"):
        lab.finish(claimed, measurement(id=job.id))
    assert store.job(job.id).state == "running"


def test_what_a_job_comes_with(lab: Lab, store: Store) -> None:
    ref = lab.artifacts.put(BytesIO(b"raw"))
    files = Files({"raw/samples.parquet": File(ref, 3)}, "some were lost")
    m = measurement()
    both = Comparison(m, m, 2, {})
    results = (m, both)
    for result in results:
        job = submit(lab, labels={"commit": "ab"}, group="g")
        lab.finish(claim(lab), result, files)
        assert lab.files(job.id) == store.files(job.id) == files
        assert lab.result(job.id) == store.result(job.id) == result
        assert lab.job(job.id) == store.job(job.id)
    with pytest.raises(UserError, match="is a comparison"):
        lab.measurement(job.id)
    assert lab.label(job.id, {"accepted": "x" * 300}).labels["commit"] == "ab"
    queued = submit(lab)
    with pytest.raises(UserError, match="is queued and has no measurement"):
        lab.result(queued.id)
    with pytest.raises(UserError, match="is not in"):
        lab.result("none")


def test_jobs_come_page_by_page(lab: Lab, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardware_lab.service.client.PAGE", 3)
    monkeypatch.setattr("hardware_lab.service.client.IDS", 2)
    made = [submit(lab).id for _ in range(7)]
    assert [job.id for job in lab.jobs()] == made
    assert [job.id for job in lab.jobs(newest=True)] == made[::-1]
    assert [job.id for job in lab.jobs(limit=4)] == made[:4]
    assert [job.id for job in lab.jobs(newest=True, limit=2, after=made[5])] == made[4:2:-1]
    assert {job.id for job in lab.jobs(made[1:6])} == set(made[1:6])
    assert lab.jobs([]) == store.jobs([]) == []


def test_boards_are_announced(lab: Lab, store: Store, tmp_path: Path) -> None:
    run_jobs(lab, scripted_lab(tmp_path, 2))
    (first, second), (same, _) = lab.boards.known(), store.boards.known()
    assert (first.board.name, second.board.tags) == ("b0", {"edgetpu": 2})
    assert first.board == same.board and first.seen == pytest.approx(same.seen, abs=0.01)
    # Another runner of this host says the same later.
    run_jobs(lab, scripted_lab(tmp_path, 1))
    again, _ = lab.boards.known()
    assert again.seen >= first.seen and again.runner != first.runner


def test_a_token_from_a_file(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(store.tokens.add("ci", "submit") + "\n")
    with serving(store, Settings()) as url:
        with pytest.raises(UserError, match="no valid token"):
            open_lab(url).jobs()
        monkeypatch.setenv(TOKEN_FILE, str(file))
        lab = open_lab(url)
        assert submit(lab).state == "queued"
        with pytest.raises(UserError, match="has the role 'submit'; this needs admin or run"):
            claim(lab)
        monkeypatch.setenv(TOKEN, "clab_other_one")
        with pytest.raises(UserError, match="no valid token"):
            open_lab(url).jobs()
    monkeypatch.delenv(TOKEN)
    monkeypatch.setenv(TOKEN_FILE, str(tmp_path / "none"))
    with pytest.raises(UserError, match="no such file; give the path of a file with a token"):
        open_lab(url)


def test_places_that_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the address of a lab"):
        open_lab("http://[::1")
    monkeypatch.setenv(CA, str(tmp_path / "none.pem"))
    with pytest.raises(UserError, match="is not a file of certificates"):
        open_lab("https://127.0.0.1:1")
