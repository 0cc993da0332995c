"""`make bench-ingest`: ingest of many small files beside a bare loop, in one run on the same cores.

The loop does what no ingest can do without: it lists the files, and in one process for each core reads, hashes, checks
and writes them, shard by shard, with the project's own functions. The job runs on a Ray that has started, at the
niceness of the loop. `second` is the same ingest again, with nothing new; `handful` is a hundred files, from the
command line's function to its end, without Ray.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

TARGETS = {"job_over_loop": 0.7}  # at least
SHARD_ROWS, MAX_PIXELS, MIN_SIDE = 1024, 100_000_000, 32


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="bench-ingest-") as scratch:
        source = Path(scratch, "source")
        make_pictures(source, arguments.files)
        handful = Path(scratch, "handful")
        make_pictures(handful, 100)
        from cluster.session import ray_session
        from pipelines.ingest import ingest

        def job() -> None:
            assert ingest(str(source), f"{scratch}/job").added == arguments.files

        def loop() -> None:
            bare_loop(source, f"{scratch}/loop", cores)

        few = timed(lambda: ingest(str(handful), f"{scratch}/few"))
        with ray_session():
            warm = timed(lambda: ingest(str(handful), f"{scratch}/warm"))
            times: dict[str, list[float]] = {"job": [], "loop": []}
            for _ in range(arguments.rounds):
                for name, work in (("job", job), ("loop", loop)):
                    shutil.rmtree(f"{scratch}/{name}", ignore_errors=True)
                    times[name].append(timed(work))
            second = timed(lambda: ingest(str(source), f"{scratch}/job"))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    figures = {
        "files": arguments.files,
        "cores": cores,
        "seconds": {**seconds, "second": second, "handful": few, "handful_again": warm},
        "files_per_second": {name: arguments.files / value for name, value in seconds.items()},
        "ratios": {"job_over_loop": seconds["loop"] / seconds["job"]},
        "driver_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    show(figures)


def make_pictures(folder: Path, count: int) -> None:
    """Small JPEGs of noise; no two are equal."""
    folder.mkdir()
    random = np.random.default_rng(count)
    for index in range(count):
        pixels = random.integers(0, 255, (96, 96, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:06d}.jpg", quality=85)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def bare_loop(source: Path, target: str, cores: int) -> None:
    """The same shards, every process a share of them."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=bare_share, args=(source, target, n, cores)) for n in range(cores)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def bare_share(source: Path, target: str, number: int, count: int) -> None:
    import pyarrow as pa

    from labeling.dataset import IMAGE_SCHEMA, Dataset, write_shard
    from labeling.sources.cutting import cut_row_groups
    from labeling.sources.normalize import image_id, normalize

    store = Dataset(target).store
    names = sorted(os.listdir(source))
    for shard in range(number, -(-len(names) // SHARD_ROWS), count):
        rows, images = [], []
        for name in names[shard * SHARD_ROWS : (shard + 1) * SHARD_ROWS]:
            raw = (source / name).read_bytes()
            image = normalize(raw, MAX_PIXELS, MIN_SIDE)
            images.append([image])
            size = {"width": image.width, "height": image.height}
            rows.append({"id": image_id(raw), "image": image.encoded, **size, "source": name})
        table = pa.Table.from_pylist(rows, IMAGE_SCHEMA)
        write_shard(store, "images", f"{shard:06d}", table, cut_row_groups(images), "recipe")


def show(figures: dict) -> None:
    out = Path("runs/bench/ingest.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1))
    table = Table("figure", "value", "target")
    for group in ("seconds", "files_per_second", "ratios"):
        for name, value in figures[group].items():
            table.add_row(f"{group}: {name}", f"{value:.3g}", f"≥ {TARGETS[name]}" if name in TARGETS else "")
    table.add_row("driver, MB", str(figures["driver_megabytes"]), "")
    Console().print(table)
    missed = [name for name, least in TARGETS.items() if figures["ratios"][name] < least]
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
