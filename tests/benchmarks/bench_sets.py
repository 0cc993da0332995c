"""What grouping pictures of people costs: time, memory and figures of synthetic face embeddings. `make bench-sets`.

Each row is 20 pictures a person, whose embeddings lie about the person's as dlib's do (0.36 from its mean; persons are
0.75 apart). Linking is that of faiss, clustering ours; the floor beside them reads the vectors once and multiplies them
with the middles of the cells, which any inverted file has to. The slope is that of log CPU time over log rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULT = Path("runs/bench/sets.json")
PICTURES, WIDTH, DISTANCE = 20, 128, 0.5
BLOCK = 1 << 16


def write_vectors(path: Path, rows: int) -> None:
    """Embeddings of rows // PICTURES persons, a block at a time; a person's lie apart from each other."""
    people, random = rows // PICTURES, np.random.default_rng(0)
    centers = random.standard_normal((people, WIDTH)).astype(np.float32)
    centers *= 0.53 / np.linalg.norm(centers, axis=1, keepdims=True)
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (people * PICTURES, WIDTH))
    for start in range(0, len(vectors), BLOCK):
        person = np.arange(start, min(start + BLOCK, len(vectors))) % people
        noise = random.standard_normal((len(person), WIDTH)).astype(np.float32)
        vectors[start : start + BLOCK] = centers[person] + noise * 0.3 / np.sqrt(WIDTH)


def measure(rows: int) -> dict[str, Any]:
    """Figures of one size, in a process of its own."""
    from labeling.sets.graph import EXACT, cluster, link, pair_scores

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vectors.npy")
        write_vectors(path, rows)
        vectors = np.load(path, mmap_mode="r")
        count = len(vectors)
        truth = np.arange(count) % (rows // PICTURES)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        floor = _floor(vectors) if count > EXACT else None
        started, cpu = time.perf_counter(), time.process_time()
        links = link(vectors, DISTANCE)
        linked = time.perf_counter()
        groups = cluster(count, links, DISTANCE)
        ended = time.perf_counter()
        precision, recall = pair_scores(groups, truth)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "rows": count,
        "link_s": linked - started,
        "cluster_s": ended - linked,
        "cpu_s": time.process_time() - cpu,
        "floor_s": floor,
        "us_a_row": (ended - started) / count * 1e6,
        "mb": peak / 1024,
        "bytes_a_row": (peak - before) * 1024 / count,
        "links": len(links.one),
        "precision": precision,
        "recall": recall,
    }


def _floor(vectors: Any) -> float:
    middles = np.ascontiguousarray(vectors[: int(4 * np.sqrt(len(vectors)))])
    started = time.perf_counter()
    for start in range(0, len(vectors), 8192):
        (np.ascontiguousarray(vectors[start : start + 8192]) @ middles.T).argmax(axis=1)
    return time.perf_counter() - started


def main() -> None:
    """Measure each size, print a table, and write the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 80_000, 320_000, 1_300_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    results = []
    print(f"{'rows':>9} {'link s':>8} {'cluster s':>9} {'floor s':>8} {'CPU s':>7} {'µs/row':>7} {'MB':>6} "
          f"{'bytes/row':>9} {'precision':>9} {'recall':>7}")  # fmt: skip
    for rows in arguments.rows:
        command = [sys.executable, __file__, "--one", str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
        one = json.loads(done.stdout.splitlines()[-1])
        results.append(one)
        floor = "" if one["floor_s"] is None else f"{one['floor_s']:.2f}"
        print(f"{one['rows']:>9,} {one['link_s']:>8.2f} {one['cluster_s']:>9.2f} {floor:>8} {one['cpu_s']:>7.1f} "
              f"{one['us_a_row']:>7.1f} {one['mb']:>6.0f} {one['bytes_a_row']:>9.0f} {one['precision']:>9.4f} "
              f"{one['recall']:>7.4f}", flush=True)  # fmt: skip
    if len(results) > 1:
        times = [np.log(one["cpu_s"]) for one in results]
        slope = float(np.polyfit(np.log([one["rows"] for one in results]), times, 1)[0])
        print(f"CPU time grows with rows to the power {slope:.2f}")
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps({"slope": slope, "rows": results}, indent=1))


if __name__ == "__main__":
    main()
