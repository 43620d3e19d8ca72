"""The runner's folder: the models of its jobs, and the files of their results on their way."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from coralline.files import make_folder
from coralline.runtime.child import Stop
from coralline.runtime.measurement import Measurement
from hardware_lab.artifacts import Artifacts, File, Files
from hardware_lab.artifacts.cache import Cache
from hardware_lab.artifacts.download import on_disk
from hardware_lab.compare import Comparison, write_all_samples
from hardware_lab.jobs import Job
from hardware_lab.lab import Lab

SAMPLES = "samples.parquet"


@dataclass
class Work:
    """What one attempt of a job needs and makes.

    Attributes:
        job: As it was claimed.
        folder: Of this attempt alone.
        unsent: Whether its raw files are to stay here until the artifact store takes them.
    """

    job: Job
    folder: Path
    unsent: bool = False

    @property
    def raw(self) -> Path:
        """What is written here belongs to the result."""
        return self.folder / "raw"


class Workplace:
    """Files of a lab on this machine.

    Raises:
        UserError: The lab says not where its artifacts are, or they or the folder are not to be
            used.
        DeviceError: The artifact store does not answer.
    """

    def __init__(self, store: Lab) -> None:
        self._store = store
        self._artifacts: Artifacts = store.artifacts
        self._artifacts.size("sha256:" + "0" * 64)  # better refused now than in every job
        self._cache = Cache(store.folder / "models", self._artifacts)
        self._work = make_folder(store.folder / "work")

    @contextmanager
    def attempt(self, job: Job) -> Iterator[Work]:
        """A folder for an attempt; it goes when that has ended, unless its files are unsent."""
        work = Work(job, self._work / f"{job.id}.{job.attempt}")
        with ExitStack() as stack:
            with self._store.lock("work", wait=True), on_disk(work.folder):
                work.raw.mkdir(parents=True)
                stack.enter_context(_held(work.folder))
            try:
                yield work
            finally:
                if not work.unsent:
                    shutil.rmtree(work.folder, ignore_errors=True)

    def send_left(self) -> None:
        """Put what earlier attempts could not into the artifact store, and clear up after those
        whose runner was killed.

        Raises:
            CorallineError: As `keep`.
        """
        with on_disk(self._work):
            for folder in sorted(self._work.iterdir()):
                with ExitStack() as stack:
                    with self._store.lock("work", wait=True):
                        is_left = folder.exists() and stack.enter_context(_held(folder))
                    if is_left:
                        self._send(folder)

    def _send(self, folder: Path) -> None:
        job_id, _, attempt = folder.name.rpartition(".")
        found = self._store.jobs([job_id])
        if not found or (found[0].state == "running" and f"{found[0].attempt}" == attempt):
            return  # of another lab; or of a runner that is gone and not yet missed
        if self._store.files(job_id).not_stored is not None:
            self._store.attach(job_id, int(attempt), self._put(folder / "raw"))
        shutil.rmtree(folder, ignore_errors=True)

    def models(self, work: Work, *, limit_s: float, stop: Stop) -> tuple[Path, Path | None]:
        """The model of a job, and the one it is compared with.

        Raises:
            CorallineError: As `Cache.model`.
        """
        found: dict[str, Path] = {}
        for side, model in (("model", work.job.model), ("against", work.job.model_against)):
            if model is not None:
                with on_disk(into := work.folder / side):
                    into.mkdir()
                found[side] = self._cache.model(model, into, limit_s=limit_s, stop=stop)
        return found["model"], found.get("against")

    def keep(self, work: Work, result: Measurement | Comparison) -> Files:
        """Put the raw samples, and what the board has written, into the artifact store.

        It may be called again.

        Raises:
            DeviceError: The store does not answer, or has no room.
            UserError: It refuses, or this machine's disk is full.
        """
        write_all_samples(result, work.raw / SAMPLES)
        return self._put(work.raw)

    def _put(self, raw: Path) -> Files:
        kept = {}
        for path in sorted(raw.rglob("*")):
            if path.is_file():
                file = File(self._artifacts.put(path), path.stat().st_size)
                kept[path.relative_to(raw).as_posix()] = file
        return Files(kept)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a folder as long as this process lives at most; False when another holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = True
    except BlockingIOError:
        held = False
    try:
        yield held
    finally:
        os.close(descriptor)
