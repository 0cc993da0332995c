"""Packing: the samples of a step into sequences of at most so many tokens, dealt evenly to the workers.

Packing decides who computes what together, never which samples a step has (packed attention stays within a sample).
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapreplace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.inputs import InputError

_TOLERANCE = 0.05  # of a worker's tokens above the mean, which is not worth moving samples for


def deal_to_one(tokens: Sequence[int], budget: int, workers: int, rank: int) -> tuple[list[list[int]], int]:
    """(packs of one worker, each a list of indices into `tokens`, in order; the most packs that any worker has).

    tokens: of each sample of the step. There are as few packs as the budget allows, none is empty, and workers' numbers
    of them differ by at most one. Raises InputError for a sample above the budget or fewer samples than workers.
    """
    packs = _pack(tokens, budget, workers)
    return [sorted(pack) for pack in packs[rank::workers]], -(-len(packs) // workers)


def deal_lanes(
    tokens: NDArray[np.int64], lanes: NDArray[np.int64], budget: int, workers: int, rank: int
) -> tuple[list[list[int]], int]:
    """(packs of one worker, each a list of indices into `tokens`; the most packs that any worker has).

    tokens, lanes: (batch,) of each sample of the step. In the order of their lanes, samples are cut into parts of
    nearly the same tokens, one for each worker, so that a worker has the same lanes in every step but for those at its
    ends. Where samples are so long that a worker has 5 % more than the mean, the fewest that help go to workers with
    less. A worker has fewer packs than others only where it has fewer samples. Raises InputError like `deal_to_one`.
    """
    _check(tokens, budget, workers)
    order = np.argsort(lanes, kind="stable")
    ends = np.cumsum(tokens[order])
    homes = np.empty(len(tokens), np.int64)
    homes[order] = (2 * ends - tokens[order]) * workers // (2 * ends[-1])
    loads = np.bincount(homes, tokens, workers).astype(np.int64)
    _balance(tokens, order, homes, loads)
    most = _passes(tokens, homes, loads, budget)
    own = np.flatnonzero(homes == rank)
    packs = _fill(tokens[own].tolist(), _longest_first(tokens[own]), min(most, len(own)))
    return [own[sorted(pack)].tolist() for pack in packs], most


def _balance(
    tokens: NDArray[np.int64], order: NDArray[np.int64], homes: NDArray[np.int64], loads: NDArray[np.int64]
) -> None:
    """Move samples, one or an exchange at a time, from the fullest worker to the emptiest for as long as that helps."""
    most = loads.mean() * (1 + _TOLERANCE)
    if loads.max() <= most and loads.min() > 0:
        return
    counts = np.bincount(homes, minlength=len(loads))
    ends = np.cumsum(counts)
    held: dict[int, dict[int, list[int]]] = {}  # worker → tokens → indices of its samples that have so many

    def samples(worker: int) -> dict[int, list[int]]:
        if worker not in held:  # nothing was moved to it or from it before
            held[worker] = {}
            indices = order[ends[worker] - counts[worker] : ends[worker]]
            for index, size in zip(indices.tolist(), tokens[indices].tolist(), strict=True):
                held[worker].setdefault(size, []).append(index)
        return held[worker]

    def move(size: int, giver: int, taker: int) -> None:
        index = samples(giver)[size].pop()
        if not samples(giver)[size]:
            del samples(giver)[size]
        samples(taker).setdefault(size, []).append(index)
        homes[index] = taker
        for worker, sign in ((giver, -1), (taker, 1)):
            loads[worker] += sign * size
            counts[worker] += sign

    while loads.max() > most or loads.min() == 0:
        taker = int(loads.argmin())
        giver = int((loads * (counts > 1)).argmax()) if loads[taker] == 0 else int(loads.argmax())
        gap = int(loads[giver] - loads[taker])
        given, taken = samples(giver), [0, *samples(taker)] if counts[giver] > 1 else [*samples(taker)]
        exchanges = [
            (abs(2 * (a - b) - gap), b, a) for a in given for b in taken if 0 < a - b < gap or not loads[taker]
        ]
        if not exchanges:
            return
        _, back, size = min(exchanges)
        move(size, giver, taker)
        if back:
            move(back, taker, giver)


def _passes(tokens: NDArray[np.int64], homes: NDArray[np.int64], loads: NDArray[np.int64], budget: int) -> int:
    """The fewest packs within the budget that every worker's samples fit into, longest first."""
    longest, packs = tokens.max(), max(1, -(-int(loads.max()) // budget))

    def fits(worker: int) -> bool:
        own = tokens[homes == worker]
        filled = _fill(own.tolist(), _longest_first(own), packs)
        return all(own[pack].sum() <= budget for pack in filled)

    # Filled so, no pack has more than the mean and all but a part of the longest sample: few have to be tried.
    while packs > 1 and not all(map(fits, np.flatnonzero(loads + (packs - 1) * longest > packs * budget).tolist())):
        packs += 1
    return packs


def _check(tokens: Sequence[int] | NDArray[np.int64], budget: int, workers: int) -> None:
    if max(tokens) > budget:
        raise InputError(f"workers.pack_tokens {budget} is less than one sample of {max(tokens)} tokens; raise it")
    if len(tokens) < workers:
        raise InputError(f"a step of {len(tokens)} samples for {workers} workers; raise `batch` or use fewer workers")


def _longest_first(tokens: Any) -> list[int]:
    """Places in `tokens`: onto the lightest pack in this order is within a third of the best balance, everywhere."""
    return np.argsort(-np.asarray(tokens), kind="stable").tolist()


def _pack(tokens: Sequence[int], budget: int, workers: int) -> list[list[int]]:
    """The packs of all workers in turn, each in the order that it was filled in."""
    _check(tokens, budget, workers)
    order = _longest_first(tokens)
    each = max(1, -(-sum(tokens) // (budget * workers)))
    while True:
        packs = _fill(tokens, order, min(each * workers, len(tokens)))
        if max(sum(tokens[index] for index in pack) for pack in packs) <= budget:
            break
        each += 1
    return packs


def _fill(tokens: Sequence[int], order: Sequence[int], count: int) -> list[list[int]]:
    """`count` packs of the indices into `tokens`, each put in this order into the pack with the fewest tokens."""
    packs: list[list[int]] = [[] for _ in range(count)]
    lightest = [(0, 0, pack) for pack in range(count)]  # a heap of (tokens, samples, pack)
    for index in order:
        load, size, pack = lightest[0]
        packs[pack].append(index)
        heapreplace(lightest, (load + tokens[index], size + 1, pack))
    return packs
