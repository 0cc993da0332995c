"""A training's state as tensors by name: gathered from the worker's model, optimizer and averages, and put back.

Everything here is called by all workers together: their shards are gathered to whole tensors on rank 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from labeling.dataset import Store
from model.inputs import InputError
from training.checkpoint.files import MODEL, OPTIMIZER, checkpoint_name, load_checkpoint, load_training, save_checkpoint
from training.config import TrainingConfig
from training.divergence import all_finite
from training.optimizer import MovingAverage
from training.packed_model import PREFIX

if TYPE_CHECKING:
    from model.transformer import NextDiT

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
# Arguments of NextDiT that its weights do not depend on, so that they may differ from a checkpoint's.
_WEIGHTLESS = ("input_size", "rotary_max_length", "rotary_max_length_t", "soft_capping")


class TrainingState:
    """The weights, the optimizer's state and the averaged weights of a run, saved to and restored from its folder."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: MovingAverage,
        transformer_config: dict[str, Any],
    ) -> None:
        """model: a PackedModel as prepared for several processes; transformer_config: of its NextDiT."""
        self.model, self.optimizer, self.average = model, optimizer, average
        self.transformer_config = transformer_config

    def initialize(self, config: TrainingConfig) -> None:
        """Start from the weights of `config.initialize`, or from those that the model has."""
        if config.initialize:
            set_model_state_dict(self.model, load_initial_weights(config), options=_WHOLE)
        self.average.reset()

    def restore(self, store: Store, step: int) -> None:
        """Continue from the run's checkpoint after that many steps."""
        tensors = load_training(store, step)
        averaged, _ = load_checkpoint(f"{store.uri}/{checkpoint_name(step)}")
        set_model_state_dict(self.model, _prefixed(averaged.state_dict()), options=_WHOLE)
        self.average.reset()
        weights = {name.removeprefix(MODEL): value for name, value in tensors.items() if name.startswith(MODEL)}
        set_model_state_dict(self.model, _prefixed(weights), options=_WHOLE)
        states: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(OPTIMIZER):
                parameter, _, key = name.removeprefix(OPTIMIZER).rpartition("/")
                states.setdefault(f"{PREFIX}{parameter}", {})[key] = value
        if not states:  # of a checkpoint before the first step
            return
        groups = get_optimizer_state_dict(self.model, self.optimizer, options=StateDictOptions())["param_groups"]
        state = {"state": states, "param_groups": groups}
        set_optimizer_state_dict(self.model, self.optimizer, state, options=_WHOLE)

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether all weights and averages are finite, on every worker."""
        shards = [parameter.detach() for parameter in self.model.parameters()]
        return all_finite([*shards, *self.average.average], shards[0].device)

    def save(self, store: Store, facts: dict[str, Any], keep: int, rank: int) -> str | None:
        """Write the checkpoint of facts["step"] on rank 0; its address there, None on other ranks.

        facts: what state.json holds; keep: see `save_checkpoint`.
        """
        with self.average.applied():
            averaged = {name: value.clone() for name, value in get_model_state_dict(self.model, options=_WHOLE).items()}
        weights = get_model_state_dict(self.model, options=_WHOLE)
        # Before the first step an optimizer has no state, and to ask for it torch makes a step with gradients of zero.
        states = (
            get_optimizer_state_dict(self.model, self.optimizer, options=_WHOLE) if facts["step"] else {"state": {}}
        )
        if rank != 0:
            return None
        tensors = {f"{MODEL}{name.removeprefix(PREFIX)}": value for name, value in weights.items()}
        for name, state in states["state"].items():
            for key, value in state.items():
                tensors[f"{OPTIMIZER}{name.removeprefix(PREFIX)}/{key}"] = torch.as_tensor(value)
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        transformer = self._transformer({name.removeprefix(PREFIX): value for name, value in averaged.items()})
        return save_checkpoint(store, transformer, tensors, facts, keep)

    def _transformer(self, weights: dict[str, Tensor]) -> NextDiT:
        """A NextDiT that holds these weights, without a copy of them."""
        from model.transformer import NextDiT

        with torch.device("meta"):
            transformer = NextDiT.from_config(self.transformer_config)
        transformer.load_state_dict(weights, strict=True, assign=True)
        return transformer


def load_initial_weights(config: TrainingConfig) -> dict[str, Tensor]:
    """The weights of `config.initialize`, named as in a PackedModel. Raises InputError for those of another model."""
    assert config.initialize is not None
    transformer, _ = load_checkpoint(config.initialize)
    for name, value in config.model.model_dump().items():
        given = transformer.config.get(name)
        if name == "num_kv_heads":
            given = given or transformer.config["num_heads"]
        if name not in _WEIGHTLESS and _as_list(given) != _as_list(value):
            raise InputError(f"{config.initialize}: a model with {name} {given}, the configuration says {value}")
    return _prefixed(transformer.float().state_dict())


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _prefixed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{PREFIX}{name}": value for name, value in weights.items()}
