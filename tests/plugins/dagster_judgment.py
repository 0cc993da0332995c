"""What Dagster itself decides, without a server: the private parts of Dagster that only tests use."""

from __future__ import annotations

from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon


def stale_status(
    instance: dg.DagsterInstance, graph: Any, key: dg.AssetKey, partition: str | None
) -> tuple[str, list[str]]:
    """FRESH, STALE or MISSING, and the reasons."""
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    reasons = [cause.reason for cause in resolver.get_stale_causes(key, partition)]
    return resolver.get_status(key, partition).value, reasons


def add_run(instance: dg.DagsterInstance, job: str, status: dg.DagsterRunStatus, tags: dict[str, str]) -> None:
    """Store a run of a job with this status."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "all")
    origin = RemoteJobOrigin(repository, job)
    instance.add_run(dg.DagsterRun(job, status=status, tags=tags, remote_job_origin=origin))


def jobs_to_start(instance: dg.DagsterInstance) -> list[str]:
    """Names of the queued runs' jobs that the daemon would start now."""
    runs = QueuedRunCoordinatorDaemon(1)._get_runs_to_dequeue(instance, instance.get_concurrency_config(), None)
    return sorted(run.job_name for run in runs)
