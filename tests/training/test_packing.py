"""Packing: every sample once, within the budget, evenly dealt."""

from __future__ import annotations

import hashlib

import pytest

from model.inputs import InputError
from training.packing import deal_packs, deal_to_one
from training.seeded_generator import SeededGenerator


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


def test_what_one_worker_is_dealt_is_its_part_of_what_all_are() -> None:
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
