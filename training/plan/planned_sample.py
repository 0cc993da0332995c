"""What a plan says of the samples of a step, before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PlannedSample:
    """One sample of a step, before anything is read.

    index: number of the sample in the run; row: within the row group; views: of a set, in the order shown.
    tokens: image tokens of a square picture of the stream's size, which the aspects around it come close to.
    """

    index: int
    stream: int
    task: str
    shard: int
    row_group: int
    row: int
    views: tuple[int, ...]
    frames: int
    tokens: int
    drop_caption: bool
    degradation_seed: int
    noise_seed: int


# A planned sample, its noise levels (F,), and which frames the loss counts (F,).
Leveled = tuple[PlannedSample, NDArray[np.float32], NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class StepSizes:
    """What every worker has to know of all samples of a step.

    tokens: (batch,) image tokens; frames_in_loss: of the whole step; lanes: (batch,) the lane of each, None where the
    order of samples has none.
    """

    tokens: NDArray[np.int64]
    frames_in_loss: int
    lanes: NDArray[np.int64] | None
