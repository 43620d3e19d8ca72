"""The runner: takes jobs from the store and has boards do them, side by side.

Several runners, on one host or on several, may share a lab: `hardware_lab.store` says how a board
is leased. What works on the processor of this machine works alone, since anything beside it
would show in what is measured.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Thread
from uuid import uuid4

from coralline.errors import CorallineError, DeviceError
from coralline.runtime.measurement import Measurement
from hardware_lab.announcements import ANNOUNCE_S, facts
from hardware_lab.artifacts import Files, RefusedError
from hardware_lab.artifacts.download import LIMIT_S, DiskError
from hardware_lab.boards import Board, Task, here
from hardware_lab.checks import UnfitError, check
from hardware_lab.compare import Comparison, compare
from hardware_lab.cooldown import Cooled, cool_down
from hardware_lab.health import Health, is_due, is_usable
from hardware_lab.inventory import Demand, Inventory
from hardware_lab.jobs import Job, Lease
from hardware_lab.lab import Lab
from hardware_lab.locks import Lock
from hardware_lab.store import BEAT_S, HOLD_S, LEASE_S
from hardware_lab.workplace import Work, Workplace

SEND_S = 60.0
"""How often to look for raw files that the artifact store did not take at first."""
POLL_S = (0.05, 1.0)
"""How often to look for jobs: right after something has happened, and when nothing does."""
PATIENCE_S = 300.0
"""How long to wait for a database or an artifact store that does not answer."""

Progress = Callable[[Job, int, int], None]
"""Called with the job, the inferences done and the inferences to do; from several threads."""

Outcome = Measurement | Comparison | CorallineError

log = logging.getLogger(__name__)


def run_jobs(
    store: Lab,
    inventory: Inventory,
    group: str | None = None,
    on_progress: Progress | None = None,
) -> list[Job]:
    """Run queued jobs until none is queued or running, here or in another runner.

    A job that fails is marked so; the others go on.

    Args:
        group: Only its jobs; None for all jobs that the inventory's boards may do.

    Returns:
        The jobs that this call ended, as they are now.

    Raises:
        UserError: The store, or a disk of this machine, cannot be written; its jobs will be found
            again.
        DeviceError: The database or the artifact store has not answered for PATIENCE_S; the same.
    """
    ended: list[str] = []
    Runner(store, inventory, group, on_progress, lambda job: ended.append(job.id)).run()
    return store.jobs(ended)


class SilentError(DeviceError):
    """The artifact store has not answered for so long that the runner gives up."""


@dataclass
class _Held:
    """A lease of this runner.

    Attributes:
        since: When the store had given it; on the clock of `_now_s`.
        renewed: When the last heartbeat that reached the store was sent.
        lost: Whether the store, or this runner itself, has ended it.
        progress: The inferences done and to do.
    """

    job: Job
    lock: Lock
    since: float
    renewed: float
    lost: bool = False
    progress: tuple[int, int] | None = None

    def over(self) -> bool:
        """Whether the board must be left."""
        return self.lost or _now_s() - self.renewed > HOLD_S


class Runner:
    """One runner of a lab.

    Args:
        group: Only its jobs.
        on_end: Called with each job that was worked on; from several threads.
    """

    def __init__(
        self,
        store: Lab,
        inventory: Inventory,
        group: str | None = None,
        on_progress: Progress | None = None,
        on_end: Callable[[Job], None] = lambda job: None,
    ) -> None:
        # Never used again: a lease without its runner is not renewed.
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._store = store
        self._workplace = Workplace(store)
        self._inventory = inventory
        self._resources = {board.resource for board in inventory.boards.values()}
        self._group = group
        self._on_progress = on_progress
        self._on_end = on_end
        self._alone = here("cpu")
        self._held: dict[str, _Held] = {}  # by resource
        self._work: dict[Future[None], str] = {}  # the resources
        self._seen: dict[tuple[str, int], tuple[int, float]] = {}
        self._health: Mapping[str, Health] = {}
        self._now = 0.0  # of the store's clock, when it was last looked at
        self._happened = Event()
        self._leaving = Event()
        self._patience_s = PATIENCE_S
        self._silent_since = math.inf  # the artifact store, unless it has just answered

    def run(self, until: Event | None = None) -> None:
        """Run jobs until none is left; or, when `until` is given, until it is set.

        The jobs that run by then are ended first. An exception, KeyboardInterrupt too, leaves the
        boards at once and queues their jobs again.
        """
        if until is not None:
            self._patience_s = math.inf
        over = Event()
        beating = Thread(target=self._beat, args=(over,), daemon=True)
        beating.start()
        with ThreadPoolExecutor(len(self._resources) + 1) as pool:
            try:
                self._take(pool, until)
            except BaseException:
                self._leaving.set()
                for held in list(self._held.values()):
                    held.lost = True
                raise
            finally:
                pool.shutdown()
                over.set()
                beating.join()

    def _take(self, pool: ThreadPoolExecutor, until: Event | None) -> None:
        pause = POLL_S[0]
        answered = _now_s()
        sending: Future[None] | None = None
        sent = -math.inf
        while True:
            if _now_s() - sent > SEND_S and (sending is None or sending.done()):
                if sending is not None:
                    sending.result()
                sending, sent = pool.submit(self._send_left), _now_s()
            for future in [future for future in self._work if future.done()]:
                del self._held[self._work.pop(future)]
                future.result()
            told = until is not None and until.is_set()
            begun, left = False, True
            try:
                begun, left = self._look(pool, draining=told)
                answered = _now_s()
            except DeviceError as error:
                if not error.retryable or _now_s() - answered > self._patience_s:
                    raise
                self._seen.clear()  # nobody listened, so silence proves nothing
                log.warning("%s", error)
            if not self._work and (told or (until is None and not left)):
                return
            pause = POLL_S[0] if begun else min(2 * pause, POLL_S[1])
            if self._happened.wait(pause):
                self._happened.clear()
                pause = POLL_S[0]

    def _look(self, pool: ThreadPoolExecutor, *, draining: bool) -> tuple[bool, bool]:
        """Begin what can begin. Returns whether anything did, and whether more is left."""
        view = self._store.look(self._group)
        self._health, self._now, queue = view.health, view.now, view.queue
        leases = self._end_abandoned(view.leases)
        if len(leases) < len(view.leases):
            queue = self._store.queue(self._group)
        taken = {lease.resource for lease in leases} | self._held.keys()
        begun = False
        while True:
            choice = None if draining else self._choose(queue, taken)
            if choice is None:
                break
            demand, board = choice
            taken.add(board.resource)
            begun |= self._begin(pool, demand, board)
            queue = self._store.queue(self._group)
        mine = [lease.demand for lease in leases if self._group in (None, lease.group)]
        waiting = any(
            self._may_become_usable(name)
            for demand, _ in queue
            for name in self._inventory.meeting(demand)
        )
        return begun, waiting or any(self._inventory.meeting(demand) for demand in mine)

    def _may_become_usable(self, board: str) -> bool:
        """Without a person."""
        return is_usable(self._health.get(board), math.inf)

    def _choose(
        self, queue: list[tuple[Demand, float]], taken: set[str]
    ) -> tuple[Demand, Board] | None:
        """The first demand that a free board meets."""
        if self._alone in self._held:
            return None
        for demand, _ in queue:
            for name in self._inventory.meeting(demand):
                board = self._inventory.board(name)
                state = self._health.get(name)
                if board.resource in taken or not is_usable(state, self._now):
                    continue
                if board.resource == self._alone and self._held:
                    return None  # its turn comes when the others have ended
                return demand, board
        return None

    def _begin(self, pool: ThreadPoolExecutor, demand: Demand, board: Board) -> bool:
        with ExitStack() as stack:
            lock = stack.enter_context(self._store.lock(board.resource))
            if lock is None:
                return False
            asked = _now_s()
            job = self._store.claim(
                demand, board.name, board.resource, lock, self.name, self._group
            )
            if job is None:
                return False
            held = _Held(job, lock, since=_now_s(), renewed=asked)
            self._held[board.resource] = held
            future = pool.submit(self._execute, board, held, stack.pop_all())
            self._work[future] = board.resource
            future.add_done_callback(lambda _: self._happened.set())
        log.info("job %s: attempt %d begins on %s", job.id, job.attempt, board.name)
        return True

    def _execute(self, board: Board, held: _Held, lock: ExitStack) -> None:
        with lock, self._workplace.attempt(held.job) as work:
            outcome = self._measure(board, held, work)
            files = None
            if not isinstance(outcome, CorallineError):
                files = self._keep(held, work, outcome)
            self._record(board, held.job, outcome, files)
        self._on_end(held.job)

    def _measure(self, board: Board, held: _Held, work: Work) -> Outcome:
        job = held.job
        progress = partial(self._note_progress, held)
        outcome: Outcome
        try:
            if is_due(self._health.get(board.name), self._now):
                self._check(board, held)
            path, against = self._models(held, work)
            task = Task(
                id=job.id,
                path=path,
                repetitions=job.repetitions,
                warmup=job.warmup,
                seconds=job.seconds,
                keep_open=(held.lock.descriptor,),
                scratch=work.raw,
                stop=held.over,
            )
            cooled = self._cool_down(board, held)
            if against is None:
                outcome = board.measure(task, progress)
            else:
                outcome = compare(board, task, against, progress)
            if cooled is not None:
                outcome = outcome.beside(cooldown=cooled.to_json())
        except (DiskError, RefusedError, SilentError):
            raise
        except CorallineError as error:
            outcome = error
        except Exception as error:
            log.exception("job %s", job.id)
            outcome = DeviceError(f"{board.name}: its driver failed ({error!r})")
        if held.over():
            return DeviceError(f"{board.name}: its runner had to leave it", retryable=True)
        return outcome

    def _check(self, board: Board, held: _Held) -> None:
        try:
            check(self._store, board, self._inventory.power.get(board.name), held.over)
        except DeviceError as error:  # the database's too: the job is not to blame
            raise UnfitError(f"{error}") from None

    def _cool_down(self, board: Board, held: _Held) -> Cooled | None:
        wanted = self._inventory.cooldown.get(board.name)
        if wanted is None:
            return None
        rested_s = 0.0
        # Of an attempt that lost its runner no end is known.
        if held.job.attempt == 1:
            with suppress(DeviceError):  # the database does not answer: it may have worked
                rested_s = self._store.rested_s(board.resource)
        return cool_down(board, wanted, rested_s, held.over)

    def _note_progress(self, held: _Held, done: int, total: int) -> None:
        held.progress = done, total  # the next heartbeat says it
        if self._on_progress is not None:
            self._on_progress(held.job, done, total)

    def _models(self, held: _Held, work: Work) -> tuple[Path, Path | None]:
        limit_s = min(LIMIT_S, self._patience_s)
        try:
            found = self._workplace.models(work, limit_s=limit_s, stop=held.over)
        except DeviceError as error:
            if not error.retryable:
                raise
            if held.over() or math.isinf(self._patience_s):
                raise UnfitError(f"{error}") from None
            raise SilentError(f"{error}") from None
        self._silent_since = math.inf
        return found

    def _keep(self, held: _Held, work: Work, result: Measurement | Comparison) -> Files:
        """Put the raw files where they belong; without them a result is still a result."""
        while True:
            try:
                files = self._workplace.keep(work, result)
                self._silent_since = math.inf
                return files
            except CorallineError as error:
                # All jobs together wait that long, and not each.
                self._silent_since = min(self._silent_since, _now_s())
                patient = _now_s() - self._silent_since < PATIENCE_S
                if getattr(error, "retryable", False) and patient and not held.over():
                    log.warning("%s", error)
                    if not self._leaving.wait(POLL_S[1]):
                        continue
                log.error("job %s: its raw files are not stored: %s", held.job.id, error)
                work.unsent = True
                return Files(not_stored=" ".join(str(error).split()))

    def _send_left(self) -> None:
        try:
            self._workplace.send_left()
        except CorallineError as error:
            log.warning("raw files that are not stored yet stay here: %s", error)

    def _record(self, board: Board, job: Job, outcome: Outcome, files: Files | None) -> None:
        asked = _now_s()
        while True:
            try:
                if not isinstance(outcome, CorallineError):
                    self._store.finish(job, outcome, files)
                elif isinstance(outcome, UnfitError):
                    self._store.give_back(job, outcome)
                else:
                    self._store.fail(job, outcome)
                    if isinstance(outcome, DeviceError):
                        self._store.health.distrust(board.name, " ".join(str(outcome).split()))
            except DeviceError as error:
                if error.retryable and _now_s() - asked < self._patience_s:
                    log.warning("%s", error)
                    if not self._leaving.wait(POLL_S[1]):
                        continue
                if error.retryable:
                    raise
                outcome = error  # it is refused
            if not isinstance(outcome, CorallineError):
                log.info("job %s: done", job.id)
            elif isinstance(outcome, UnfitError):
                # Its board is asked again after a pause, in which nothing else would be seen.
                log.warning("job %s waits: %s", job.id, outcome)
            else:
                log.info("job %s: %s", job.id, outcome)
            return

    def _end_abandoned(self, leases: list[Lease]) -> list[Lease]:
        """End the leases whose runners are gone, and return the others."""
        now = _now_s()
        seen: dict[tuple[str, int], tuple[int, float]] = {}
        kept = []
        for lease in leases:
            key = lease.job, lease.attempt
            beat, since = self._seen.get(key, (lease.beat, now))
            seen[key] = (lease.beat, since if beat == lease.beat else now)
            silent = now - seen[key][1] > LEASE_S
            if (silent or self._has_lock_of(lease)) and self._store.expire(lease):
                why = f"no heartbeat in {LEASE_S:g} s" if silent else "its runner has died"
                log.warning("job %s: its lease of %s is ended: %s", lease.job, lease.board, why)
            else:
                kept.append(lease)
        self._seen = seen
        return kept

    def _has_lock_of(self, lease: Lease) -> bool:
        if lease.resource not in self._resources or lease.resource in self._held:
            return False
        with self._store.lock(lease.resource) as lock:
            return lock is not None and lock.name == lease.lock

    def _beat(self, over: Event) -> None:
        announced = -math.inf
        while True:
            if _now_s() - announced > ANNOUNCE_S and self._announce():
                announced = _now_s()
            if over.wait(BEAT_S):
                return
            if not self._held:
                continue
            sent = _now_s()
            progress = {
                held.job.id: held.progress
                for held in list(self._held.values())
                if held.progress is not None
            }
            try:
                alive = self._store.beat(self.name, progress)
            except CorallineError as error:
                log.warning("%s", error)
                continue
            for held in list(self._held.values()):
                if (held.job.id, held.job.attempt) in alive:
                    held.renewed = sent
                elif held.since < sent:
                    held.lost = True

    def _announce(self) -> bool:
        try:
            self._store.boards.announce(socket.gethostname(), self.name, facts(self._inventory))
        except CorallineError as error:
            log.warning("%s", error)
            return False
        return True


def _now_s() -> float:
    """A clock that nobody sets, and that runs while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
