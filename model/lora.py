"""LoRA adapters of the transformer, in the files and by the calls that diffusers' users know."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin, _fetch_state_dict
from torch import Tensor, nn

from model.inputs import InputError

# Projections of attention and feed-forward: what `target_modules` of a peft LoraConfig takes.
LORA_TARGETS = ["wq", "wk", "wv", "wo", "wk_y", "wv_y", "w1", "w2", "w3"]
# Arguments of diffusers that say where weights come from.
_SOURCE = (
    "weight_name",
    "subfolder",
    "revision",
    "token",
    "cache_dir",
    "force_download",
    "proxies",
    "local_files_only",
)


class LoraMixin(LoraBaseMixin):
    """load_lora_weights, save_lora_weights, fuse_lora and the rest, for a pipeline's `transformer`."""

    _lora_loadable_modules = ["transformer"]
    transformer_name = "transformer"
    transformer: Any

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: str | dict[str, Tensor], **kwargs: Any
    ) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """Weights and metadata of an adapter in a folder, a file, a hub repository or a dict; safetensors only."""
        unknown = set(kwargs) - set(_SOURCE)
        if unknown:
            raise TypeError(f"unexpected arguments: {', '.join(sorted(unknown))}")
        state_dict: tuple[dict[str, Tensor], dict[str, Any] | None] = _fetch_state_dict(
            pretrained_model_name_or_path_or_dict,
            **{name: kwargs.get(name) for name in _SOURCE},
            use_safetensors=True,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            allow_pickle=False,
        )
        return state_dict

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | dict[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Add an adapter to the transformer. Raises InputError for weights that are no adapter of it."""
        weights, metadata = self.lora_state_dict(pretrained_model_name_or_path_or_dict, **kwargs)
        other_keys = [key for key in weights if "lora" not in key]
        if other_keys or not any(key.startswith(f"{self.transformer_name}.") for key in weights):
            wrong = next(iter(other_keys or weights), "nothing")
            raise InputError(
                f"no LoRA of this transformer: it holds {wrong!r}, expected transformer.….lora_A.weight and lora_B"
            )
        self.transformer.load_lora_adapter(
            weights,
            network_alphas=None,
            adapter_name=adapter_name,
            metadata=metadata,
            _pipeline=self,
            low_cpu_mem_usage=True,
            hotswap=hotswap,
        )

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike[str],
        transformer_lora_layers: Mapping[str, nn.Module | Tensor] | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., None] | None = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: dict[str, Any] | None = None,
    ) -> None:
        """Write an adapter: peft.get_peft_model_state_dict(transformer) as transformer_lora_layers."""
        if not transformer_lora_layers:
            raise InputError("nothing to save: give transformer_lora_layers")
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers={cls.transformer_name: transformer_lora_layers},
            lora_metadata={cls.transformer_name: transformer_lora_adapter_metadata},
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=safe_serialization,
        )

    def fuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Add the adapters to the weights; unfuse_lora takes them out again."""
        super().fuse_lora(components=components or self._lora_loadable_modules, **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Take fused adapters out of the weights."""
        super().unfuse_lora(components=components or self._lora_loadable_modules, **kwargs)
