"""What Dagster loads. It depends on the snapshots alone, so that all of Dagster's processes agree and load quickly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from model.inputs import one_line
from pipelines.dashboard.checks import build_checks
from pipelines.dashboard.dagster_jobs import DAGSTER_JOBS
from pipelines.dashboard.dataset_assets import dataset_assets
from pipelines.dashboard.jobs_page import with_jobs_link
from pipelines.dashboard.run_assets import dataset_names, run_assets
from pipelines.dashboard.sensors import follow, new_pictures
from pipelines.dashboard.snapshots import Snapshot, snapshots


@dataclass(frozen=True)
class _Part:
    """The definitions of one dataset or run. broken: it is shown as a single asset that says why."""

    assets: list[Any]
    checks: list[Any] = field(default_factory=list)
    broken: bool = False


def build_definitions() -> dg.Definitions:
    """Assets and checks of all datasets and runs, the sensors that watch them, and the jobs that forms launch."""
    all_snapshots = snapshots()
    with suppress(Exception):  # which one Dagster refuses is found by trying each by itself
        definitions = _together(_parts(all_snapshots, _part))
        definitions.get_repository_def()
        return definitions
    return _together(_parts(all_snapshots, _tried_part))


def _parts(all_snapshots: Sequence[Snapshot], make: Callable[[Snapshot, Mapping[str, str]], _Part]) -> list[_Part]:
    datasets = [(snapshot, make(snapshot, {})) for snapshot in all_snapshots if snapshot.tracked.kind != "run"]
    names = dataset_names(snapshot for snapshot, part in datasets if not part.broken)
    runs = [make(snapshot, names) for snapshot in all_snapshots if snapshot.tracked.kind == "run"]
    return [*(part for _, part in datasets), *runs]


def _together(parts: Sequence[_Part]) -> dg.Definitions:
    return dg.Definitions(
        assets=[asset for part in parts for asset in part.assets],
        asset_checks=[check for part in parts for check in part.checks],
        jobs=DAGSTER_JOBS,
        sensors=[follow, new_pictures],
        executor=dg.in_process_executor,  # steps only wait for the jobs that they sent
    )


def _part(snapshot: Snapshot, names: Mapping[str, str]) -> _Part:
    """Definitions of one dataset or run. names: address → name, of the datasets on the dashboard."""
    is_run = snapshot.tracked.kind == "run"
    assets = run_assets(snapshot, names) if is_run else dataset_assets(snapshot)
    return _Part(with_jobs_link(snapshot.tracked.name, assets), build_checks(snapshot))


def _tried_part(snapshot: Snapshot, names: Mapping[str, str]) -> _Part:
    """`_part`, tried by itself: one that Dagster refuses must not take others down."""
    name = snapshot.tracked.name
    try:
        part = _part(snapshot, names)
        definitions = dg.Definitions(assets=part.assets, asset_checks=part.checks, jobs=DAGSTER_JOBS)
        definitions.get_repository_def()
        return part
    except Exception as error:
        reason = one_line(error)
        asset = dg.AssetSpec(
            dg.AssetKey([name]),
            group_name=name,
            description=f"**It cannot be shown: {type(error).__name__}: {reason}**\n\n{snapshot.tracked.address}",
            metadata={"address": snapshot.tracked.address},
        )
        return _Part(with_jobs_link(name, [asset]), broken=True)


defs = build_definitions()
