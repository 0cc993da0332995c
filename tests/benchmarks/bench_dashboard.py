"""`make bench-dashboard`: the dashboard with as much as a lab has, all of it synthetic.

    bench_dashboard.py --datasets 50 --groups 20 --shards 10000 --runs 200 --jobs 1000

Measured: loading the definitions of all assets, which each of Dagster's processes does; the page of jobs (the first
time and again); ticks of the sensor that follows datasets and runs: the first ones, and as many as an hour has (360),
with a shard changed before every twelfth, and how memory grows meanwhile; and opening pages of the dashboard itself in
a browser, where Chromium is installed. Floors: Dagster's import, the bare reading of the jobs' files, and a page of a
dashboard with one small dataset.

All datasets link to the same two folders of shards, so the disk holds few files, and listings are of all of them; one
group has a folder of its own, and there shards change. Runs are configurations alone. An hour's ticks follow each other
at once. Figures go to runs/bench/dashboard.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from bench_scale import make
from dashboard_process import Dashboard, served
from rich.console import Console
from rich.table import Table

RENDERINGS = 10
FIRST_TICKS, CHANGED_EVERY = 12, 12
CHROMIUM = Path("/usr/bin/chromium")
TARGETS = {
    "definitions": 5.0,
    "jobs page, first": 2.0,
    "jobs page, again": 2.0,
    "tick, the longest of the first": 5.0,
    "tick, the longest of an hour": 5.0,
    "asset page, first": 2.0,
    "asset page, again": 2.0,
    "asset page, a minute later": 2.0,
}


def timed(work: Callable[[], Any]) -> float:
    return timed_both(work)[0]


def timed_both(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and seconds of this process's CPU, which count where others use the machine as well."""
    began, used = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - began, time.process_time() - used


def make_assets(options: argparse.Namespace, folder: Path) -> list[str]:
    """Datasets and runs that the dashboard has read; addresses of the runs."""
    from model.inputs.yaml_files import to_yaml
    from pipelines.dashboard.snapshots import refresh
    from pipelines.dashboard.tracked_assets import track
    from training.config import load_config

    shared = folder / "shared"
    make(shared, options.shards)
    datasets = [folder / f"dataset-{number:03d}" for number in range(options.datasets)]
    for dataset in datasets:
        dataset.mkdir()
        (dataset / "dataset.json").write_bytes((shared / "dataset.json").read_bytes())
        (dataset / "images").symlink_to(shared / "images")
        for group in range(options.groups - 1):
            (dataset / f"group{group:02d}").symlink_to(shared / "edges")
    changing = datasets[0] / "group00"
    changing.unlink()
    changing.mkdir()
    for path in (shared / "edges").iterdir():
        (changing / path.name).hardlink_to(path)
    runs = [folder / f"run-{number:03d}" for number in range(options.runs)]
    for number, run in enumerate(runs):
        config = load_config(
            "debug", {"mixture": {"pictures": {"dataset": str(datasets[number % len(datasets)])}, "views": None}}
        )
        run.mkdir()
        (run / "config.yaml").write_text(to_yaml(config.model_dump(mode="json")))
    track([("dataset", str(one)) for one in datasets] + [("run", str(one)) for one in runs])
    refresh()
    return [str(run) for run in runs]


def make_floor(folder: Path) -> Path:
    """The data of a dashboard that shows one small dataset alone."""
    data, own = folder / "floor", os.environ["XDG_DATA_HOME"]
    make(folder / "small", 1)
    os.environ["XDG_DATA_HOME"] = str(data)
    from pipelines.dashboard.tracked_assets import track

    track([("dataset", str(folder / "small"))])
    os.environ["XDG_DATA_HOME"] = own
    return data


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


