"""Everything that the dashboard relies on beyond Dagster's documented interface.

Checked with Dagster CHECKED_VERSION. `tests/pipelines/dashboard/test_dagster_internals.py` compares each part with the
Dagster that is installed, so that an upgrade that moves one fails there, and says which.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dagster as dg

CHECKED_VERSION = "1.13.27"

# Tags of a materialization by which Dagster decides whether an asset is stale. After "/" come the names of its inputs:
# the data version that each had, and the event up to which Dagster takes them for known.
CODE_VERSION = "dagster/code_version"
DATA_VERSION = "dagster/data_version"
DATA_VERSION_IS_OURS = "dagster/data_version_is_user_provided"
INPUT_DATA_VERSION = "dagster/input_data_version"
INPUT_EVENT_POINTER = "dagster/input_event_pointer"
NO_EVENT = "NULL"  # the pointer to an input that has no event yet
# Metadata by which asset pages count rows.
ROW_COUNT, PARTITION_ROW_COUNT = "dagster/row_count", "dagster/partition_row_count"
# With this many partitions or more, Dagster compares no data versions of what depends on them.
UNCOMPARED_PARTITIONS = 100

# Paths of Dagster's web server that need more care than the rest: those that read any file of this machine, and those
# that change something without GraphQL, which alone enforces the read-only role.
FILE_PATHS = ("/notebook", "/dagit/notebook")
REPORT_PATHS = ("/report_asset_materialization", "/report_asset_check", "/report_asset_observation")
# Where the scripts of its pages are, named by their content.
STATIC_PATH = "/_next/static/"
JOB_FORM = "/locations/{location}/jobs/{job}/playground/setup?config={config}"


def static_folder() -> Path:
    """What Dagster's web server serves below STATIC_PATH; found without importing it, which takes seconds."""
    spec = find_spec("dagster_webserver")
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], "webapp", "build", "_next", "static")


def console_script(name: str) -> Callable[[Sequence[str]], None]:
    """Import a command of Dagster's (`dagster`, `dagster-daemon`); returns a function that runs it with arguments."""
    [script] = entry_points(group="console_scripts", name=name)
    main = script.load()

    def run(arguments: Sequence[str]) -> None:
        sys.argv = [name, *arguments]
        main()

    return run


def import_web_server() -> None:
    """Import what `web_application` needs, which takes seconds."""
    import dagster_webserver.app  # noqa: F401


@contextmanager
def web_application(workspace: str, read_only: bool) -> Iterator[Any]:
    """Dagster's web server as an ASGI application; its own command listens on ports only, never on a socket file.

    workspace: the YAML file that says where the code server is.
    """
    from dagster import DagsterInstance
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.version import __version__

    with (
        DagsterInstance.get() as instance,
        WorkspaceProcessContext(
            instance, WorkspaceFileTarget([workspace]), version=__version__, read_only=read_only
        ) as context,
    ):
        yield create_app_from_workspace_process_context(context, "", None)


def last_check_evaluations(
    instance: dg.DagsterInstance, checks: Iterable[dg.AssetCheckKey]
) -> dict[dg.AssetCheckKey, tuple[float, dg.AssetCheckEvaluation]]:
    """Check → when it was evaluated last (Unix time), and the evaluation; without checks that are running."""
    import dagster as dg

    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(checks))
    evaluations = {}
    for key, record in records.items():
        entry = record.event
        event = entry.dagster_event if entry else None
        if entry and event and event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluations[key] = entry.timestamp, event.asset_check_evaluation_data
    return evaluations


def newest_events(instance: dg.DagsterInstance, keys: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], int | None]:
    """Asset → number of its newest materialization (None: it has none), by one query."""
    import dagster as dg

    records = instance.get_asset_records([dg.AssetKey(key) for key in keys]) if keys else ()
    found = {tuple(one.asset_entry.asset_key.path): one.asset_entry.last_materialization_storage_id for one in records}
    return {key: found.get(key) for key in keys}


def create_databases(instance: dg.DagsterInstance) -> None:
    """Make the databases that Dagster otherwise makes on first use."""
    assert instance.event_log_storage and instance.schedule_storage


def free_pools_of_ended_runs(instance: dg.DagsterInstance) -> None:
    """Free the slots in pools of runs that are over; a run whose process was killed keeps its slot otherwise."""
    storage = instance.event_log_storage
    for run_id in storage.get_concurrency_run_ids():
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            storage.free_concurrency_slots_for_run(run_id)
