"""What Dagster loads: a pure function of the snapshots, so that all its processes agree, and quick."""

from __future__ import annotations

from typing import Any

import dagster as dg

from pipelines.dashboard.checks import build_checks
from pipelines.dashboard.datasets import dataset_assets
from pipelines.dashboard.jobs import JOBS
from pipelines.dashboard.runs import dataset_names, run_assets
from pipelines.dashboard.sensors import follow, picture_sensor
from pipelines.dashboard.snapshots import snapshots


def build_definitions() -> dg.Definitions:
    """Assets and checks of all places, the sensors that watch them, and the jobs that are launched by a form."""
    seen = snapshots()
    names = dataset_names(seen)
    assets: list[Any] = []
    checks: list[Any] = []
    sensors: list[Any] = [follow]
    for snapshot in seen:
        if snapshot.place.kind == "run":
            assets += run_assets(snapshot, names)
        else:
            assets += dataset_assets(snapshot)
            if snapshot.sources and snapshot.kind == "pictures":
                sensors.append(picture_sensor(snapshot))
        checks += build_checks(snapshot)
    # In one process: steps only wait for what they sent.
    return dg.Definitions(
        assets=assets, asset_checks=checks, jobs=JOBS, sensors=sensors, executor=dg.in_process_executor
    )


defs = build_definitions()
