"""Packing: every sample once, within the budget, evenly dealt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from model.inputs import InputError
from training.plan.lanes import lane_turns
from training.plan.packing import deal_lanes, deal_to_one
from training.seeded_generator import SeededGenerator


def deal_packs(tokens: Sequence[int], budget: int, workers: int) -> list[list[list[int]]]:
    """The packs of every worker."""
    return [deal_to_one(tokens, budget, workers, rank)[0] for rank in range(workers)]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_packs_hold_every_sample_once_within_the_budget(workers: int) -> None:
    generator = SeededGenerator("packing", workers)
    tokens = [generator.integer(1, 64) for _ in range(40)]
    dealt = deal_packs(tokens, 100, workers)
    assert sorted(place for packs in dealt for pack in packs for place in pack) == list(range(40))
    assert all(0 < sum(tokens[place] for place in pack) <= 100 for packs in dealt for pack in packs)
    numbers = [len(packs) for packs in dealt]
    assert max(numbers) == min(numbers)
    loads = [sum(tokens[place] for pack in packs for place in pack) for packs in dealt]
    assert max(loads) - min(loads) <= 64


def test_packs_of_a_run_stay_the_same_with_every_version() -> None:
    """Who computes what together decides the rounding of a run that is resumed."""
    dealt = []
    for workers in (1, 2, 3, 8, 50):
        generator = SeededGenerator("pin", workers)
        dealt.append(deal_packs([generator.integer(1, 64) for _ in range(400)], 100, workers))
    assert hashlib.blake2b(repr(dealt).encode(), digest_size=8).hexdigest() == "b2c80780db73bf16"


def test_deal_to_one_gives_each_worker_its_own_packs() -> None:
    generator = SeededGenerator("one", 0)
    tokens = [generator.integer(1, 64) for _ in range(41)]
    for workers in (1, 3, 8):
        dealt = deal_packs(tokens, 100, workers)
        for rank in range(workers):
            assert deal_to_one(tokens, 100, workers, rank) == (dealt[rank], max(map(len, dealt)))


def test_there_are_as_few_packs_as_the_budget_allows() -> None:
    assert deal_packs([4, 4, 4, 4], 16, 1) == [[[0, 1, 2, 3]]]
    assert deal_packs([4, 4, 4, 4], 16, 2) == [[[0, 2]], [[1, 3]]]
    assert [len(packs) for packs in deal_packs([9, 9, 9, 1], 10, 2)] == [2, 2]


def test_workers_differ_by_one_pack_at_most() -> None:
    assert [len(packs) for packs in deal_packs([10, 10, 10], 10, 2)] == [2, 1]


def test_too_long_samples_and_too_many_workers_are_refused() -> None:
    with pytest.raises(InputError, match=r"pack_tokens 8 is less than one sample of 9 tokens"):
        deal_packs([1, 9], 8, 1)
    with pytest.raises(InputError, match="a step of 1 samples for 2 workers"):
        deal_packs([1], 8, 2)


def _step(batch: int, lanes: int, step: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens and lanes of a step of pictures of 16 and 32 tokens; every tenth is a set of up to 200."""
    generator = SeededGenerator("lanes", step)
    tokens = np.array([generator.integer(64, 200) if place % 10 == 0 else 16 << place % 2 for place in range(batch)])
    return tokens, lane_turns(lanes)[(np.arange(batch) + step * batch) % lanes]


def _dealt(
    tokens: NDArray[np.int64], lanes: NDArray[np.int64], budget: int, workers: int
) -> tuple[list[list[list[int]]], int]:
    """What every worker is dealt, and the most packs, on which all agree."""
    dealt = [deal_lanes(tokens, lanes, budget, workers, rank) for rank in range(workers)]
    assert len({most for _, most in dealt}) == 1
    return [packs for packs, _ in dealt], dealt[0][1]


@pytest.mark.parametrize("budget", [200, 300, 100_000])
@pytest.mark.parametrize("workers", [1, 2, 3, 7, 8, 64, 256])
def test_lanes_are_dealt_whole_evenly_and_within_the_budget(workers: int, budget: int) -> None:
    tokens, lanes = _step(256, 32)
    dealt, most = _dealt(tokens, lanes, budget, workers)
    assert sorted(place for packs in dealt for pack in packs for place in pack) == list(range(256))
    assert all(0 < tokens[pack].sum() <= budget for packs in dealt for pack in packs)
    loads = [sum(int(tokens[pack].sum()) for pack in packs) for packs in dealt]
    assert max(loads) <= max(1.05 * tokens.sum() / workers, tokens.max() + 16)
    assert max(len(packs) for packs in dealt) == most
    for packs in dealt:
        assert len(packs) == most or all(len(pack) == 1 for pack in packs)


@pytest.mark.parametrize(("lanes", "workers"), [(128, 64), (256, 256)])
def test_many_workers_get_5_percent_more_than_their_share_at_most(lanes: int, workers: int) -> None:
    tokens, of = _step(4096, lanes)
    loads = [sum(int(tokens[pack].sum()) for pack in packs) for packs in _dealt(tokens, of, 100_000, workers)[0]]
    assert tokens.max() + 16 < max(loads) <= 1.05 * tokens.sum() / workers


def test_worker_has_the_same_few_lanes_in_every_step() -> None:
    touched: set[int] = set()
    for step in range(50):
        _, lanes = _step(256, 64, step)
        packs, _ = deal_lanes(np.full(256, 16), lanes, 1000, 16, 5)
        touched |= set(lanes[[place for pack in packs for place in pack]].tolist())
    assert touched == {20, 21, 22, 23}
    moved: set[int] = set()
    for step in range(50):
        tokens, lanes = _step(1024, 64, step)
        packs, _ = deal_lanes(tokens, lanes, 100_000, 4, 1)
        moved |= set(lanes[[place for pack in packs for place in pack]].tolist())
    assert moved >= set(range(18, 30)) and len(moved) <= 22, "sets of all sizes change little"


def test_lanes_too_long_samples_and_too_many_workers_are_refused() -> None:
    with pytest.raises(InputError, match=r"pack_tokens 8 is less than one sample of 9 tokens"):
        deal_lanes(np.array([1, 9]), np.array([0, 1]), 8, 1, 0)
    with pytest.raises(InputError, match="a step of 1 samples for 2 workers"):
        deal_lanes(np.array([1]), np.array([0]), 8, 2, 0)
    packs, most = deal_lanes(np.array([9, 9, 1]), np.array([0, 0, 0]), 100, 3, 2)  # a sample for each worker
    assert len(packs) == most == 1
