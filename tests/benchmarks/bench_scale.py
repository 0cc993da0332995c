"""`make bench-scale`: what looking at datasets of very many shards costs, on disk and on S3 far away.

    bench_scale.py --shards 1000 10000            # smaller ones
    bench_scale.py --shards 1000 --s3 1000        # S3: a server on loopback that makes requests wait

Shards have one row; after the first thousand they are links to these. The floor beside is the bare listing of the three
groups, which no program can do without. Commands are processes of their own, imports and Ray's start included; memory
is the largest of the process itself. Figures go to runs/bench/scale.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from s3_folder import S3Folder, tag_of
from s3_proxy import serving

GROUPS = ("images", "boxes", "edges")
LINKED = 1000  # shards that are written; a file can have some ten thousand links
# At 10⁵ shards, in seconds and MB.
TARGETS = {
    "status, cold": 60.0,
    "label, nothing to do": 5.0,
    "label, one shard missing": 10.0,
    "s3 label, nothing to do": 60.0,
    "s3 status, warm": 60.0,
}
MOST_MEMORY = 500
FULL = 100_000


@dataclass
class Figure:
    """One command. cpu: seconds of CPU of the process itself and those it waited for, which say more than `seconds` on
    a busy machine; floor: seconds of the bare listing; requests: to S3."""

    what: str
    shards: int
    seconds: float
    cpu: float
    megabytes: int
    floor: float
    requests: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="*", default=[1000, 10_000, FULL])
    parser.add_argument("--s3", type=int, nargs="*", default=[1000, 10_000, FULL], help="sizes to measure on S3")
    parser.add_argument("--delay", type=float, default=0.03, help="seconds that a request to S3 waits")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/scale.json"))
    args = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="bench-scale-", dir=os.environ.get("BENCH_DIR")) as folder:
        for count in sorted({*args.shards, *args.s3}):
            place = Path(folder, "bucket", str(count))
            make(place, count)
            if count in args.shards:
                figures += measure_disk(place, count)
            if count in args.s3:
                figures += measure_s3(place, count, args.delay)
    show(figures)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    growth = growths(figures)
    args.out.write_text(json.dumps({"growth": growth, "figures": [asdict(one) for one in figures]}, indent=1) + "\n")
    missed = [
        one.what
        for one in figures
        if one.shards == FULL and (one.seconds > TARGETS.get(one.what, 1e9) or one.megabytes > MOST_MEMORY)
    ]
    if missed:
        sys.exit(f"missed at {FULL} shards: {', '.join(missed)}")


def make(place: Path, count: int) -> None:
    """A dataset of images, boxes and edges with so many shards of one row, all of them fresh."""
    import numpy as np
    import pyarrow as pa
    from PIL import Image

    from labeling.dataset import IMAGE_SCHEMA, Dataset, ShardInfo, expected_recipe, write_shard
    from labeling.declaration import declare
    from labeling.registry import load_labeler
    from labeling.results import group_schema

    dataset = Dataset(place)
    labelers = {name: load_labeler(name, {}) for name in GROUPS[1:]}
    declared: dict[str, dict[str, Any]] = {name: declare(labeler) for name, labeler in labelers.items()}
    images = {"labeler": "ingest", "version": 1, "parameters": {}, "weights": "", "reads": []}
    for name, declaration in {GROUPS[0]: images, **declared}.items():
        dataset.declare(name, declaration)
    for index in range(min(count, LINKED)):
        shard = f"{index:06d}"
        file = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), index % 256, np.uint8)).save(file, "JPEG")
        row = {"id": f"{index:032x}", "image": file.getvalue(), "width": 32, "height": 32, "source": f"{index}.jpg"}
        table = pa.Table.from_pylist([row], IMAGE_SCHEMA)
        footers = {GROUPS[0]: {shard: write_shard(dataset.store, GROUPS[0], shard, table, [1], "r")}}
        for name, labeler in labelers.items():
            labels = {"boxes": [], "scores": [], "names": [], "colors": []} if name == "boxes" else {"edges": b"x" * 99}
            label = {"id": row["id"], **labels, "model": "m", "version": 1}
            recipe = expected_recipe(declared[name], shard, footers)
            assert recipe is not None
            write_shard(
                dataset.store, name, shard, pa.Table.from_pylist([label], group_schema(labeler, False)), [1], recipe
            )
    for index in range(LINKED, count):
        for name in GROUPS:
            os.link(place / name / f"{index % LINKED:06d}.parquet", place / name / f"{index:06d}.parquet")
    dataset.describe("pictures", [ShardInfo(f"{index:06d}", 1) for index in range(count)], [{"uri": "none"}])


def measure_disk(place: Path, count: int) -> Iterator[Figure]:
    """Commands on a dataset on disk."""

    def figure(what: str, *command: str) -> Figure:
        floor = seconds_of(lambda: [list_folder(place / group) for group in GROUPS])
        return say(Figure(what, count, *run(*command), floor))

    forget(place)
    yield figure("status, cold", "status", str(place))
    yield figure("status, warm", "status", str(place))
    yield figure("label, nothing to do", "label", str(place), "edges")
    (place / "edges" / f"{count // 2:06d}.parquet").unlink()
    yield figure("label, one shard missing", "label", str(place), "edges")


def measure_s3(place: Path, count: int, delay: float) -> Iterator[Figure]:
    """Commands on the same dataset behind S3."""
    address = f"s3://{place.parent.name}/{place.name}"
    with serving(S3Folder(place.parent.parent, delay)) as server:
        environment = {
            "AWS_ENDPOINT_URL": server.address,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }

        def figure(what: str, *command: str) -> Figure:
            floor = seconds_of(lambda: list_bucket(server, environment, place))
            before = server.requests
            figure = Figure(f"s3 {what}", count, *run(*command, **environment), floor)
            figure.requests = server.requests - before
            return say(figure)

        # The index knows the files by their times on disk, and is made anew; of 10⁵ shards that takes half an hour.
        forget(place)
        if count < FULL:
            yield figure("status, cold", "status", address)
        else:
            index_as_on_s3(place)
        yield figure("status, warm", "status", address)
        yield figure("label, nothing to do", "label", address, "edges")


def list_folder(folder: Path) -> int:
    """The bare listing of a folder, with sizes and times."""
    return sum(item.stat().st_size for item in os.scandir(folder) if item.is_file())


def list_bucket(server: S3Folder, environment: dict[str, str], place: Path) -> None:
    """The bare listing of the three groups, one after another."""
    import boto3

    client = boto3.session.Session(
        environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1"
    ).client("s3", endpoint_url=server.address)
    for group in GROUPS:
        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=place.parent.name, Prefix=f"{place.name}/{group}/", Delimiter="/"
        )
        for _ in pages:
            pass


def run(*command: str, **environment: str) -> tuple[float, float, int]:
    """Seconds, seconds of CPU, and most MB of a command."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", *command],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.getcwd(), **environment},
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{command} ended with {process.returncode}"
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1000


