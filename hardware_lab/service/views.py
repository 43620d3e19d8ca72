"""What the pages say of the lab as it is now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from coralline.report.page import number
from hardware_lab.announcements import Announced
from hardware_lab.database import STATES
from hardware_lab.health import Health
from hardware_lab.jobs import Job
from hardware_lab.service.results import text
from hardware_lab.store import Store

QUEUE_ROWS = 20
RECENT_ROWS = 12
PAGE_ROWS = 50
MOST_CARDS = 12
"""Of more boards than this, the idle ones are listed by name."""
UNSEEN_S = 300.0
"""A runner that has been silent for so long has probably ended."""
LIVE_S, IDLE_S = 2, 10
"""How often a page is brought up to date while something happens, and else."""


@dataclass(frozen=True)
class Running:
    """A job at work.

    Attributes:
        share: In percent, of its inferences or of the time that it may take, whichever is more;
            None when its runner has not told.
        left_s: At the pace so far.
    """

    job: Job
    elapsed_s: float
    share: float | None = None
    left_s: float | None = None


@dataclass(frozen=True)
class BoardView:
    """A board, with what is known of it.

    Attributes:
        health: A state of `hardware_lab.health`; `unknown` for a board that was never checked.
        cause: Why.
        since: Of the state; this and `seen` in seconds since 1970.
        host, seen: Of the runner that announced it last.
    """

    name: str
    health: str = "unknown"
    cause: str = "never checked"
    since: float | None = None
    kind: str = ""
    tags: Mapping[str, int] | None = None
    host: str = ""
    seen: float | None = None
    running: Running | None = None
    unseen: bool = False

    @property
    def simulated(self) -> bool:
        """Whether its numbers come from a device model."""
        return self.kind.endswith("-sim")

    @property
    def needs_attention(self) -> bool:
        """Whether a person should look at it."""
        return self.unseen or self.health in ("looping", "bad")


def boards(store: Store) -> list[BoardView]:
    """Those that runners have announced, or the lab has used; by name."""
    now = store.now()
    found = {name: _with_health(BoardView(name), of) for name, of in store.health.known().items()}
    for announced in store.boards.known():
        name = announced.board.name
        found[name] = _announced(found.get(name, BoardView(name)), announced, now)
    for job in store.jobs(state="running"):
        if job.board is not None:
            board = found.get(job.board, BoardView(job.board))
            found[job.board] = replace(board, running=running(job, now))
    return sorted(found.values(), key=lambda board: board.name)


def _with_health(board: BoardView, health: Health) -> BoardView:
    return replace(board, health=health.state, cause=health.cause, since=health.since)


def _announced(board: BoardView, announced: Announced, now: float) -> BoardView:
    if board.seen is not None and board.seen > announced.seen:
        return board
    return replace(
        board,
        kind=announced.board.kind,
        tags=announced.board.tags,
        host=announced.host,
        seen=announced.seen,
        unseen=now - announced.seen > UNSEEN_S,
    )


def running(job: Job, now: float) -> Running:
    """How far a running job is."""
    elapsed_s = max(0.0, now - (seconds(job.started_at) or now))
    if job.progress is None:
        return Running(job, elapsed_s)
    done, total = job.progress
    share = done / max(total, 1)
    left_s = elapsed_s * (1 - share) / share if share else None
    if job.seconds is not None:
        # Of each of two modes, of each of its models; samples may end it sooner.
        limit_s = job.seconds * (2 if job.against is None else 4)
        share = max(share, min(elapsed_s / limit_s, 0.99))
        left_s = min(limit_s if left_s is None else left_s, max(limit_s - elapsed_s, 0.0))
    return Running(job, elapsed_s, 100 * share, left_s)


def overview(store: Store) -> dict[str, Any]:
    """What `overview.html.j2` shows."""
    all_boards = boards(store)
    known = store.counts()
    counts = {state: known.get(state, 0) for state in STATES}
    attention = [board for board in all_boards if board.needs_attention]
    rest = [board for board in all_boards if not board.needs_attention]
    return {
        "counts": counts,
        "attention": attention,
        "working": [board for board in rest if board.running],
        "idle": [board for board in rest if not board.running],
        "few": len(all_boards) <= MOST_CARDS,
        "queue": by_ids(store, store.glance.queued(QUEUE_ROWS)),
        "recent": by_ids(store, store.glance.ended(RECENT_ROWS)),
        "refresh_s": LIVE_S if counts["running"] else IDLE_S,
    }


def by_ids(store: Store, ids: Sequence[str]) -> list[Job]:
    """Jobs in the order of their ids."""
    found = {job.id: job for job in store.jobs(ids)}
    return [found[job_id] for job_id in ids if job_id in found]


def board(store: Store, name: str) -> dict[str, Any] | None:
    """What `board.html.j2` shows; None when nobody knows the board."""
    shown = next((board for board in boards(store) if board.name == name), None)
    jobs = by_ids(store, store.glance.chosen(board=name, limit=QUEUE_ROWS))
    if shown is None and not jobs:
        return None
    shown = shown or BoardView(name)
    announced = [one for one in store.boards.known() if one.board.name == name]
    return {
        "board": shown,
        "jobs": jobs,
        "log": store.health.log(name)[::-1],
        "announced": [_facts_of(one) for one in announced],
        "refresh_s": LIVE_S if shown.running else IDLE_S,
    }


def _facts_of(announced: Announced) -> list[tuple[str, str]]:
    one = announced.board
    known = [
        ("kind", one.kind),
        ("host", announced.host),
        ("runner", announced.runner),
        ("works on", one.resource),
    ]
    return known + [(key, text(value)) for key, value in one.options.items()]


def job_facts(job: Job) -> list[tuple[str, str]]:
    """What was asked for, and what became of it."""
    asked = f"{job.repetitions:,} in each mode, after {job.warmup:,} to warm up"
    if job.seconds is not None:
        asked += f"; at most {number(job.seconds)} s each"
    found = [
        ("model", job.path),
        ("against", job.against),
        ("samples", asked),
        ("asks for", str(job.demand)),
        ("priority", str(job.priority)),
        ("another processor", "accepted" if job.allow_fallback else "makes it invalid"),
        ("submitted", shown(job.submitted_at)),
        ("to begin by", shown(job.deadline_at)),
        ("started", shown(job.started_at)),
        ("ended", shown(job.finished_at)),
        ("runner", job.runner),
    ]
    return [(name, value) for name, value in found if value]


def model_of(job: Job) -> str:
    """The name of a job's model for people."""
    return job.labels.get("model") or model(job.path)


def model(path: str) -> str:
    """The name of a file or folder with a model."""
    return Path(path).name


def shown(iso: str | None) -> str | None:
    """A time to the second, UTC."""
    return iso and iso[:19].replace("T", " ") + " UTC"


def seconds(iso: str | None) -> float | None:
    """Since 1970, of ISO 8601."""
    return None if iso is None else datetime.fromisoformat(iso).timestamp()


def span(seconds: float) -> str:
    """A length of time in its largest unit, or two."""
    whole = max(0, round(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{round(whole / size)} {unit}"
    return f"{whole} s"


def ago(at: float, now: float) -> str:
    """When, from now."""
    return f"{span(now - at)} ago" if now >= at else f"in {span(at - now)}"
