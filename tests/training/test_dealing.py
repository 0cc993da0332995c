"""Dealing the plan: the same samples for any number of workers, who read little more than these, well mixed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from training.config import load_config
from training.plan.dealing import Dealer
from training.plan.planned_sample import PlannedSample


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What `make bench-plan` measures with."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import order_quality

    return order_quality


def _dealt(dealer: Dealer, step: int, workers: int) -> Iterator[tuple[PlannedSample, list[float], list[bool]]]:
    for rank in range(workers):
        for pack in dealer.deal(step, rank, workers)[0]:
            for planned, levels, in_loss in pack:
                yield planned, levels.tolist(), in_loss.tolist()


@pytest.mark.parametrize("lanes", [None, 5])
def test_step_is_the_same_for_any_workers_and_after_a_resume(quality: ModuleType, lanes: int | None) -> None:
    changes = {"batch": 70, "objective": {"known_frame_share": 0.5}, "reader": {"lanes": lanes}}
    config = load_config("stage2", changes)
    manifest = quality.stage2_manifest(config.lanes, shards=6)
    before = Dealer(manifest, config)
    for step in range(4):
        before.deal(step, 0, 3)
    for step in (3, 40):
        expected = sorted(_dealt(before, step, 1), key=lambda sample: sample[0].index)
        assert [planned.index for planned, _, _ in expected] == list(range(70 * step, 70 * (step + 1)))
        for workers in (2, 3, 8, 64):
            resumed = Dealer(manifest, config)
            assert sorted(_dealt(resumed, step, workers), key=lambda sample: sample[0].index) == expected
            counted = {resumed.deal(step, rank, workers)[2] for rank in range(workers)}
            assert counted == {sum(sum(in_loss) for _, _, in_loss in expected)}


def test_worker_of_64_reads_little_more_than_its_samples(quality: ModuleType) -> None:
    config = quality.run_config(128)
    for lanes, least, most in ((config.lanes, 0.9, 1.5), (0, 10, 17)):
        manifest = quality.pictures_manifest(400, 10, 16, lanes)
        assert least < quality.read_ratio(manifest, config, 64, 120, 80).row_groups < most


def test_batch_is_mixed_as_by_a_full_shuffle(quality: ModuleType) -> None:
    assert quality.shuffle_variance() < 1.1 < 4 < quality.shuffle_variance(lanes=0)
    assert quality.sorted_variance(shards=100) < 1.3


def test_tokens_are_even_where_samples_allow_it(quality: ModuleType) -> None:
    config = load_config("stage2", {"batch": 256, "workers": {"count": 8}})
    mean, most, _ = quality.token_imbalance(quality.stage2_manifest(config.lanes, 20), config, 8, 4)
    assert mean <= most <= 0.05


def test_few_rows_are_drawn_as_without_lanes(quality: ModuleType) -> None:
    """At the demo's sizes, where there are more lanes than rows of some tasks."""
    lanes, first = (vars(quality.small_order(lanes, steps=300)) for lanes in (None, 0))
    assert lanes["uneven"] <= 1 and first["uneven"] <= 1
    assert lanes == pytest.approx(first, rel=0.02, abs=1)
    assert lanes["pictures"] == pytest.approx(first["pictures"], rel=0.01)
