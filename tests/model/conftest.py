"""The published code's numbers, and our transformer with its weights."""

from __future__ import annotations

import pytest
from reference_vectors import DESCRIPTION, VECTORS
from safetensors.torch import load_file
from torch import Tensor

from model import NextDiT


@pytest.fixture(scope="session")
def vectors() -> dict[str, Tensor]:
    return load_file(VECTORS.with_suffix(".safetensors"))


@pytest.fixture(scope="module")
def transformer(vectors: dict[str, Tensor]) -> NextDiT:
    model = NextDiT(**DESCRIPTION["transformer"])
    weights = {key.removeprefix("transformer."): value for key, value in vectors.items() if key.startswith("transf")}
    model.load_state_dict(weights, strict=True)
    return model.eval()
