"""`make bench-labels`: a labeling job beside a bare loop over the same pictures with the same labelers.

    make bench-labels                                            # every labeler, all in one job, and at 24 megapixels
    make bench-labels ARGUMENTS="edges --count 160 --rounds 1"   # some labelers, fewer pictures

The floor is a loop without Ray: it reads a row group, decodes and labels, in as many processes as the job has cores, at
the same niceness and with the same number of threads. A round is loop, job, loop; the ratio is of the job's steady
state, from its first finished rows to its last ones. Labelers that take less than 10 ms a picture have no target.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy: as the job has it
    os.environ[_name] = "1"

LABELERS = ["edges", "boxes", "pose", "segmentation", "caption", "latents-256", "text"]
ALL = ["boxes", "segmentation", "pose", "caption", "edges", "depth", "latents", "text"]
LEAST_RATIO, MOST_FIRST_SECONDS, FAST_MILLISECONDS = 0.9, 10.0, 10.0
SHARD_ROWS = 80
NICENESS = "RAY_worker_niceness"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labelers", nargs="*", help="labelers to measure one by one; none: each, all, and 24 Mpx")
    parser.add_argument("--count", type=int, default=640, help="pictures of 0.3 to 1 megapixel")
    parser.add_argument("--large", type=int, default=32, help="pictures of 24 megapixels")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/labels"), help="for pictures and datasets")
    args = parser.parse_args()
    os.environ.setdefault(NICENESS, "0")
    figures: dict[str, dict[str, float]] = {}
    small = prepare(args.folder / f"pictures-{args.count}", args.count, 0.3, 1.0, args.labelers or ALL)
    for name in args.labelers or LABELERS:
        figures[name] = compare(small, [name], args.rounds)
    if not args.labelers:
        figures["all"] = compare(small, ALL, args.rounds)
        large = prepare(args.folder / f"large-{args.large}", args.large, 24.0, 24.0, ["edges", "boxes"])
        figures["24 megapixels"] = compare(large, ["edges", "boxes"], args.rounds)
    report(figures, args)


def prepare(folder: Path, count: int, least: float, most: float, labelers: Sequence[str]) -> Path:
    """A dataset with pictures and all labels that any of the labelers reads or makes."""
    from pipelines.demo_data.pictures import gather_pictures

    pictures, dataset = folder / "pictures", folder / "dataset"
    if not (folder / "photographs").exists():
        gather_pictures(folder / "photographs")
    if len(list(pictures.glob("*.jpg"))) < count:
        pictures.mkdir(parents=True, exist_ok=True)
        jobs = [(folder / "photographs", pictures, index, least, most) for index in range(count)]
        with ProcessPoolExecutor() as pool:
            list(pool.map(make_picture, jobs, chunksize=8))
    command = [sys.executable, "-m", "pipelines"]
    subprocess.run([*command, "ingest", pictures, dataset, "--shard-rows", str(SHARD_ROWS)], check=True)
    subprocess.run([*command, "label", dataset, *labelers], check=True)
    return dataset


def make_picture(job: tuple[Path, Path, int, float, float]) -> None:
    """A crop of a photograph at another size, with noise so that no two are equal."""
    import numpy as np
    from PIL import Image

    photographs, folder, index, least, most = job
    random = np.random.default_rng(index)
    sources = sorted(path for path in photographs.glob("*.[jp][pn]g") if "disparity" not in path.name)
    sources = [path for path in sources if _is_picture(path)]
    with Image.open(sources[index % len(sources)]) as image:
        picture = image.convert("RGB")
    width, height = (int(side * random.uniform(0.6, 1.0)) for side in picture.size)
    left = int(random.integers(0, picture.width - width + 1))
    top = int(random.integers(0, picture.height - height + 1))
    scale = np.sqrt(random.uniform(least, most) * 1e6 / (width * height))
    size = (round(width * scale), round(height * scale))
    crop = picture.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC)
    noise = np.tile(random.integers(-3, 4, (64, 64, 3), np.int16), (size[1] // 64 + 1, size[0] // 64 + 1, 1))
    pixels = np.asarray(crop, np.int16) + noise[: size[1], : size[0]]
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{index:06d}.jpg", "JPEG", quality=90)


def _is_picture(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return bool(image.convert("RGB").width >= 200)
    except OSError:  # one of those that an ingest is to reject
        return False


def compare(dataset: Path, names: Sequence[str], rounds: int) -> dict[str, float]:
    """Loop, job, loop: pictures a second of both, and when the job's first label was there."""
    loops: list[dict[str, Any]] = []
    jobs: list[dict[str, Any]] = []
    for _ in range(rounds):
        loops.append(measure("loop", dataset, names))
        with without_labels(dataset, names) as copy:
            jobs.append(measure("job", copy, names))
        loops.append(measure("loop", dataset, names))
    loop = statistics.median(one["per_second"] for one in loops)
    job = statistics.median(one["per_second"] for one in jobs)
    figures = {
        "loop": loop,
        "job": job,
        "ratio": job / loop,
        "milliseconds": statistics.median(one["cpu_milliseconds"] for one in loops),
        "first_label": statistics.median(one["first_label"] for one in jobs),
    }
    print(" ".join(names), {name: round(value, 2) for name, value in figures.items()}, flush=True)
    return figures


