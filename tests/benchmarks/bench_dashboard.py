"""`make bench-dashboard`: the dashboard with as much as a lab has, all of it synthetic.

    bench_dashboard.py --datasets 50 --groups 20 --shards 10000 --runs 200 --jobs 1000

Measured: loading the definitions of all assets, which each of Dagster's processes does, rendering the page of jobs
(the first time and again), and how memory grows while pages are rendered. The floor beside the page of jobs is the bare
reading of the jobs' files. Nothing of the datasets but what the dashboard remembers of them is made: how long one tick
takes over so many shards, and Dagster's own pages in a browser, are not measured here. Figures go to
runs/bench/dashboard.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

RENDERINGS = 10
TARGETS = {"definitions": 5.0, "jobs page, first": 2.0, "jobs page, again": 2.0}


def timed(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def make_assets(options: argparse.Namespace, folder: Path) -> list[str]:
    """Snapshots of datasets and runs; addresses of the runs."""
    from model.inputs.yaml_files import read_yaml
    from pipelines.dashboard.snapshots import Snapshot, _save
    from pipelines.dashboard.tracked_assets import track
    from training.config import PRESETS, parse_config

    config = parse_config(read_yaml("debug", PRESETS, "preset"), "debug").model_dump(mode="json")
    datasets = [str(folder / f"dataset-{n:03d}") for n in range(options.datasets)]
    runs = [str(folder / f"run-{n:03d}") for n in range(options.runs)]
    tracked = track([("dataset", address) for address in datasets] + [("run", address) for address in runs])
    label = {"labeler": "edges", "version": 1, "parameters": {"low": 40, "high": 80}, "reads": ["images.image"]}
    groups = {"images": {}, **{f"group{n:02d}": label for n in range(options.groups - 1)}}
    for asset in tracked:
        if asset.kind == "run":
            source = datasets[hash(asset.name) % len(datasets)]
            _save(Snapshot(asset, config=config, reads=[(source, "images"), (source, "group00")]))
        else:
            _save(Snapshot(asset, kind="pictures", shards=options.shards, sources=[], groups=groups))
    return runs


def make_jobs(options: argparse.Namespace, runs: list[str]) -> None:
    """Jobs that have ended, one in fifty of them with an error; each has its folder in a run."""
    from cluster.target import LocalTarget
    from pipelines.jobs.attempt import Attempt, AttemptState, this_sender
    from pipelines.jobs.folder import JobFolder
    from pipelines.jobs.known_jobs import remember_job
    from pipelines.jobs.specification import EvaluateJob

    target = LocalTarget(type="local").model_dump(mode="json")
    for number in range(options.jobs):
        run, job = runs[number % len(runs)], f"evaluate-{number:08x}"
        folder = JobFolder(f"{run}/jobs/{job}")
        folder.put_specification(EvaluateJob(kind="evaluate", run=run))
        folder.put_attempt(Attempt(job, 1, folder.address, "local", target, time.time(), this_sender()))
        failed = number % 50 == 0
        state = AttemptState(1, "failed" if failed else "succeeded", "here", 1, 0.0, 0.0, "an error" if failed else "")
        folder.put_state(state)
        remember_job(job, folder.address)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("datasets", 50), ("groups", 20), ("shards", 10_000), ("runs", 200), ("jobs", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    memory_disk = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory_disk if memory_disk.is_dir() else None) as text:
        os.environ["XDG_DATA_HOME"] = text
        runs = make_assets(options, Path(text))
        make_jobs(options, runs)
        from pipelines.dashboard.jobs_page import render_jobs_page
        from pipelines.jobs.folder import JobFolder
        from pipelines.jobs.known_jobs import remembered_jobs

        import_seconds = timed(lambda: importlib.import_module("dagster"))

        def definitions() -> None:
            from pipelines.dashboard import definitions as built

            assert len(list(built.defs.resolve_all_asset_specs())) >= options.datasets * options.groups

        figures = {"definitions": timed(definitions), "floor of the definitions: Dagster's import": import_seconds}
        pages: list[str] = []
        figures["jobs page, first"] = timed(lambda: pages.append(render_jobs_page(None, True)))
        assert pages[0].count("<code>evaluate-") == options.jobs
        figures["jobs page, again"] = timed(lambda: render_jobs_page(None, True))
        figures["floor of the jobs page"] = timed(
            lambda: [(folder.attempt(), folder.state()) for folder in map(JobFolder, remembered_jobs().values())]
        )
        before = psutil.Process().memory_info().rss
        for _ in range(RENDERINGS):
            render_jobs_page(None, True)
        grown = psutil.Process().memory_info().rss - before
    table = Table("what", "seconds", "target")
    for name, seconds in figures.items():
        table.add_row(name, f"{seconds:.2f}", f"≤ {TARGETS[name]:g}" if name in TARGETS else "")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Console().print(table)
    print(
        f"page of {len(pages[0]) / 1e6:.2f} MB; {RENDERINGS} more renderings: {grown / 1e6:+.1f} MB; peak {most:.0f} MB"
    )
    path = Path("runs/bench/dashboard.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"scale": vars(options), "seconds": figures, "grown_bytes": grown, "peak_mb": most}
    path.write_text(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
