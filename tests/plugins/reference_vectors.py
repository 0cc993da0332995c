"""Numbers of the published code at small sizes: inputs, weights and outputs, described in a JSON beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

VECTORS = Path(__file__).parents[1] / "model" / "vectors" / "onediffusion_reference"
DESCRIPTION: dict[str, Any] = json.loads(VECTORS.with_suffix(".json").read_text())


def cases(kind: str) -> list[str]:
    """Names of the cases of a kind: forward, sample or rays."""
    return [name for name, case in DESCRIPTION["cases"].items() if case["kind"] == kind]


def relative(values: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest expected number."""
    return float(((values - expected).abs().max() / expected.abs().max()).detach())