def ticks(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds and CPU seconds of ticks, and how memory grew over the last five sixths of an hour's."""
    from dagster import DagsterInstance

    from pipelines.dashboard.follower import Follower
    from pipelines.dashboard.instance import SETTINGS
    from pipelines.dashboard.sensors import TICK_SECONDS

    (folder / "instance").mkdir()
    (folder / "instance" / "dagster.yaml").write_text(SETTINGS)
    os.environ["DAGSTER_HOME"] = str(folder / "instance")
    instance, process = DagsterInstance.get(), psutil.Process()
    follower = Follower(instance)
    first, first_cpu = zip(
        *(timed_both(lambda: follower.follow(TICK_SECONDS)) for _ in range(FIRST_TICKS)), strict=True
    )
    events = sum(1 for key in instance.all_asset_keys() for _ in instance.get_materialized_partitions(key))
    shard = folder / "dataset-000" / "group00" / "000000.parquet"
    content, hour, memory = shard.read_bytes(), [], []
    for number in range(options.ticks):
        if number % CHANGED_EVERY == 0:
            beside = shard.with_name(".new")
            beside.write_bytes(content)
            beside.rename(shard)
        hour.append(timed_both(lambda: follower.follow(TICK_SECONDS)))
        memory.append(process.memory_info().rss / 1e6)
    return {
        "tick, the longest of the first": max(first),
        "tick, the most CPU of the first": max(first_cpu),
        "partitions reported in the first": events,
        "tick, the longest of an hour": max(seconds for seconds, _ in hour),
        "tick, the most CPU of an hour": max(cpu for _, cpu in hour),
        "tick, median CPU of an hour": sorted(cpu for _, cpu in hour)[len(hour) // 2],
        "ticks of an hour, CPU": sum(cpu for _, cpu in hour),
        "MB after ten minutes of ticks": memory[options.ticks // 6],
        "MB after an hour of ticks": memory[-1],
    }


def cpu_of_children() -> float:
    """CPU seconds of the processes that this one has started: a dashboard's and a browser's."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            used = process.cpu_times()
            total += used.user + used.system
    return total


def pages(data: Path, floor: Path, profiles: Path) -> Iterator[tuple[str, float]]:
    """Seconds until pages of a dashboard show what they are opened for, in a browser.

    floor: the data of a dashboard that shows one dataset of one shard; profiles: a folder for what browsers keep.
    """
    from playwright.sync_api import sync_playwright

    def open_browser(name: str) -> Any:  # which keeps Dagster's scripts, also compiled, as a person's does
        return playwright.chromium.launch_persistent_context(
            str(profiles / name), executable_path=str(CHROMIUM), args=["--no-sandbox"]
        )

    with served(floor) as running, sync_playwright() as playwright:
        browser = open_browser("floor")
        for which, path in (("first", "small/edges"), ("again", "small/images"), ("once more", "small/boxes")):
            yield from asset_page(running, browser, f"floor of an asset page, {which}", path)
        browser.close()
    began = time.monotonic()
    with served(data) as running, sync_playwright() as playwright:
        yield "start of the dashboard", time.monotonic() - began
        browser = open_browser("lab")
        yield from asset_page(running, browser, "asset page, first", "dataset_000/group00")
        yield from asset_page(running, browser, "asset page, again", "dataset_001/group01")
        used = cpu_of_children()
        time.sleep(60)
        yield "CPU of a minute without anyone", cpu_of_children() - used
        yield from asset_page(running, browser, "asset page, a minute later", "dataset_002/group02")
        page = browser.new_page()

        def open_groups() -> None:
            page.goto(f"{running.address}/asset-groups", wait_until="commit")
            page.get_by_text("dataset_000").first.wait_for(timeout=120_000)

        yield "list of assets", timed(open_groups)
        yield from answers(running)
        browser.close()


def asset_page(running: Dashboard, browser: Any, what: str, path: str) -> Iterator[tuple[str, float]]:
    """Of a page that is opened in a tab of its own; with the CPU of all processes until then."""
    page, used = browser.new_page(), cpu_of_children()

    def open_page() -> None:
        page.goto(f"{running.address}/assets/{path}?view=overview", wait_until="commit")
        page.get_by_text("Made by").first.wait_for(timeout=120_000)

    yield what, timed(open_page)
    yield f"{what}, CPU of all", cpu_of_children() - used
    page.close()


def answers(running: Dashboard) -> Iterator[tuple[str, float]]:
    """Seconds of answers of the server, without a browser."""
    yield "all assets by GraphQL", timed(lambda: running.ask("{ assetNodes { assetKey { path } staleStatus } }"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("datasets", 50),
        ("groups", 20),
        ("shards", 10_000),
        ("runs", 200),
        ("jobs", 1000),
        ("ticks", 360),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    memory_disk = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory_disk if memory_disk.is_dir() else None) as text:
        folder = Path(text)
        os.environ["XDG_DATA_HOME"] = str(folder / "data")
        runs = make_assets(options, folder)
        make_jobs(options, runs)
        from pipelines.dashboard.jobs_page import render_jobs_page
        from pipelines.jobs.folder import JobFolder
        from pipelines.jobs.known_jobs import remembered_jobs

        import_seconds = timed(lambda: importlib.import_module("dagster"))

        def definitions() -> None:
            from pipelines.dashboard import definitions as built

            assert len(list(built.defs.resolve_all_asset_specs())) >= options.datasets * options.groups

        seconds, cpu = timed_both(definitions)
        figures = {"definitions": seconds, "definitions, CPU": cpu}
        figures["floor of the definitions: Dagster's import"] = import_seconds
        pages_of_jobs: list[str] = []
        seconds, cpu = timed_both(lambda: pages_of_jobs.append(render_jobs_page(None, True)))
        figures |= {"jobs page, first": seconds, "jobs page, first, CPU": cpu}
        assert pages_of_jobs[0].count("<code>evaluate-") == options.jobs
        figures["jobs page, again"] = timed(lambda: render_jobs_page(None, True))
        figures["floor of the jobs page"] = timed(
            lambda: [(folder.attempt(), folder.state()) for folder in map(JobFolder, remembered_jobs().values())]
        )
        before = psutil.Process().memory_info().rss
        for _ in range(RENDERINGS):
            render_jobs_page(None, True)
        grown = psutil.Process().memory_info().rss - before
        print(json.dumps(figures), flush=True)
        figures |= ticks(options, folder)
        print(json.dumps(figures), flush=True)
        if CHROMIUM.exists():
            figures |= dict(pages(folder / "data", make_floor(folder), folder / "browsers"))
    table = Table("what", "seconds", "target")
    for name, seconds in figures.items():
        table.add_row(name, f"{seconds:.2f}", f"≤ {TARGETS[name]:g}" if name in TARGETS else "")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Console().print(table)
    print(f"{RENDERINGS} more renderings of the jobs page: {grown / 1e6:+.1f} MB; peak {most:.0f} MB")
    path = Path("runs/bench/dashboard.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"scale": vars(options), "figures": figures, "grown_bytes": grown, "peak_mb": most}
    path.write_text(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
