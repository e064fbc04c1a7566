"""The database file: opening, locking, pragmas, migrations.

One process holds the lock on the state directory and the only writing connection. Everybody else reads.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, StaticPool, create_engine, event
from sqlalchemy.exc import DatabaseError

from ckptwatch.errors import StateError

__all__ = ["Connection", "Database", "open_reading", "open_writing"]

FILE = "ckptwatch.db"
LOCK = "lock"


class Database:
    """Gives out connections. `read()` never blocks and never writes; `write()` is one IMMEDIATE transaction."""

    def __init__(self, engine: Engine, lock: int | None, path: Path) -> None:
        self._engine = engine
        self._path = path
        self._lock = lock

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Raises StateError when the database cannot be read."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except DatabaseError as error:
            raise StateError("read the database", str(error.orig), path=self._path,
                             hint="see `ckptwatch status`") from error

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Raises StateError when the disk is full or the database broken; then nothing of the block is recorded."""
        if self._lock is None:
            raise RuntimeError("opened for reading only")
        try:
            with self._engine.begin() as connection:
                yield connection
        except DatabaseError as error:
            raise StateError("write the database", str(error.orig), path=self._path,
                             hint="free space on its filesystem, or see `ckptwatch status`") from error

    def close(self) -> None:
        self._engine.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def open_writing(state_dir: Path) -> Database:
    """Take the lock, migrate to the newest schema, open for writing.

    Raises StateError: directory not writable, lock held by another process, database newer than this program.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(state_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError("use state directory", error.strerror or str(error), path=state_dir,
                         hint="set state_dir to a directory this user can write") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise StateError("take the lock of state directory", f"held by process {holder or 'unknown'}", path=state_dir,
                         hint="another ckptwatch daemon uses it; stop that one, or set another state_dir") from error
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        engine = _engine(state_dir / FILE, writing=True)
        _migrate(engine, state_dir / FILE)
    except OSError as error:
        os.close(lock)
        raise StateError("open the database", error.strerror or str(error), path=state_dir / FILE) from error
    except DatabaseError as error:
        os.close(lock)
        raise StateError(
            "open the database", str(error.orig), path=state_dir / FILE,
            hint="if it is damaged, move it away: the next start finds the checkpoints again, scores and pins are lost",
        ) from error
    except BaseException:
        os.close(lock)
        raise
    return Database(engine, lock, state_dir / FILE)


def open_reading(state_dir: Path) -> Database | None:
    """The database for reading, whether a daemon runs or not; None if there is none yet. Raises StateError."""
    path = state_dir / FILE
    if not path.exists():
        return None
    engine = _engine(path, writing=False)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1 FROM runs LIMIT 1")
    except DatabaseError as error:
        engine.dispose()
        if "no such table" in str(error.orig):
            return None  # a daemon is creating it at this moment
        raise StateError("read the database", str(error.orig), path=path) from error
    return Database(engine, None, path)


def _engine(path: Path, *, writing: bool) -> Engine:
    # A reader that may not create the -shm file beside a database at rest still gets its answer.
    reading = {"mode": "ro"} if os.access(path.parent, os.W_OK) else {"mode": "ro", "immutable": "1"}
    mode = {"mode": "rwc"} if writing else reading
    engine = create_engine(
        URL.create("sqlite", database=f"file:{quote(str(path))}", query={**mode, "uri": "true"}), poolclass=StaticPool,
        connect_args={"check_same_thread": False, "timeout": 10, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        if writing:
            # FULL: an intent to delete must not be lost by a power cut after the deletion.
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # IMMEDIATE: a transaction that reads and then writes never finds its snapshot stale (measured: docs/safety.md).
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _migrate(engine: Engine, path: Path) -> None:
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        head = scripts.get_current_head()
        if current == head:
            return
        known = {s.revision for s in scripts.walk_revisions()}
        if current is not None and current not in known:
            raise StateError("open the database", f"its schema {current} is newer than this program", path=path,
                             hint="upgrade ckptwatch, or use the state directory that belongs to this version")
        context = MigrationContext.configure(connection, opts={"fn": lambda rev, _: scripts._upgrade_revs("head", rev)})
        from alembic.operations import Operations

        with Operations.context(context):
            context.run_migrations()