def measure(what: str, dataset: Path, names: Sequence[str]) -> dict[str, Any]:
    """Run this file's loop or job in a process of its own."""
    environment = {**os.environ, "STARTED": str(time.time())}
    command = [sys.executable, __file__, f"--{what}", str(dataset), *names]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def without_labels(dataset: Path, names: Sequence[str]) -> Iterator[Path]:
    """A copy of the dataset, by links, that lacks the labels."""
    from labeling.registry import default_groups

    copy = dataset.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(dataset, copy, copy_function=os.link)
    present = [path.parent.name for path in dataset.glob("*/group.json")]
    for group in [group for name in names for group in default_groups(name, present, present)]:
        shutil.rmtree(copy / group)
    yield copy
    shutil.rmtree(copy)


def job(dataset: str, names: list[str]) -> None:
    """One job through the function that the command calls, with the time at which every part of it was done."""
    from pipelines.label import label
    from pipelines.labeling_job import wave

    parts: list[tuple[float, int]] = []  # when each was done where it was labeled, and its rows
    cores = len(os.sched_getaffinity(0))
    from_plain = wave.Tally.from_plain

    def recorded(values: Any) -> Any:
        parts.append((values["done"], max(values["rows"].values())))
        return from_plain(values)

    wave.Tally.from_plain = recorded
    began = time.time()
    result = label(dataset, names)
    assert result.first_label is not None
    # From when every process has finished something: before, not all of them were at work.
    parts.sort()
    seconds = parts[-1][0] - parts[cores - 1][0]
    rows = sum(count for _, count in parts[cores:])
    print(*result.summary(), sep="\n", file=sys.stderr)
    figures = {
        "per_second": rows / seconds,
        "first_label": result.first_label + began - float(os.environ["STARTED"]),
    }
    print(json.dumps(figures))


def loop(dataset: str, names: list[str]) -> None:
    """The floor, in as many processes as the job has cores."""
    processes = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=loop_process, args=(dataset, names, number, processes, barrier, answers))
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    results = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    rows = sum(result[0] for result in results)
    cpu = sum(result[2] for result in results)
    print(json.dumps({"per_second": rows / max(r[1] for r in results), "cpu_milliseconds": 1e3 * cpu / rows}))


