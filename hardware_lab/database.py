"""The lab's database: its tables, and transactions on an SQLite file or a PostgreSQL server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    cast,
    create_engine,
    event,
    func,
    insert,
    inspect,
    literal,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.sql.elements import ColumnElement

from coralline.errors import DeviceError, UserError
from coralline.files import make_folder
from coralline.home import home_folder
from hardware_lab.locks import Locks

VERSION = 5
"""Of the tables."""
FILE = "lab.sqlite"
BUSY_S = 30.0
"""How long to wait for an SQLite file that another process writes."""
ANSWER_S = 10
"""How long to wait for a PostgreSQL server."""
State = Literal["queued", "running", "done", "invalid", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)

HealthState = Literal["good", "unknown", "looping", "bad", "maintenance", "retired"]
HEALTHS: tuple[HealthState, ...] = get_args(HealthState)

Role = Literal["submit", "run", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

_metadata = MetaData()
_schema = Table("lab", _metadata, Column("version", Integer, primary_key=True))
demands = Table("demands", _metadata, Column("demand", Text, primary_key=True))
_queued = text("state = 'queued'")
_running = text("state = 'running'")
jobs = Table(
    "jobs",
    _metadata,
    Column("number", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("demand", ForeignKey("demands.demand"), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("due", Double, nullable=False),
    Column("deadline", Double),
    Column("batch", Text),
    Column("labels", JSON, nullable=False),
    Column("path", Text, nullable=False),
    Column("artifact", Text, nullable=False),
    Column("repetitions", Integer, nullable=False),
    Column("warmup", Integer, nullable=False),
    Column("seconds", Double),
    Column("against", Text),
    Column("against_artifact", Text),
    Column("allow_fallback", Boolean, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("state", Text, CheckConstraint(f"state IN {STATES}"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("beat", Integer, nullable=False),
    Column("board", Text),
    Column("resource", Text),
    Column("lock", Text),
    Column("runner", Text),
    Column("submitted", Double, nullable=False),
    Column("started", Double),
    Column("finished", Double),
    Column("error", Text),
    Column("error_is_users", Boolean, nullable=False),
    Column("done", Integer),
    Column("total", Integer),
    Index("next_job", "demand", "due", "number", sqlite_where=_queued, postgresql_where=_queued),
    Index("next_deadline", "deadline", sqlite_where=_queued, postgresql_where=_queued),
    Index("batches", "batch"),
    *(
        Index(
            f"one_running_job_a_{thing}",
            thing,
            unique=True,
            sqlite_where=_running,
            postgresql_where=_running,
        )
        for thing in ("board", "resource")
    ),
)
measurements = Table(
    "measurements",
    _metadata,
    Column("job", ForeignKey("jobs.number"), primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("measurement", Text, nullable=False),
    Column("not_stored", Text),
)
files = Table(
    "files",
    _metadata,
    Column("job", ForeignKey("jobs.number"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("ref", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
)
health = Table(
    "health",
    _metadata,
    Column("board", Text, primary_key=True),
    Column("state", Text, CheckConstraint(f"state IN {HEALTHS}"), nullable=False),
    Column("cause", Text, nullable=False),
    Column("since", Double, nullable=False),
    Column("strikes", Integer, nullable=False),
    Column("checked", Double, nullable=False),
    Column("again", Double, nullable=False),
)
health_log = Table(
    "health_log",
    _metadata,
    Column("number", Integer, primary_key=True),
    Column("board", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("step", Text),
    Column("cause", Text, nullable=False),
    Column("at", Double, nullable=False),
    Index("steps_of_a_board", "board", "step", "at"),
)
boards = Table(
    "boards",
    _metadata,
    Column("name", Text, primary_key=True),
    Column("host", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("options", JSON, nullable=False),
    Column("runner", Text, nullable=False),
    Column("seen", Double, nullable=False),
)
tokens = Table(
    "tokens",
    _metadata,
    Column("name", Text, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("role", Text, CheckConstraint(f"role IN {ROLES}"), nullable=False),
    Column("digest", Text, nullable=False),
    Column("made", Double, nullable=False),
    Column("expires", Double),
)


class FullError(UserError):
    """The database can be read, but not written: its disk is full, or its files are not ours."""


class Database:
    """Tables, and who may write them when.

    Args:
        where: A folder, made when absent, or the URL of a PostgreSQL database.
        connections: To a PostgreSQL server, at once; who wants one more waits.

    Attributes:
        where: For people.
        folder: Of this machine, for what is not in the tables.
        locks: Of this machine.

    Raises:
        UserError: The folder cannot be written, or holds something else.
        DeviceError: The server does not answer.
    """

    def __init__(self, where: Path | str, connections: int = 2) -> None:
        if "://" in str(where):
            url = _postgresql_url(str(where))
            self.where = url.render_as_string(hide_password=True)
            self.folder = make_folder(home_folder() / "lab")
            self._engine = _postgresql(url, connections)
        else:
            self.folder = make_folder(Path(where))
            self.where = str(self.folder / FILE)
            self._engine = _sqlite(self.folder / FILE)
        self.locks = Locks(self.folder / "locks")
        self.is_sqlite = self._engine.dialect.name == "sqlite"
        self._make_tables()

    def now(self) -> ColumnElement[float]:
        """Seconds since 1970, of the one clock that all who use the database share."""
        if self.is_sqlite:
            return literal(time.time(), Double)
        return cast(func.extract("epoch", func.statement_timestamp()), Double)

    def insert(self, table: Table) -> Any:
        """An INSERT that may say what to do about a row that is there."""
        return (sqlite if self.is_sqlite else postgresql).insert(table)

    def _make_tables(self) -> None:
        # Two that open a new lab at once must not both make its tables.
        with self.locks.hold("tables", wait=True), self.write() as connection:
            if not self.is_sqlite:
                connection.execute(select(func.pg_advisory_xact_lock(0xC0A11)))
            tables = inspect(connection).get_table_names()
            if _schema.name not in tables and jobs.name not in tables:
                _metadata.create_all(connection)
                connection.execute(insert(_schema).values(version=VERSION))
            version = 1  # which did not say so
            if _schema.name in tables or jobs.name not in tables:
                version = connection.execute(select(_schema.c.version)).scalar_one()
        if version != VERSION:
            raise UserError(
                f"{self.where}: is of version {version}, and this Coralline reads version "
                f"{VERSION}; move it aside to keep it, or give another place as --lab"
            )

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with self._speaking(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        engine = self._engine.execution_options(writes=True)
        # Many who wait for SQLite's own lock try again and again, and the unlucky one for ever.
        turn = self.locks.hold("database", wait=True) if self.is_sqlite else nullcontext()
        with turn, self._speaking(), engine.begin() as connection:
            yield connection

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except PoolTimeout as error:
            raise DeviceError(f"{self.where}: does not answer ({error})", retryable=True) from None
        except DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            if self.is_sqlite:
                gone = "locked" in reason  # by another, for more than BUSY_S
            else:
                gone = isinstance(error, OperationalError | InterfaceError)
            if gone:
                raise DeviceError(
                    f"{self.where}: does not answer ({reason})", retryable=True
                ) from None
            raise FullError(
                f"{self.where}: cannot be used ({reason}); what it holds is untouched: make "
                "room or give another place as --lab, then run again"
            ) from None


def _sqlite(file: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{file.resolve()}",
        connect_args={"timeout": BUSY_S, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        # Readers and a writer do not wait for each other.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # A transaction that reads before it writes would else fail, and not wait, beside another.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql_url(where: str) -> URL:
    try:
        url = make_url(where)
    except ArgumentError:
        raise UserError(f"{where!r} is not a database URL") from None
    if url.get_backend_name() != "postgresql":
        raise UserError(
            f"a lab in {url.get_backend_name()!r} is not known; give a folder, or "
            "postgresql://user@host/database"
        )
    return url.set(drivername="postgresql+psycopg")


def _postgresql(url: URL, connections: int) -> Engine:
    # A server that is gone must be noticed long before HOLD_S.
    patience = {
        "connect_timeout": ANSWER_S,
        "keepalives_idle": ANSWER_S,
        "tcp_user_timeout": 1000 * ANSWER_S,
        "options": f"-c statement_timeout={1000 * ANSWER_S}",
    }
    try:
        return create_engine(
            url, connect_args=patience, pool_pre_ping=True, pool_size=connections, max_overflow=0
        )
    except ModuleNotFoundError as error:
        raise UserError(f"a lab in PostgreSQL needs {error.name}; install coralline[lab]") from None


def iso(seconds: float | None) -> str | None:
    """ISO 8601, UTC, of seconds since 1970."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
