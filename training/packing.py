"""Packing: the samples of a step into sequences of at most so many tokens, dealt evenly to the workers.

Packing decides who computes what together, never which samples a step has (packed attention stays within a sample).
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapreplace

import numpy as np

from model.inputs import InputError


def deal_packs(tokens: Sequence[int], budget: int, workers: int) -> list[list[list[int]]]:
    """Deal samples to workers.

    tokens: of each sample of the step. Returns, for each worker, its packs, each a list of places in `tokens`, in
    order. There are as few packs as the budget allows, none is empty, and workers' numbers of them differ by at most
    one. Raises InputError for a sample above the budget or fewer samples than workers.
    """
    packs = _pack(tokens, budget, workers)
    return [[sorted(pack) for pack in packs[worker::workers]] for worker in range(workers)]


def deal_to_one(tokens: Sequence[int], budget: int, workers: int, rank: int) -> tuple[list[list[int]], int]:
    """(packs of one worker, as `deal_packs` deals them; the most packs that any worker has)."""
    packs = _pack(tokens, budget, workers)
    return [sorted(pack) for pack in packs[rank::workers]], -(-len(packs) // workers)


def _pack(tokens: Sequence[int], budget: int, workers: int) -> list[list[int]]:
    """The packs of all workers in turn, each in the order that it was filled in."""
    if max(tokens) > budget:
        raise InputError(f"workers.pack_tokens {budget} is less than one sample of {max(tokens)} tokens; raise it")
    if len(tokens) < workers:
        raise InputError(f"a step of {len(tokens)} samples for {workers} workers; raise `batch` or use fewer workers")
    # Longest first onto the lightest pack: within a third of the best balance, and the same on every machine.
    order = np.argsort(-np.asarray(tokens), kind="stable").tolist()
    each = max(1, -(-sum(tokens) // (budget * workers)))
    while True:
        packs = _fill(tokens, order, min(each * workers, len(tokens)))
        if max(sum(tokens[place] for place in pack) for pack in packs) <= budget:
            break
        each += 1
    return packs


def _fill(tokens: Sequence[int], order: Sequence[int], count: int) -> list[list[int]]:
    """`count` packs of the places in `tokens`, each put in this order into the pack with the fewest tokens."""
    packs: list[list[int]] = [[] for _ in range(count)]
    lightest = [(0, 0, pack) for pack in range(count)]  # a heap of (tokens, samples, pack)
    for place in order:
        load, size, pack = lightest[0]
        packs[pack].append(place)
        heapreplace(lightest, (load + tokens[place], size + 1, pack))
    return packs
