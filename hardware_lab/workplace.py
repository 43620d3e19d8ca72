"""The runner's folder: the models of its jobs, and the files of their results on their way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coralline.files import make_folder
from coralline.runtime.child import Stop
from coralline.runtime.measurement import Measurement
from hardware_lab.artifacts import Artifacts, File, Files, Model
from hardware_lab.artifacts.cache import Cache
from hardware_lab.artifacts.download import on_disk
from hardware_lab.compare import Comparison, write_all_samples
from hardware_lab.lab import Lab
from hardware_lab.store import Job

SAMPLES = "samples.parquet"


@dataclass(frozen=True)
class Work:
    """What one attempt of a job needs and makes.

    Attributes:
        job: As it was claimed.
        folder: Of this attempt alone.
    """

    job: Job
    folder: Path

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
        """A folder for an attempt, which goes when it has ended."""
        work = Work(job, self._work / f"{job.id}.{job.attempt}")
        with on_disk(work.folder):
            work.raw.mkdir(parents=True)
        try:
            yield work
        finally:
            shutil.rmtree(work.folder, ignore_errors=True)

    def models(self, work: Work, *, limit_s: float, stop: Stop) -> tuple[Path, Path | None]:
        """The model of a job, and the one it is compared with.

        Raises:
            CorallineError: As `Cache.model`.
        """
        job, found = work.job, []
        for side, name, ref in (
            ("model", job.path, job.artifact),
            ("against", job.against, job.against_artifact),
        ):
            if name is not None and ref is not None:
                with on_disk(into := work.folder / side):
                    into.mkdir()
                found.append(self._cache.model(Model(name, ref), into, limit_s=limit_s, stop=stop))
        return found[0], found[1] if len(found) > 1 else None

    def keep(self, work: Work, result: Measurement | Comparison) -> Files:
        """Put the raw samples, and what the board has written, into the artifact store.

        It may be called again.

        Raises:
            DeviceError: The store does not answer, or has no room.
            UserError: It refuses, or this machine's disk is full.
        """
        write_all_samples(result, work.raw / SAMPLES)
        kept = {}
        for path in sorted(work.raw.rglob("*")):
            if path.is_file():
                file = File(self._artifacts.put(path), path.stat().st_size)
                kept[path.relative_to(work.raw).as_posix()] = file
        return Files(kept)
