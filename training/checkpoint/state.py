"""What a run saves and continues from: weights, their averages and the optimizer's state, by name, as shards."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from labeling.dataset import Store
from model.inputs import InputError
from training.adamw8bit import empty_state
from training.checkpoint.base import BASE, BaseModel
from training.checkpoint.files import checked_index, checkpoint_name, find_checkpoint, read_state
from training.checkpoint.index import AVERAGE, MODEL, OPTIMIZER, CheckpointIndex, torch_dtype
from training.checkpoint.loading import load_tensors, transformer_config
from training.config import TrainingConfig
from training.divergence import all_finite
from training.lora import stored_name
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
        parameters = {stored_name(name.removeprefix(PREFIX)): value for name, value in module.named_parameters()}
        self._parameters = {name: value for name, value in parameters.items() if value.requires_grad}
        # Those that an adapter is added to; a checkpoint says where they are from, and does not hold them.
        self._frozen = {name: value for name, value in parameters.items() if not value.requires_grad}
        self._base: BaseModel | None = None
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

    def facts(self) -> dict[str, Any]:
        """What state.json says besides: the model that an adapter is of."""
        return {BASE: asdict(self._base)} if self._base else {}

    def initialize(self, config: TrainingConfig, group: Any = None) -> None:
        """Start from the averaged weights of `config.initialize`, or from those that the model has.

        With an adapter, those are its frozen base. Raises InputError for the weights of another model.
        """
        if config.initialize:
            folder, index = initial_weights(config)
            taken = self._frozen or self._parameters
            _load(folder, index, {f"{AVERAGE}{name}": value for name, value in taken.items()}, group)
            if self._frozen:
                self._base = BaseModel.of(config.initialize, folder, index)
        self._average.reset()

    def restore(self, store: Store, step: int, group: Any = None) -> None:
        """Continue from the run's checkpoint after that many steps. Raises InputError for one that is damaged."""
        folder = store.subfolder(checkpoint_name(step))
        index = checked_index(folder)
        if self._frozen:
            self._base = BaseModel(**read_state(folder)[BASE])
            base, base_index = self._base.open()
            _load(base, base_index, {f"{AVERAGE}{name}": value for name, value in self._frozen.items()}, group)
        self._optimizer.state.clear()
        for name, parameter in self._parameters.items():
            begin = f"{OPTIMIZER}{name}/"
            for key, entry in index.by_parameter(begin):
                self._optimizer.state[parameter][key.removeprefix(begin)] = empty_state(
                    parameter, entry.shape, torch_dtype(entry.dtype)
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
    if BASE in state:
        raise InputError(
            f"{config.initialize}: a run of an adapter, which holds no model; `export` merges it into one to start from"
        )
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
