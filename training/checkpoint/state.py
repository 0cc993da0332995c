"""What a run saves and continues from: weights, their averages and the optimizer's state, by name, as shards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from labeling.dataset import Store
from model.inputs import InputError
from training.checkpoint.files import checked_index, checkpoint_name, find_checkpoint
from training.checkpoint.index import AVERAGE, MODEL, OPTIMIZER, CheckpointIndex, torch_dtype
from training.checkpoint.loading import load_tensors, transformer_config
from training.config import TrainingConfig
from training.divergence import all_finite
from training.optimizer import MovingAverage
from training.packed_model import PREFIX

# Arguments of NextDiT that its weights do not depend on, so that they may differ from a checkpoint's.
_WEIGHTLESS = ("input_size", "rotary_max_length", "rotary_max_length_t", "soft_capping")


class TrainingState:
    """The weights, the optimizer's state and the averaged weights of a run, restored by all workers together.

    Each worker has its shards of them, and reads no more than these.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, average: MovingAverage) -> None:
        """model: a PackedModel as prepared for several processes."""
        module = model.module if isinstance(model, DistributedDataParallel) else model
        # FSDP2 puts gathered weights in their place for a while: these are the shards, which stay the same objects.
        self._parameters = {name.removeprefix(PREFIX): value for name, value in module.named_parameters()}
        self._averages = dict(zip(self._parameters, average.average, strict=True))
        self._optimizer = optimizer
        self._average = average

    def tensors(self) -> dict[str, Tensor]:
        """What is saved, by name; before the first step the optimizer has no state."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            tensors[f"{MODEL}{name}"] = parameter
            tensors[f"{AVERAGE}{name}"] = self._averages[name]
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{OPTIMIZER}{name}/{key}"] = value
        return tensors

    def initialize(self, config: TrainingConfig, group: Any = None) -> None:
        """Start from the averaged weights of `config.initialize`, or from those that the model has.

        Raises InputError for the weights of another model.
        """
        if config.initialize:
            folder, index = initial_weights(config)
            _load(folder, index, {f"{AVERAGE}{name}": value for name, value in self._parameters.items()}, group)
        self._average.reset()

    def restore(self, store: Store, step: int, group: Any = None) -> None:
        """Continue from the run's checkpoint after that many steps. Raises InputError for one that is damaged."""
        folder = store.subfolder(checkpoint_name(step))
        index = checked_index(folder)
        self._optimizer.state.clear()
        for name, parameter in self._parameters.items():
            begin = f"{OPTIMIZER}{name}/"
            for key, entry in index.by_parameter(begin):
                self._optimizer.state[parameter][key.removeprefix(begin)] = (
                    torch.zeros_like(parameter, requires_grad=False)
                    if entry.shape == tuple(parameter.shape)
                    else torch.zeros(entry.shape, dtype=torch_dtype(entry.dtype), device=parameter.device)
                )
        _load(folder, index, self.tensors(), group)

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether all weights and averages are finite, on every worker."""
        parameters = list(self._parameters.values())
        return all_finite([*parameters, *self._averages.values()], parameters[0].device)


def _load(folder: Store, index: CheckpointIndex, tensors: dict[str, Tensor], group: Any) -> None:
    load_tensors(folder, index, tensors, group, alone=not torch.distributed.is_initialized())


def initial_weights(config: TrainingConfig) -> tuple[Store, CheckpointIndex]:
    """The folder of `config.initialize` and what is in it. Raises InputError for weights of another model."""
    assert config.initialize is not None
    folder, state = find_checkpoint(config.initialize)
    given = transformer_config(folder, state)
    for name, value in config.model.model_dump().items():
        found = given.get(name)
        if name == "num_kv_heads":
            found = found or given["num_heads"]
        if name not in _WEIGHTLESS and _as_list(found) != _as_list(value):
            raise InputError(f"{config.initialize}: a model with {name} {found}, the configuration says {value}")
    return folder, checked_index(folder)


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
