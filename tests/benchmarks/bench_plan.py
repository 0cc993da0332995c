"""`make bench-plan`: what a plan over millions of rows costs to make and to ask, far into a run as at its start.

The floor of asking is drawing what a sample is made of: the rest is finding its row. Ratios are of medians of rounds
that alternate between what is compared.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rounds import alternate

from training.config import ObjectiveConfig, TrainingConfig
from training.dealing import Dealer
from training.manifest import Manifest, SourcePin
from training.pinned_shards import ShardPin, Shards
from training.plan import Plan
from training.seeded_generator import SeededGenerator
from training.streams import Stream

BATCH, WINDOW, FAR = 256, 8, 400_000
LARGE_BATCH, WORKERS, MANY_SHARDS = 4096, 512, 100_000
# Each is to be at most this; start_growth is of ten times the shards. deal_seconds: a worker's part of a step of 4,096
# samples for 512 workers; first_sample_seconds: from a manifest of 10⁸ rows in memory to the first sample.
TARGETS = {
    "far_over_near": 1.5,
    "large_over_small": 3.0,
    "start_growth": 15.0,
    "deal_seconds": 0.005,
    "first_sample_seconds": 2.0,
}


def main(rounds: int = 15) -> None:
    small, large = build_plan(500), build_plan(5000)
    steps = iter(range(1, 1_000_000))
    works: list[Callable[[], object]] = [
        lambda: large.step(next(steps)),
        lambda: large.step(FAR + next(steps)),
        lambda: small.step(next(steps)),
        lambda: [draw_sample(next(steps)) for _ in range(BATCH)],
    ]
    near, far, little, floor = alternate(works, rounds)
    start_small, start_large = alternate([lambda: build_plan(500), lambda: build_plan(5000)], 3)
    config = TrainingConfig(
        name="plan",
        steps=1,
        batch=LARGE_BATCH,
        size=64,
        mixture={"a": {"dataset": "none", "tasks": ["text2image"]}},
    )
    manifest = build_manifest(MANY_SHARDS)
    dealer = Dealer(manifest, config)
    # A worker asks for the steps of a run one after another, of which each is in the block of the one before or next.
    (deal,) = alternate([lambda: dealer.deal(next(steps), 17, WORKERS)], rounds)
    (first,) = alternate([lambda: Dealer(manifest, config).deal(0, 0, WORKERS)], 3)
    figures = {
        "deal_seconds": deal,
        "first_sample_seconds": first,
        "rows": 5000 * 1024,
        "start_seconds": start_large,
        "step_seconds": near,
        "samples_per_second": BATCH / near,
        "share_of_floor": floor / near,
        "far_over_near": far / near,
        "large_over_small": near / little,
        "start_growth": start_large / start_small,
    }
    table = Table("figure", "value", "target")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3g}", f"≤ {TARGETS[name]}" if name in TARGETS else "")
    Console().print(table)
    missed = [name for name, most in TARGETS.items() if figures[name] > most]
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


def build_manifest(shards: int) -> Manifest:
    """A manifest of that many shards of 1024 rows."""
    pins = [ShardPin(f"{number:06d}", [64] * 16, {}, {"text2image@64": None}) for number in range(shards)]
    stream = Stream("a", "text2image", 1.0, 64, shards * 1024)
    return Manifest({"a": SourcePin("a", "pictures", {}, Shards.of(pins))}, [stream], 128)


def build_plan(shards: int) -> Plan:
    """A plan over that many shards."""
    return Plan(build_manifest(shards), 0, BATCH, ObjectiveConfig(), WINDOW)


def draw_sample(index: int) -> tuple[float, int, int]:
    """The random numbers of a sample, which no plan can do without."""
    generator = SeededGenerator(0, "sample", index)
    return generator.uniform(), generator.word(), generator.word()


if __name__ == "__main__":
    main()
