"""LoRA in training: a frozen model, and beside some of its linear layers two thin matrices that learn (peft).

r rank: a layer's output gains alpha/r · B A x, where A (r, in) is random at first and B (out, r) zero.
Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, equation 3.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from model.constants import LORA_TARGETS
from model.inputs import nearest
from model.inputs.schema import Section

if TYPE_CHECKING:
    from torch import Tensor, nn

    from model.transformer import NextDiT

# The other linear layers of the transformer, by the ends of their names.
_MORE_TARGETS = ("adaLN_modulation.1", "x_embedder", "y_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2",
                 "final_layer.linear")  # fmt: skip
ADAPTER = "default"  # what peft and diffusers call an adapter without a name
LORA_FILE = "pytorch_lora_weights.safetensors"  # where diffusers looks for one
_DROPOUT = 0x5DEECE66D  # keeps what is dropped apart from the noise, which has the same seed


class LoraConfig(Section):
    """An adapter: of which layers, and how strong.

    rank: of its matrices. alpha: what it adds is multiplied by alpha / rank; the rank itself by default.
    targets: layers by the ends of their names; by default all projections of attention and feed-forward.
    dropout: share of the inputs of an adapter that a step leaves out.
    """

    rank: int = Field(default=16, gt=0, le=4096)
    alpha: float | None = Field(default=None, gt=0)
    targets: list[str] = Field(default=LORA_TARGETS, min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @field_validator("targets")
    @classmethod
    def _name_layers(cls, targets: list[str]) -> list[str]:
        known = [*LORA_TARGETS, *_MORE_TARGETS]
        for target in targets:
            if target not in known:
                raise ValueError(f"no layer {target!r}{nearest(target, known)}; there are {', '.join(known)}")
        return list(dict.fromkeys(targets))

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank

    def has(self, module: str) -> bool:
        """Whether the layer of this name has an adapter."""
        return any(f".{module}".endswith(f".{target}") for target in self.targets)

    def peft_config(self) -> Any:
        """As peft takes it."""
        from peft import LoraConfig as PeftConfig

        alpha: Any = self.rank if self.alpha is None else self.alpha
        return PeftConfig(r=self.rank, lora_alpha=alpha, target_modules=self.targets, lora_dropout=self.dropout)


def add_adapter(transformer: NextDiT, config: LoraConfig, half: bool) -> None:
    """Freeze the transformer and add an adapter, which torch's generator draws; it changes nothing at first.

    half: keep frozen linear layers in bf16. Autocast would cast them anyway, so the numbers are the same.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    transformer.requires_grad_(False)
    if half:
        for module in transformer.modules():
            if isinstance(module, torch.nn.Linear):
                module.to(torch.bfloat16)
    transformer.add_adapter(config.peft_config(), ADAPTER)
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            # Autocast casts what goes into A; peft would before that copy it to float32, for every layer.
            module.cast_input_dtype_enabled = False
    for name, parameter in transformer.named_parameters():
        is_adapter = ".lora_" in name
        parameter.requires_grad_(is_adapter)
        if is_adapter:
            parameter.data = parameter.data.float()


def stored_name(parameter: str) -> str:
    """Name of a parameter in a checkpoint: as if there were no peft around the layers, adapters as diffusers has them.

    layers.0.attention.wq.base_layer.weight is layers.0.attention.wq.weight, and …wq.lora_A.default.weight is
    …wq.lora_A.weight.
    """
    return parameter.replace(".base_layer.", ".").replace(f".{ADAPTER}.", ".")


def seed_dropout(noise_seed: int) -> None:
    """Let what a pack drops follow from its first sample, so that a run that resumes drops the same."""
    import torch

    torch.manual_seed(noise_seed ^ _DROPOUT)


@contextmanager
def without_dropout(model: nn.Module, config: LoraConfig | None) -> Iterator[None]:
    """Within, nothing is dropped. A model without dropout stays as it is: a change would be compiled anew."""
    drops = config is not None and config.dropout > 0
    try:
        if drops:
            model.eval()
        yield
    finally:
        if drops:
            model.train()


def adapter_size(transformer: NextDiT, config: LoraConfig) -> int:
    """Number of weights that an adapter of the transformer, which may be without memory, has."""
    import torch

    return sum(
        config.rank * (module.in_features + module.out_features)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and config.has(name)
    )


def merge_adapter(weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> None:
    """Add an adapter to the weights of its layers, in place.

    weights: of the transformer by name; adapter: MODULE.lora_A.weight (r, in) and MODULE.lora_B.weight (out, r).
    """
    for name, first in adapter.items():
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removesuffix(".lora_A.weight")
        second, weight = adapter[f"{module}.lora_B.weight"], weights[f"{module}.weight"]
        weight.copy_(weight.float() + scale * (second.float() @ first.float()))


def adapter_file(adapter: Mapping[str, Tensor], config: LoraConfig) -> bytes:
    """The file that `load_lora_weights` reads: safetensors, with rank and alpha in its metadata.

    The scale is multiplied into B and alpha is the rank, since loaders that leave metadata out (diffusers' own of a
    transformer, ComfyUI's) take the two for equal. Dropout is none: diffusers would go on dropping while it samples.
    adapter: by names of `stored_name`.
    """
    from safetensors.torch import save

    adapter = {name: config.scale * value if ".lora_B." in name else value for name, value in adapter.items()}
    plain = config.model_copy(update={"alpha": None, "dropout": 0.0})
    described = {name: _plain(value) for name, value in plain.peft_config().to_dict().items()}
    packed = {f"transformer.{name}": value for name, value in described.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(packed, indent=2, sort_keys=True)}
    return save({f"transformer.{name}": value.contiguous() for name, value in adapter.items()}, metadata)


def _plain(value: Any) -> Any:
    """A value of peft's configuration as JSON can hold it."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", value)
