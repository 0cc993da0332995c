"""Steps whose loss or gradient is not finite, or whose loss is a spike: skipped or refused, and their samples named.

What is decided follows from the numbers of the whole step and of the steps before, which checkpoints hold. So all
workers decide the same, and a run that continues decides as it did.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from labeling.dataset import Store
from model.inputs import InputError
from training.monitor_config import AnomalyConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SKIPPED = "skipped.json"  # beside the checkpoints
_LEAST_LOSSES = 10  # before which no loss is a spike
_NAMED = 3  # samples in a message
_RECORDED = 16  # samples in skipped.json


@dataclass(frozen=True)
class Past:
    """What a run knows of its steps when it begins or continues.

    skipped: records of skipped.json; losses: of the last steps before the checkpoint, oldest first.
    """

    skipped: Sequence[Mapping[str, Any]] = ()
    losses: Sequence[float] = ()


def read_skipped(store: Store) -> list[dict[str, Any]]:
    """Records of the steps that a run has skipped, in order. Raises InputError for a file that is damaged."""
    try:
        return list(json.loads(store.read(SKIPPED)))
    except FileNotFoundError:
        return []
    except (ValueError, TypeError):
        raise InputError(f"{store.uri}/{SKIPPED}: damaged; restore it, or remove it") from None


class AnomalyWatch:
    """Decides whether a step changes the weights. Called by all workers together."""

    def __init__(
        self,
        config: AnomalyConfig,
        store: Store,
        device: torch.device,
        past: Past,
        name_samples: Callable[[Sequence[int]], list[dict[str, Any]]],
    ) -> None:
        """name_samples: what samples of these numbers are, asked on rank 0 alone."""
        self.config, self.store, self.device = config, store, device
        self._records = {int(record["step"]): dict(record) for record in past.skipped}
        self._losses = deque(past.losses, maxlen=config.window)
        self._name_samples = name_samples

    @property
    def watches(self) -> bool:
        """Whether every step is judged, for which it waits for the device."""
        return self.config.policy == "skip" or self.config.spike > 0

    @property
    def losses(self) -> list[float]:
        """Of the last steps that changed weights, for the checkpoint."""
        return list(self._losses)

    def was_skipped(self, step: int) -> bool:
        """Whether the run has skipped this step before."""
        return step in self._records

    def accepts(self, step: int, loss: Tensor, norm: Tensor, samples: Callable[[], list[tuple[int, float]]]) -> bool:
        """Whether the step, counted from 1, may change the weights; otherwise it is recorded.

        loss: this worker's part, on its device; norm: of the gradient; samples: gives this worker's samples of the
        step and their losses. Raises InputError, naming samples, where the policy is to stop, or too many are skipped.
        """
        import torch

        total = loss.detach().to(torch.float64, copy=True)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        value, gradient = float(total), float(norm)
        if math.isfinite(value) and math.isfinite(gradient):
            limit = self.config.spike * median(self._losses) if len(self._losses) >= _LEAST_LOSSES else 0.0
            if not limit or value <= limit:
                self._losses.append(value)
                return True
            reason = f"the loss of {value:.4g} is more than {self.config.spike:g} times the median before it"
        else:
            what = "the gradient" if math.isfinite(value) else "the loss"
            reason = f"{what} is not finite"
        blamed = self.blame(samples())
        if self.config.policy == "stop":
            raise InputError(
                f"{self.store.uri}: step {step}: {reason}{said(blamed)}; see them with `report` --replay-step {step}, "
                "or go on without such steps: --set anomalies.policy=skip"
            )
        numbers = {"loss": _json_number(value), "gradient_norm": _json_number(gradient)}
        self._records[step] = {"step": step, "reason": reason, **numbers, "samples": blamed[:_RECORDED]}
        if _writes():
            records = [record for _, record in sorted(self._records.items())]
            self.store.put(SKIPPED, json.dumps(records, indent=1).encode())
        recent = sum(step - self.config.window < other <= step for other in self._records)
        if recent > self.config.most:
            raise InputError(
                f"{self.store.uri}: {recent} of the last {self.config.window} steps were skipped, now step {step} "
                f"({reason}{said(blamed)}); lower optimizer.learning_rate, or see `report` --replay-step {step}"
            )
        return False

    def blame(self, samples: list[tuple[int, float]], group: Any = None) -> list[dict[str, Any]]:
        """The samples of a step, those that are not finite or have the greatest losses first, named.

        samples: those of this worker, with their losses. group: of the workers; None is the default one.
        """
        import torch

        gathered = [samples]
        if torch.distributed.is_initialized():
            gathered = [[] for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(gathered, samples, group=group)
        losses: dict[int, float] = {}
        for index, loss in (pair for each in gathered for pair in each):
            losses[index] = max(loss, losses.get(index, 0.0), key=_worst)
        worst = sorted(losses, key=lambda index: (_worst(losses[index]), -index), reverse=True)[:_RECORDED]
        bad = [index for index in worst if not math.isfinite(losses[index])]
        named = [self._name_samples(bad or worst) if _writes() else []]
        if torch.distributed.is_initialized():  # whoever is asked says the same
            torch.distributed.broadcast_object_list(named, group=group)
        return [{**sample, "loss": _json_number(losses[sample["index"]])} for sample in named[0]]


def said(samples: Sequence[Mapping[str, Any]]) -> str:
    """The first samples of a list in words, "" where there are none."""
    words = [
        f"sample {one['index']} ({one['task']}, id {one['id']}, row {one['row']} of {one['dataset']} shard "
        f"{one['shard']}, loss {one['loss']})"
        for one in samples[:_NAMED]
    ]
    more = [f"and {len(samples) - _NAMED} more"] if len(samples) > _NAMED else []
    return ": " + ", ".join(words + more) if words else ""


def _writes() -> bool:
    import torch

    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _worst(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def _json_number(value: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return round(value, 6) if math.isfinite(value) else str(value)
