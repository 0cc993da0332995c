"""What selecting rows and finding near-duplicates cost: time and memory of 10⁴ to 10⁶ synthetic rows.

Beside `where`: the same SQL by DuckDB alone, which reads the files itself. `make bench-selecting`.

    bench_selecting.py --shards 1000 10000 100000            # shards of 16 rows, on disk: what a shard costs
    bench_selecting.py --shards 1000 4000 --shard-rows 1024  # up to 4 million rows
    bench_selecting.py --s3 300 1000 3000 --delay 0.03       # on S3: a server on loopback that makes requests wait
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

SHARD_ROWS = 1024
RESULT = Path("runs/bench/selecting.json")
WHERE = "quality.sharpness > 0.4 and images.licence like 'CC%'"
FLIPS = 56
DISTINCT = 200  # shards that are written; the files of further ones are links to theirs


def write_dataset(folder: str, rows: int, shard_rows: int = SHARD_ROWS) -> None:
    """Rows of two groups; the pictures are 64 bytes, which nothing here reads."""
    from labeling.dataset import Dataset, ShardInfo, write_shard

    dataset, random, shards = Dataset(folder), np.random.default_rng(0), []
    licences = np.array(["CC0-1.0", "CC-BY-4.0", "all rights reserved", None], object)
    for number, start in enumerate(range(0, rows, shard_rows)):
        count, shard = min(shard_rows, rows - start), f"{number:06d}"
        shards.append(ShardInfo(shard, count))
        if number >= DISTINCT and count == shard_rows:
            for group in ("images", "quality"):
                os.link(f"{folder}/{group}/{number % DISTINCT:06d}.parquet", f"{folder}/{group}/{shard}.parquet")
            continue
        ids = pa.array([f"{row:032x}" for row in range(start, start + count)])
        groups = [16] * (count // 16) + ([count % 16] if count % 16 else [])
        licence = pa.array(licences[random.integers(0, 4, count)], pa.string())
        images = pa.table({"id": ids, "image": pa.array([b"-" * 64] * count), "licence": licence})
        quality = pa.table({"id": ids, "sharpness": pa.array(random.random(count), pa.float32())})
        for group, table in (("images", images), ("quality", quality)):
            write_shard(dataset.store, group, shard, table, groups, "recipe")
    for group in ("images", "quality"):
        made_by = {"labeler": group, "version": 1, "parameters": {}, "weights": ""}
        dataset.declare(group, {**made_by, "reads": ["images.id"]})
    dataset.describe("pictures", shards, [])


def by_where(folder: str, _: int) -> dict[str, Any]:
    from labeling.dataset import Dataset, select_rows

    indexed = _timed(lambda: Dataset.open(folder).all_footers(["images", "quality"], save=True))
    selected = _timed(lambda: select_rows(Dataset.open(folder), WHERE).rows)
    return {"selected": selected, "seconds of the first index": indexed["seconds"]}


def by_duckdb(folder: str, _: int) -> dict[str, Any]:
    import duckdb

    views = [f"create view {g} as select * from read_parquet('{folder}/{g}/0*.parquet')" for g in ("images", "quality")]
    sql = f"select count(*) from images positional join quality where {WHERE}"

    def count() -> int:
        with duckdb.connect(config={"threads": 2}) as alone:
            for view in views:
                alone.execute(view)
            return alone.execute(sql).fetchall()[0][0]

    return {"selected": _timed(count)}


def by_hash(_: str, rows: int) -> dict[str, Any]:
    from labeling.near_duplicates import group_hashes, records_of
    from labeling.scratch import ScratchRows

    random = np.random.default_rng(0)
    words = np.frombuffer(random.bytes(32 * rows), np.uint64).reshape(rows, 4).copy()
    copies = rows // 5
    origins, flips = random.integers(0, rows - copies, copies), random.integers(0, FLIPS + 1, copies)
    for row, origin, count in zip(range(rows - copies, rows), origins, flips, strict=True):
        words[row] = words[origin]
        for place in random.choice(256, count, replace=False):
            words[row, place // 64] ^= np.uint64(1 << int(place % 64))
    records, numbers = ScratchRows(np.uint64, 5), np.arange(rows)
    records.append(records_of(numbers, words))
    found: list[np.ndarray] = []
    seconds = _timed(lambda: found.append(group_hashes(records, rows, FLIPS).first_rows(numbers)))
    truth = np.arange(rows)
    truth[rows - copies :] = origins
    right = found[0] == truth
    near = flips <= 32
    recall = {"recall, ≤ 32 bits": right[-copies:][near].mean(), "recall, 33–56 bits": right[-copies:][~near].mean()}
    return {"grouped": seconds, **recall, "wrong": float((found[0][: rows - copies] != truth[: rows - copies]).mean())}


def by_labeler(_: str, rows: int) -> dict[str, Any]:
    """The labels of `duplicates`, of tables made as they are asked for: what a label job holds besides."""
    from labeling.registry import load_labeler

    class Tables:
        def __iter__(self) -> Iterator[pa.Table]:
            random = np.random.default_rng(0)
            for start in range(0, rows, SHARD_ROWS):
                count = min(SHARD_ROWS, rows - start)
                data = random.bytes(32 * count)
                columns = {"id": [f"{row:064x}" for row in range(start, start + count)]}
                hashes = pa.array([data[32 * row : 32 * row + 32] for row in range(count)], pa.binary())
                sides = {f"images.{side}": np.full(count, 512, np.int32) for side in ("width", "height")}
                yield pa.table({**columns, "hashes.phash": hashes, **sides, "removed": np.zeros(count, bool)})

    labeler: Any = load_labeler("duplicates", {})
    return {"grouped": _timed(lambda: sum(len(table) for table in labeler.label_tables(Tables())))}


def by_query(folder: str, _: int) -> dict[str, Any]:
    from pipelines.query import query

    def count() -> int:
        with query(folder, f"select count(*) from rows where {WHERE}") as answer:
            return next(answer.rows)[0]

    return {"selected": _timed(count)}


WORK: dict[str, Callable[[str, int], dict[str, Any]]] = {
    "where": by_where, "query": by_query, "duckdb": by_duckdb, "hashes": by_hash, "labeler": by_labeler,
}  # fmt: skip


def _timed(work: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.monotonic(), time.process_time()
    work()
    return {"seconds": time.monotonic() - wall, "cpu": time.process_time() - cpu}


def measure(kind: str, folder: str, rows: int, s3: str = "") -> dict[str, Any]:
    """In a process of its own, for its memory to be its own. s3: address of the server."""
    environment = {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    done = subprocess.run(
        [sys.executable, __file__, "--work", kind, "--folder", folder, "--rows", str(rows)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment} if s3 else None,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, nargs="*", default=[], help="numbers of shards, on disk")
    parser.add_argument("--s3", type=int, nargs="*", default=[], help="numbers of shards, on S3")
    parser.add_argument("--shard-rows", type=int, default=16, help="rows of each of these")
    parser.add_argument("--only", nargs="*", default=list(WORK), help="what to measure")
    parser.add_argument("--delay", type=float, default=0.03, help="seconds that a request to S3 waits")
    parser.add_argument("--work", default="")
    parser.add_argument("--folder", default="")
    options = parser.parse_args()
    if options.work:
        import resource

        result = WORK[options.work](options.folder, options.rows)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**result, "MB": peak}, default=float))
        return
    results: dict[str, Any] = {}
    print(f"{'':8} {'rows':>9} {'seconds':>8} {'CPU':>7} {'MB':>6}")
    if options.shards or options.s3:
        measure_shards(options, results)
        save(results)
        return
    for rows in (options.rows // 100, options.rows // 10, options.rows):
        with tempfile.TemporaryDirectory() as folder:
            write_dataset(folder, rows)
            for kind in options.only:
                result = results[f"{kind}, {rows}"] = measure(kind, folder, rows)
                timed = result.get("selected") or result["grouped"]
                figures = f"{timed['seconds']:8.2f} {timed['cpu']:7.2f} {result['MB']:6.0f}"
                others = [name for name in result if name not in ("selected", "grouped", "MB")]
                more = "  ".join(f"{name} {result[name]:.4f}" for name in others)
                print(f"{kind:8} {rows:9} {figures}  {more}", flush=True)
    save(results)


def measure_shards(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """What the number of shards costs, on disk and on S3; `floor` is one request of each file after the other, in 64
    threads."""
    from s3_folder import S3Folder
    from s3_proxy import serving

    rows = options.shard_rows
    for place, counts in (("disk", options.shards), ("s3", options.s3)):
        for count in counts:
            with tempfile.TemporaryDirectory() as root:
                folder = Path(root) / "lab" / "dataset"
                folder.mkdir(parents=True)
                write_dataset(str(folder), count * rows, rows)
                with serving(S3Folder(Path(root), options.delay)) as server:
                    address = "s3://lab/dataset" if place == "s3" else str(folder)
                    for kind in [kind for kind in ("where", "query") if kind in options.only]:
                        before = server.requests
                        result = measure(kind, address, count * rows, server.address)
                        result["requests"] = server.requests - before
                        result["floor"] = 2 * count * options.delay / 64 if place == "s3" else 0.0
                        results[f"{kind}, {place}, {count} shards"] = result
                        timed = result["selected"]
                        figures = f"{timed['seconds']:8.2f} {timed['cpu']:7.2f} {result['MB']:6.0f}"
                        more = f"{place}, {count} shards, {result['requests']} requests, floor {result['floor']:.2f} s"
                        print(f"{kind:8} {count * rows:9} {figures}  {more}", flush=True)


def save(results: dict[str, Any]) -> None:
    """Beside the figures of other runs."""
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**before, **results}, indent=1, default=float))


if __name__ == "__main__":
    main()
