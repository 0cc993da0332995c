"""Tensors from a checkpoint: whole ones, or the shards that a process has, in memory that is theirs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from labeling.dataset import Store
from model.inputs import InputError
from training.checkpoint.base import BASE, BaseModel
from training.checkpoint.files import checked_index, checkpoint_name, damaged, explained_damage, find_checkpoint
from training.checkpoint.index import AVERAGE, MODEL, TRANSFORMER, CheckpointIndex, torch_dtype
from training.lora import LoraConfig, adapter_file, merge_adapter

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from model.transformer import NextDiT

Weights = Literal["averaged", "live"]
TRANSFORMER_CONFIG = "transformer"  # in state.json: what NextDiT is made with


def load_tensors(
    folder: Store, index: CheckpointIndex, tensors: Mapping[str, Tensor], group: Any = None, alone: bool = True
) -> None:
    """Fill tensors, by their names in the checkpoint, in place; a DTensor with the shard that this process has.

    folder: of the checkpoint; group: that plans together, unless this process is `alone`.
    Raises InputError for a file that is damaged, naming it, and for a tensor that is missing or of another shape.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

    from training.checkpoint.shards import ShardReader

    for name, tensor in tensors.items():
        if name not in index.tensors:
            raise InputError(f"{folder.uri}: holds no {name}; it is of another model")
        if index.tensors[name].shape != tuple(tensor.shape):
            raise InputError(f"{folder.uri}: {name} is {index.tensors[name].shape}, the model's {tuple(tensor.shape)}")
    with explained_damage(folder), cause_raised(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(
            dict(tensors),
            storage_reader=ShardReader(folder, index),
            planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=group,
            no_dist=alone,
        )


@contextmanager
def cause_raised() -> Iterator[None]:
    """Raise what a process has met, in place of torch.distributed.checkpoint's report about all of them."""
    import torch.distributed.checkpoint as dcp

    try:
        yield
    except dcp.CheckpointException as error:
        found = [failure[0] for _, failure in sorted(error.failures.items())]
        raise next((each for each in found if isinstance(each, InputError)), found[0]) from None


def load_training(store: Store, step: int) -> dict[str, Tensor]:
    """All tensors of a run's checkpoint, whole: model.NAME, average.NAME, optimizer.NAME/KEY."""
    import torch

    folder = store.subfolder(checkpoint_name(step))
    index = checked_index(folder)
    tensors = {name: torch.empty(entry.shape, dtype=torch_dtype(entry.dtype)) for name, entry in index.tensors.items()}
    load_tensors(folder, index, tensors)
    return tensors


def load_checkpoint(
    uri: str | Path, weights: Weights = "averaged", dtype: torch.dtype | None = None
) -> tuple[NextDiT, dict[str, Any]]:
    """(transformer in eval mode, state) of a checkpoint, or of a run's newest one.

    uri: RUN, RUN/checkpoints/step-…, or any folder with transformer/ in diffusers layout (its state is then {}).
    weights: the averaged ones, or those that the optimizer moved last. dtype: of the weights, None as stored. An
    adapter is merged into the model that it is of.
    Memory beyond the model is some hundred megabytes. Raises InputError when there is no whole checkpoint, for one that
    is damaged, and for live weights of a folder that has only averaged ones.
    """
    import torch

    from model.transformer import NextDiT

    folder, state = find_checkpoint(str(uri))
    adapter = read_adapter(folder, state, weights) if BASE in state else None
    base, index = BaseModel(**state[BASE]).open() if adapter else (folder, checked_index(folder))
    names = _names(index, "averaged" if adapter else weights)
    if not names:
        raise InputError(f"{uri}: no checkpoint of a run, so it has no live weights; export the averaged ones")
    with torch.device("meta"):
        transformer = NextDiT.from_config(transformer_config(folder, state))
    tensors = {}
    for name, place in transformer.state_dict().items():
        if name not in names:
            raise InputError(f"{base.uri}: holds no {name}; it is of another model")
        stored = torch_dtype(index.tensors[names[name]].dtype)
        tensors[name] = torch.empty(place.shape, dtype=dtype if dtype and stored.is_floating_point else stored)
    load_tensors(base, index, {names[name]: tensor for name, tensor in tensors.items()})
    if adapter:
        merge_adapter(tensors, adapter, lora_config(state).scale)
    transformer.load_state_dict(tensors, strict=True, assign=True)
    return transformer.eval(), state


def read_adapter(folder: Store, state: Mapping[str, Any], weights: Weights = "averaged") -> dict[str, Tensor]:
    """The matrices of a checkpoint's adapter, MODULE.lora_A.weight and MODULE.lora_B.weight, in float32.

    folder, state: of the checkpoint. Raises InputError for a checkpoint that is damaged, or holds no adapter.
    """
    import torch

    if BASE not in state:
        raise InputError(f"{folder.uri}: a checkpoint of a whole model, which has no adapter; train with `lora`")
    index = checked_index(folder)
    names = _names(index, weights)
    tensors = {name: torch.empty(index.tensors[key].shape) for name, key in names.items()}
    load_tensors(folder, index, {names[name]: tensor for name, tensor in tensors.items()})
    return tensors


def packed_adapter(checkpoint: str, weights: Weights = "averaged") -> bytes:
    """The adapter of a run or checkpoint that has one, as `load_lora_weights` reads it. Raises InputError."""
    folder, state = find_checkpoint(checkpoint)
    return adapter_file(read_adapter(folder, state, weights), lora_config(state))


def lora_config(state: Mapping[str, Any]) -> LoraConfig:
    """The adapter that a checkpoint holds, from its state."""
    return LoraConfig.model_validate(state["config"]["lora"])


def _names(index: CheckpointIndex, weights: Weights) -> dict[str, str]:
    """Name in NextDiT → name in the checkpoint; what has no average (a buffer) is taken as it is."""
    live = {name.removeprefix(MODEL): name for name in index.tensors if name.startswith(MODEL)}
    averaged = {name.removeprefix(AVERAGE): name for name in index.tensors if name.startswith(AVERAGE)}
    return live if weights == "live" else live | averaged


def transformer_config(folder: Store, state: Mapping[str, Any]) -> dict[str, Any]:
    """What the NextDiT of a checkpoint, or of a folder in diffusers layout, is made with. Raises InputError."""
    if TRANSFORMER_CONFIG in state:
        return dict(state[TRANSFORMER_CONFIG])
    name = f"{TRANSFORMER}/config.json"
    try:
        return dict(json.loads(folder.read(name)))
    except FileNotFoundError:
        raise damaged(folder, f"{name} is not there") from None
    except ValueError:
        raise damaged(folder, f"{name} is not what was written") from None
