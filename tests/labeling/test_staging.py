"""Inputs that are copied to a device ahead: taken where a batch is joined, and the same to the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from labeling.networks.batches import in_batches
from labeling.networks.staging import LEAST_BYTES, stage, staging


@pytest.fixture
def copied() -> Iterator[list[str]]:
    """What happens to copies by a stand-in for a device, in order."""
    happened: list[str] = []

    def copy(array: np.ndarray[Any, Any]) -> tuple[torch.Tensor, Callable[[], None]]:
        happened.append(f"begun {array.shape}")
        return torch.from_numpy(array.copy()), lambda: happened.append(f"awaited {array.shape}")

    staging.begin(ROWS, copy)
    yield happened
    staging.forget(ROWS)
    assert not any(staging.joined([array]) is not None for row in ROWS for array in row["pair"][:1])


def inputs() -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {"pair": (random.integers(0, 256, (1, 3, 40, side), np.uint8), (4, 5)), "few": np.zeros((1, 2)), "name": "x"}
        for side in (40, 40, 60)
    ]


ROWS = inputs()


def test_arrays_of_any_inputs_are_taken_where_a_batch_is_joined(copied: list[str]) -> None:
    def run(batch: Any, counts: Any) -> list[float]:
        return [float(one.float().mean()) for one in batch["pixels"]]

    rows = [{"pixels": row["pair"][0]} for row in ROWS]
    found = in_batches(rows, "other", run)
    assert found == [float(torch.from_numpy(row["pixels"]).float().mean()) for row in rows]
    assert copied == ["begun (1, 3, 40, 40)"] * 2 + ["begun (1, 3, 40, 60)"] + [
        "awaited (1, 3, 40, 40)", "awaited (1, 3, 40, 40)", "awaited (1, 3, 40, 60)",
    ]  # fmt: skip


def test_batch_with_an_array_that_is_not_staged_is_joined_as_ever(copied: list[str]) -> None:
    new = np.ones_like(ROWS[0]["pair"][0])
    (first, second) = in_batches(
        [{"pixels": new}, {"pixels": ROWS[1]["pair"][0]}], "meta", lambda batch, counts: list(batch["pixels"])
    )
    assert first.shape == second.shape == new.shape[1:]
    assert not [one for one in copied if one.startswith("awaited")]


def test_cpus_need_no_copy() -> None:
    rows = [np.zeros(LEAST_BYTES, np.uint8)]
    stage(rows, "cpu")
    assert staging.joined(rows) is None