def seconds_of(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def forget(place: Path) -> None:
    """Drop the index."""
    for path in place.glob("*/index*.parquet"):
        path.unlink()


def index_as_on_s3(place: Path) -> None:
    """Make the index with the tags that the server gives."""
    import pyarrow.parquet as pq

    from labeling.dataset import Dataset

    Dataset(place).all_footers(GROUPS, save=True)
    for path in place.glob("*/index*.parquet"):
        table = pq.read_table(path)
        files = [path.parent / f"{name}.parquet" for name in table["name"].to_pylist()]
        tags = [tag_of(file).strip('"') for file in files]
        pq.write_table(table.set_column(table.column_names.index("tag"), "tag", [tags]), path)


def say(figure: Figure) -> Figure:
    print(
        f"{figure.shards:7d} {figure.what}: {figure.seconds:.1f} s, {figure.cpu:.1f} of CPU",
        file=sys.stderr,
        flush=True,
    )
    return figure


def growths(figures: list[Figure]) -> dict[str, float]:
    """CPU of the largest dataset over that of the smallest, each per shard: 1 or less is linear."""
    by_name: dict[str, list[Figure]] = {}
    for one in figures:
        by_name.setdefault(one.what, []).append(one)
    return {
        what: (many[-1].cpu / many[-1].shards) / (many[0].cpu / many[0].shards)
        for what, many in by_name.items()
        if len(many) > 1
    }


def show(figures: list[Figure]) -> None:
    table = Table("command", "shards", "seconds", "CPU", "floor", "MB", "requests", f"target at {FULL}")
    for one in figures:
        target = TARGETS.get(one.what)
        row = (f"{one.seconds:.1f}", f"{one.cpu:.1f}", f"{one.floor:.1f}", str(one.megabytes), str(one.requests or ""))
        table.add_row(one.what, str(one.shards), *row, f"≤ {target:g} s" if target else "")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
