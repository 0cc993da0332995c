"""Dagster's databases with connections that are kept: as Dagster's own classes would write and read them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance.ref import InstanceRef
from sqlalchemy import Engine, event

from pipelines.dashboard.instance import SETTINGS

KEY = dg.AssetKey(["faces", "edges"])


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """The dashboard's, by its settings."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text(SETTINGS)
    with dg.DagsterInstance.get() as instance:
        yield instance


@pytest.fixture
def connections() -> Iterator[list[object]]:
    """Connections that were opened."""
    opened: list[object] = []

    def note(connection: object, record: object) -> None:
        opened.append(connection)

    event.listen(Engine, "connect", note)
    yield opened
    event.remove(Engine, "connect", note)


def report(instance: dg.DagsterInstance, partition: str) -> None:
    instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition=partition, tags={"by": "test"}))


def test_queries_share_connections(instance: dg.DagsterInstance, connections: list[object]) -> None:
    def use() -> None:
        report(instance, "a")
        assert instance.get_asset_records([KEY]) and not instance.get_runs() and not instance.all_instigator_state()

    use()
    opened = len(connections)
    for _ in range(5):
        use()
    assert len(connections) <= opened + 1  # the second use of a database may open one, to keep


def test_dagster_reads_what_was_written_and_the_other_way_round(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    @dg.op
    def work() -> None:
        """Nothing."""

    @dg.job
    def run() -> None:
        work()

    report(instance, "ours")
    result = run.execute_in_process(instance=instance)
    plain = InstanceRef.from_dir(str(tmp_path), overrides={"storage": {"sqlite": {"base_dir": str(tmp_path)}}})
    with dg.DagsterInstance.from_ref(plain) as other:
        assert type(other.event_log_storage) is not type(instance.event_log_storage)
        assert other.get_run_by_id(result.run_id).status == dg.DagsterRunStatus.SUCCESS  # type: ignore[union-attr]
        assert other.all_logs(result.run_id) == instance.all_logs(result.run_id) != []
        report(other, "theirs")
        for one in (instance, other):
            assert one.get_materialized_partitions(KEY) == {"ours", "theirs"}


def test_threads_write_at_once(instance: dg.DagsterInstance) -> None:
    names = {str(number) for number in range(24)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(partial(report, instance), sorted(names)))
    assert instance.get_materialized_partitions(KEY) == names
