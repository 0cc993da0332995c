"""How a run is watched, as a configuration states it: validation, and steps whose numbers are bad."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from model.inputs.schema import Section


class ValidationConfig(Section):
    """Rows that the model is not trained on; every checkpoint's loss on them is measured.

    share: of the rows of every source; 0 trains on all and measures nothing. samples: how many are measured, rounded up
    to whole steps of `batch`. pictures: so many rows of every task, of validation where there are such, are sampled
    from the averaged weights at every checkpoint, from the same noise; denoise_steps, guidance: of each.
    """

    share: float = Field(default=0.0, ge=0, le=0.5)
    samples: int = Field(default=256, gt=0)
    pictures: int = Field(default=0, ge=0, le=16)
    denoise_steps: int = Field(default=20, gt=0, le=1000)
    guidance: float = Field(default=1.0, ge=1)


class AnomalyConfig(Section):
    """What becomes of a step whose loss or gradient is not finite, or whose loss is a spike.

    policy: `stop` ends the run, naming the samples; `skip` leaves the weights as they are, writes the samples into
    RUN/skipped.json and goes on. A step that was skipped is skipped again whenever the run continues from before it.
    spike: a loss above so many times the median of the last `window` steps is one; 0 looks for none.
    most: steps skipped among the last `window`, beyond which the run stops all the same.
    """

    policy: Literal["stop", "skip"] = "stop"
    spike: float = Field(default=0.0, ge=0)
    window: int = Field(default=100, ge=10, le=10_000)
    most: int = Field(default=10, gt=0)

    @field_validator("spike")
    @classmethod
    def _above_the_median(cls, spike: float) -> float:
        if 0 < spike <= 1:
            raise ValueError("losses are above their median half of the time: give 3 or more, or 0 for none")
        return spike
