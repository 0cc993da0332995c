"""Dagster's SQLite databases, with connections that are kept.

Dagster's own classes make an engine of SQLAlchemy's for every query. It connects anew and compiles the statement again,
which is more than half of what a query costs. `dagster.yaml` names the last class below as the storage; the files are
those that Dagster would write itself. Like `dagster_internals`, this relies on more than Dagster's documented parts. It
stands apart because Dagster imports it by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from dagster._core.instance.utils import RUNLESS_RUN_ID
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME, SqliteEventLogStorage
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import SqliteScheduleStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._core.storage.sqlite_storage import (
    DagsterSqliteStorage,
    _event_logs_directory,
    _runs_directory,
    _schedule_directory,
)
from sqlalchemy import Connection, Engine, create_engine, event

# Databases of events that are used all the time. Each run has one more, which is opened when somebody looks at it.
KEPT_SHARDS = (INDEX_SHARD_NAME, RUNLESS_RUN_ID)


def kept_engine(url: str) -> Engine:
    """An engine that keeps its connections, as many as threads need at once."""
    engine = create_engine(url, max_overflow=-1, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS})

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, record: Any) -> None:
        # No commit waits for the disk: what a power failure takes is reported once more, and the WAL keeps files whole.
        connection.execute("PRAGMA synchronous=NORMAL")

    return engine


class _KeptConnections:
    """A storage with one database."""

    _conn_string: str

    @cached_property
    def _engine(self) -> Engine:
        return kept_engine(self._conn_string)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A connection in a transaction."""
        with self._engine.begin() as connection:
            yield connection

    def dispose(self) -> None:
        """Close the connections."""
        self._engine.dispose()


class KeptRunStorage(_KeptConnections, SqliteRunStorage):
    """Dagster's runs."""


class KeptScheduleStorage(_KeptConnections, SqliteScheduleStorage):
    """Dagster's sensors and their ticks."""


class KeptEventStorage(SqliteEventLogStorage):
    """Dagster's events."""

    @cached_property
    def _engines(self) -> dict[str, Engine]:
        return {shard: kept_engine(self.conn_string_for_shard(shard)) for shard in KEPT_SHARDS}

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        if shard not in KEPT_SHARDS or shard not in self._initialized_dbs:  # the first time, its tables are made
            with super()._connect(shard) as connection:
                yield connection
        else:
            with self._engines[shard].begin() as connection:
                yield connection

    def dispose(self) -> None:
        """Close the connections."""
        super().dispose()
        for engine in self._engines.values():
            engine.dispose()


class KeptSqliteStorage(DagsterSqliteStorage):
    """All that Dagster stores, in a folder."""

    def __init__(self, base_dir: str, inst_data: Any = None) -> None:
        self.base_dir = base_dir
        self._run_storage = KeptRunStorage.from_local(_runs_directory(base_dir))
        self._event_log_storage = KeptEventStorage(_event_logs_directory(base_dir))
        self._schedule_storage = KeptScheduleStorage.from_local(_schedule_directory(base_dir))
        self._inst_data = inst_data
        super(DagsterSqliteStorage, self).__init__()

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Any) -> KeptSqliteStorage:
        """As `dagster.yaml` says."""
        return cls.from_local(inst_data=inst_data, **config_value)
