"""`make bench-plan`: what planning costs, and how good the order of samples is, beside the order of version 1.

Seconds are of the CPU, medians of rounds that alternate between what is compared. The floor of planning a step is
drawing its random words. Opening a run of 10⁵ shards of 1,000 rows is measured in a process of its own, as a reader
does it. Reads, mixing and balance are played through (order_quality.py). Results go to runs/bench/plan.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from order_quality import (
    pictures_manifest,
    read_ratio,
    run_config,
    shuffle_variance,
    small_order,
    sorted_variance,
    stage2_manifest,
    token_imbalance,
)
from rich.console import Console
from rich.table import Table
from rounds import alternate

from labeling.dataset import open_store
from training.config import TrainingConfig, load_config
from training.plan.dealing import Dealer
from training.plan.manifest import Manifest, SourcePin
from training.plan.pinned_shards import ShardPin, Shards
from training.plan.streams import Stream
from training.seeded_generator import indexed_words

BATCH, FAR = 256, 400_000
LARGE_BATCH, WORKERS, MANY_SHARDS = 4096, 512, 100_000
RESULT = Path("runs/bench/plan.json")
# Each is to be at most this. deal_seconds: a worker's part of a step of 4,096 samples for 512 workers;
# first_sample_seconds: from a run's folder with 10⁸ rows to the first samples of a worker.
TARGETS = {
    "deal_seconds": 0.005,
    "first_sample_seconds": 2.0,
    "far_over_near": 1.5,
    "large_over_small": 3.0,
    "read_ratio_8": 1.5,
    "read_ratio_64": 1.5,
    "shuffle_variance": 1.3,
    "shuffle_variance_256": 1.3,
    "sorted_variance": 1.3,
    "imbalance": 0.05,
}
# What a reader does first, in a process of its own; it prints CPU seconds of each part, and bytes.
OPEN = """
import json, sys, time
import psutil, pyarrow
from labeling.dataset import open_store
from training.config import TrainingConfig
from training.plan.dealing import Dealer
from training.plan.manifest import Manifest
config = TrainingConfig(**json.loads(sys.argv[2]))
process, marks = psutil.Process(), [time.process_time()]
before = process.memory_full_info()
manifest = Manifest.read(open_store(sys.argv[1]))
marks.append(time.process_time())
dealer = Dealer(manifest, config)
marks.append(time.process_time())
dealer.deal(0, 3, 512)
marks.append(time.process_time())
after = process.memory_full_info()
shared = getattr(after, "shared", 0) - getattr(before, "shared", 0)
print(*(b - a for a, b in zip(marks, marks[1:])), after.rss - before.rss, shared)
"""


def main(rounds: int = 15) -> None:
    figures = plan_seconds(rounds) | opening() | quality()
    table = Table("figure", "value", "version 1", "target")
    for name, value in figures.items():
        if not name.endswith("_version_1"):
            first = figures.get(f"{name}_version_1")
            target = f"≤ {TARGETS[name]}" if name in TARGETS else ""
            table.add_row(name, f"{value:.3g}", "" if first is None else f"{first:.3g}", target)
    Console(width=100).print(table)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"figures": figures, "targets": TARGETS}, indent=1))
    if missed := [name for name, most in TARGETS.items() if figures[name] > most]:
        sys.exit(f"missed: {', '.join(missed)}")


def plan_seconds(rounds: int) -> dict[str, float]:
    """What planning a step costs; each step is asked for once, in order."""
    steps, config = iter(range(1, 1_000_000)), run_config(BATCH)
    small, large = (pictures_manifest(shards, 16, 64, config.lanes) for shards in (500, 5000))
    plans = [Dealer(each, config).plan for each in (large, large, small, replace(large, lanes=0))]
    near, far, little, first = alternate(
        [
            lambda: plans[0].draw(next(steps), range(BATCH)),
            lambda: plans[1].draw(FAR + next(steps), range(BATCH)),
            lambda: plans[2].draw(next(steps), range(BATCH)),
            lambda: plans[3].draw(next(steps), range(BATCH)),
        ],
        4 * rounds,
        time.process_time,
    )
    (floor,) = alternate(
        [lambda: indexed_words((0, "floor"), next(steps) * BATCH, BATCH, 8)], rounds, time.process_time
    )
    wide = run_config(LARGE_BATCH)
    manifest = pictures_manifest(5000, 16, 64, wide.lanes)
    dealers = [Dealer(each, wide) for each in (manifest, replace(manifest, lanes=0))]
    mixed_config = load_config("stage2", {"batch": LARGE_BATCH})
    dealers.append(Dealer(stage2_manifest(mixed_config.lanes), mixed_config))
    # A worker asks for the steps of a run one after another, of which each is in the block of the one before or next.
    works: list[Callable[[], object]] = [lambda one=one: one.deal(next(steps), 17, WORKERS) for one in dealers]
    deal, deal_first, deal_mixed = alternate(works, 4 * rounds, time.process_time)
    return {
        "step_seconds": near,
        "step_seconds_version_1": first,
        "microseconds_a_sample": near / BATCH * 1e6,
        "microseconds_a_sample_version_1": first / BATCH * 1e6,
        "share_of_floor": floor / near,
        "far_over_near": far / near,
        "large_over_small": near / little,
        "deal_seconds": deal,
        "deal_seconds_version_1": deal_first,
        "deal_seconds_of_stage2": deal_mixed,
    }


def opening() -> dict[str, float]:
    """A run of 10⁵ shards of 1,000 rows, of which 3 % serve no task: what each reader needs, beside version 1."""
    config = run_config(LARGE_BATCH)
    bits = np.packbits(np.random.default_rng(0).random(1000) < 0.97).tobytes().hex()

    def pins() -> Iterator[ShardPin]:
        for number in range(MANY_SHARDS):
            content = dict.fromkeys(("latents-256", "text"), f"{number:032x}")
            yield ShardPin(f"{number:06d}", [16] * 62 + [8], content, {"text2image@256": f"{bits[:-8]}{number:08x}"})

    stream = Stream("a", "text2image", 1.0, 256)
    shards = Shards.of(pins())
    stream = replace(stream, rows=int(shards.counts(stream.key).sum(dtype=np.int64)))
    manifest = Manifest({"a": SourcePin("a", "pictures", {}, shards)}, [stream], config.lanes)
    with tempfile.TemporaryDirectory() as folder:
        store, old = open_store(f"{folder}/run"), open_store(f"{folder}/old")
        manifest.write(store)
        source = {"dataset": "a", "kind": "pictures", "declarations": {}, "shards": [vars(pin) for pin in pins()]}
        document = {"version": 1, "sources": {"a": source}, "streams": [asdict(stream)]}
        old.put("manifest.json", json.dumps(document, separators=(",", ":")).encode())
        sizes = [next(iter(each.files().values())).size for each in (store, old)]
        found = {"manifest_bytes": float(sizes[0]), "manifest_bytes_version_1": float(sizes[1])}
        for name, uri in (("", store.uri), ("_version_1", old.uri)):
            opened, made, first, rss, shared = open_in_process(uri, config)
            found |= {
                f"open_seconds{name}": opened,
                f"plan_seconds{name}": made,
                f"first_sample_seconds{name}": opened + made + first,
                f"reader_megabytes{name}": rss / 1e6,
                f"reader_megabytes_not_mapped{name}": (rss - shared) / 1e6,
            }
    return found


def open_in_process(run: str, config: TrainingConfig) -> list[float]:
    """CPU seconds to open the manifest, to make the plan, to deal a first step; bytes, and those of mapped files."""
    command = [sys.executable, "-c", OPEN, run, config.model_dump_json()]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(each) for each in done.stdout.split()]


def quality() -> dict[str, float]:
    """How rows are mixed, what workers read, and how evenly they are loaded."""
    found = {}
    for name, lanes in (("", None), ("_version_1", 0)):
        found |= {
            f"shuffle_variance{name}": shuffle_variance(lanes=lanes),
            f"shuffle_variance_256{name}": shuffle_variance(256, lanes=lanes, shards=200),
            f"sorted_variance{name}": sorted_variance(lanes=lanes),
        }
        found |= {f"demo_{key}{name}": value for key, value in asdict(small_order(lanes)).items()}
        config = run_config(BATCH)
        manifest = pictures_manifest(2000, 10, 16, config.lanes if lanes is None else 0)
        for workers in (1, 8, 64):
            ratio = read_ratio(manifest, config, workers, 100 if workers == 1 else 400, 200)
            found |= {f"read_ratio_{workers}{name}": ratio.row_groups, f"shards_read_{workers}{name}": ratio.shards}
    stage1 = load_config("stage1-256")
    worst = max(token_imbalance(pictures_manifest(500, 10, 16, stage1.lanes), stage1, w)[0] for w in (1, 2, 8, 64))
    found["imbalance"] = worst
    found["imbalance_with_aspects"] = token_imbalance(
        pictures_manifest(500, 10, 16, stage1.lanes), stage1, 64, aspects=True
    )[0]
    for batch, workers in ((256, 8), (256, 16), (1024, 64), (4096, 64)):
        config = load_config("stage2", {"batch": batch, "workers": {"count": workers}})
        mean, _, best = token_imbalance(stage2_manifest(config.lanes), config, workers, 5)
        found |= {f"imbalance_stage2_{batch}_{workers}": mean, f"imbalance_stage2_{batch}_{workers}_version_1": best}
        found["imbalance"] = max(found["imbalance"], mean)
    return found


if __name__ == "__main__":
    main()