def loop_process(dataset_uri: str, names: list[str], number: int, processes: int, barrier: Any, answers: Any) -> None:
    """Row groups in turn: read, decode, label. Loading of models does not count."""
    os.nice(int(os.environ[NICENESS]))
    from labeling.dataset import Dataset, groups_of
    from labeling.plan import choose_labelers
    from labeling.registry import default_groups
    from model.pictures import decode_picture

    dataset = Dataset.open(dataset_uri)
    groups = [group for name in names for group in default_groups(name, dataset.groups(), dataset.groups())]
    labelers = choose_labelers(dataset, groups, {})
    for labeler in labelers.values():
        labeler.load_processor()
        labeler.load()
    footers = dataset.footers("images")
    places = [(shard, index) for shard, footer in footers.items() for index in range(len(footer.row_groups))]
    reads = {"images.id", *(column for labeler in labelers.values() for column in labeler.reads)}
    columns = {
        group: sorted({column.partition(".")[2] for column in reads if column.startswith(f"{group}.")})
        for group in groups_of(sorted(reads))
        if group not in labelers
    }

    def run(shard: str, index: int) -> int:
        values = {name: column.to_pylist() for name, column in dataset_columns(dataset, shard, columns, index)}
        values["id"] = values["images.id"]
        if "images.image" in values:
            values["images.image"] = [decode_picture(data) for data in values["images.image"]]
        for group, labeler in labelers.items():
            keys = ("id", *labeler.reads)
            rows = [dict(zip(keys, row, strict=True)) for row in zip(*(values[key] for key in keys), strict=True)]
            labels: list[dict[str, Any]] = []
            for start in range(0, len(rows), labeler.batch_size):
                labels += label_batch(labeler, rows[start : start + labeler.batch_size])
            for name in labeler.schema.names:
                values[f"{group}.{name}"] = [row.get(name) for row in labels]
        return len(values["id"])

    run(*places[number % len(places)])  # a first call is slower
    barrier.wait()
    started, cpu = time.perf_counter(), time.process_time()
    rows = sum(run(*place) for place in places[number::processes])
    answers.put((rows, time.perf_counter() - started, time.process_time() - cpu))


def dataset_columns(dataset: Any, shard: str, columns: dict[str, list[str]], index: int) -> list[tuple[str, Any]]:
    table = dataset.join(shard, columns, [index])
    return list(zip(table.column_names, table.columns, strict=True))


def label_batch(labeler: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Labels of a batch; where one of its rows has none, of each row alone."""
    from labeling.labeler import RowError

    try:
        return list(labeler.label(rows))
    except RowError:
        if len(rows) == 1:
            return [{}]
        return [label for row in rows for label in label_batch(labeler, [row])]


def report(figures: dict[str, dict[str, float]], args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("labelers", "CPU ms a picture", "loop, pictures/s", "job, pictures/s", "ratio", "first label, s")
    missed = []
    for name, one in figures.items():
        has_target = one["milliseconds"] > FAST_MILLISECONDS
        if has_target and one["ratio"] < LEAST_RATIO:
            missed.append(f"{name}: {one['ratio']:.2f} of the loop")
        if one["first_label"] > MOST_FIRST_SECONDS:
            missed.append(f"{name}: first label after {one['first_label']:.1f} s")
        ratio = f"{one['ratio']:.2f}" + (f" (≥ {LEAST_RATIO})" if has_target else "")
        cells = [f"{one[key]:.1f}" for key in ("milliseconds", "loop", "job")]
        table.add_row(name, *cells, ratio, f"{one['first_label']:.1f} (≤ {MOST_FIRST_SECONDS:g})")
    Console().print(table)
    out = Path("runs/bench/labels.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))}
    ratios = {name: one["ratio"] for name, one in figures.items()}
    setup = {"pictures": args.count, "rounds": args.rounds, "niceness": int(os.environ[NICENESS]), "machine": machine}
    out.write_text(json.dumps({"ratios": ratios, "figures": figures, **setup}, indent=1))
    if missed:
        sys.exit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        job(sys.argv[2], sys.argv[3:])
    elif sys.argv[1:2] == ["--loop"]:
        loop(sys.argv[2], sys.argv[3:])
    else:
        main()
