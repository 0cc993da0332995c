"""Dagster's instance: its settings, in the dashboard's folder, and the end of runs whose process is gone."""

from __future__ import annotations

import os

from pipelines.dashboard.dagster_internals import create_databases, free_pools_of_ended_runs
from pipelines.dashboard.tracked_assets import state_folder

# Tags of Dagster runs: that it follows a job to its end, that job's id, and the name of its target.
FOLLOWS, JOB_TAG, TARGET_TAG = "onediffusion/follows", "onediffusion/job", "onediffusion/target"
SETTINGS = f"""# Written anew by `onediffusion dashboard` whenever it starts.
telemetry:
  enabled: false
storage:
  custom:
    module: pipelines.dashboard.dagster_storage
    class: KeptSqliteStorage
    config: {{base_dir: {{env: DAGSTER_HOME}}}}
nux:
  enabled: false
freshness:
  # No asset has a policy of it. Dagster would all the same store an event of each that was never made, every 30 s.
  enabled: false
run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
  config: {{dequeue_interval_seconds: 1}}
concurrency:
  runs:
    # Stopping and scaling must never wait for jobs. Of the runs that follow jobs, those of assets have pools as limits.
    max_concurrent_runs: -1
    tag_concurrency_limits: [{{key: {FOLLOWS}, limit: 16}}]
  pools:
    granularity: op
    default_limit: 1
run_monitoring:
  enabled: true
  poll_interval_seconds: 5
  start_timeout_seconds: 300
  # A training that is stopped writes a checkpoint first, which `stop` waits for up to half an hour.
  cancel_timeout_seconds: 2100
  # A run whose process was killed keeps its place in its pool, and the next run would wait for it forever.
  free_slots_after_run_end_seconds: 1
sensors:
  use_threads: true
  num_workers: 4
retention:
  sensor:
    purge_after_days: {{skipped: 1, failure: 14, success: 14}}
"""


def environment() -> dict[str, str]:
    """Environment variables of Dagster's processes."""
    return {
        "DAGSTER_HOME": str(state_folder()),
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS": "120",
        "DO_NOT_TRACK": "1",
    }


def end_lost_runs(reason: str) -> None:
    """Make Dagster's databases where there are none, and report runs as failed that no process follows any more."""
    os.environ.update(environment())
    from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

    with DagsterInstance.get() as instance:
        create_databases(instance)
        unfinished = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
        for run in instance.get_runs(RunsFilter(statuses=unfinished)):
            job = run.tags.get(JOB_TAG)
            goes_on = f"; its job may go on: onediffusion logs -f {job}" if job else ""
            instance.report_run_failed(run, f"{reason}{goes_on}")
        free_pools_of_ended_runs(instance)
