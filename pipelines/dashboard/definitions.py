"""What Dagster loads: a pure function of the snapshots, so that all its processes agree, and quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from model.inputs import one_line
from pipelines.dashboard.checks import build_checks
from pipelines.dashboard.datasets import dataset_assets
from pipelines.dashboard.jobs import JOBS
from pipelines.dashboard.runs import dataset_names, run_assets
from pipelines.dashboard.sensors import follow, picture_sensor
from pipelines.dashboard.snapshots import Snapshot, snapshots
from pipelines.dashboard.submissions import with_link


@dataclass(frozen=True)
class Part:
    """The definitions of one place. broken: it is shown as a single asset that says why."""

    assets: list[Any]
    checks: list[Any] = field(default_factory=list)
    sensors: list[Any] = field(default_factory=list)
    broken: bool = False


def build_definitions() -> dg.Definitions:
    """Assets and checks of all places, the sensors that watch them, and the jobs that are launched by a form."""
    seen = snapshots()
    datasets = [(one, _part(one, {})) for one in seen if one.place.kind != "run"]
    names = dataset_names(one for one, part in datasets if not part.broken)
    parts = [*(part for _, part in datasets), *(_part(one, names) for one in seen if one.place.kind == "run")]
    # In one process: steps only wait for what they sent.
    return dg.Definitions(
        assets=[asset for part in parts for asset in part.assets],
        asset_checks=[check for part in parts for check in part.checks],
        jobs=JOBS,
        sensors=[follow, *(sensor for part in parts for sensor in part.sensors)],
        executor=dg.in_process_executor,
    )


def _part(snapshot: Snapshot, names: Mapping[str, str]) -> Part:
    """Of one place, tried out by itself: one that cannot be shown must not take the others down."""
    name = snapshot.place.name
    try:
        assets = run_assets(snapshot, names) if snapshot.place.kind == "run" else dataset_assets(snapshot)
        watched = snapshot.place.kind != "run" and snapshot.sources and snapshot.kind == "pictures"
        sensors = [picture_sensor(snapshot)] if watched else []
        part = Part(with_link(name, assets), build_checks(snapshot), sensors)
        dg.Definitions(assets=part.assets, asset_checks=part.checks, jobs=JOBS, sensors=sensors).get_repository_def()
        return part
    except Exception as error:
        reason = one_line(error)
        asset = dg.AssetSpec(
            dg.AssetKey([name]),
            group_name=name,
            description=f"**It cannot be shown: {type(error).__name__}: {reason}**\n\n{snapshot.place.address}",
            metadata={"address": snapshot.place.address},
        )
        return Part(with_link(name, [asset]), broken=True)


defs = build_definitions()
