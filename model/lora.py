"""LoRA adapters of the transformer, in the files and by the calls that diffusers' users know."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin, _fetch_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn

from model.adapters import check_adapter, config_of
from model.constants import LORA_TARGETS
from model.inputs import InputError, one_line, shown
from model.saving import warn_of_pickles
from model.weights import damaged, refuse_unknown

__all__ = ["LORA_TARGETS", "LoraMixin"]  # LORA_TARGETS: what `target_modules` of a peft LoraConfig takes
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
        cls, pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | dict[str, Tensor], **kwargs: Any
    ) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """Weights and metadata of an adapter in a folder, a file, a hub repository or a dict; safetensors only.

        Raises InputError for what is not there or cannot be read, naming it.
        """
        refuse_unknown("load_lora_weights", kwargs, _SOURCE)
        source: Any = pretrained_model_name_or_path_or_dict
        source = os.fspath(source) if isinstance(source, os.PathLike) else source
        try:
            state_dict: tuple[dict[str, Tensor], dict[str, Any] | None] = _fetch_state_dict(
                source,
                **{name: kwargs.get(name) for name in _SOURCE},
                use_safetensors=True,
                user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
                allow_pickle=False,
            )
        except SafetensorError as error:
            raise damaged(f"{source}: LoRA", error) from None
        except (OSError, ValueError) as error:
            raise InputError(f"{source}: no LoRA there ({one_line(error, 160)})") from None
        return state_dict

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | dict[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Add an adapter to the transformer. Raises InputError for weights that are no adapter of it."""
        weights, metadata = self.lora_state_dict(pretrained_model_name_or_path_or_dict, **kwargs)
        weights = check_adapter(weights, self.transformer)
        if adapter_name is not None and (not isinstance(adapter_name, str) or not adapter_name or "." in adapter_name):
            raise InputError(f"adapter_name {shown(adapter_name)}: give a name without dots")
        before = set(getattr(self.transformer, "peft_config", {}))
        try:
            self.transformer.load_lora_adapter(
                weights,
                network_alphas=None,
                adapter_name=adapter_name,
                metadata=metadata,
                _pipeline=self,
                low_cpu_mem_usage=True,
                hotswap=hotswap,
            )
            fits = hotswap or self._holds(weights, before)
        except Exception as error:  # a name in use, metadata of another program: peft raises nearly anything
            self._forget_adapters(before)
            name = f"LoRA {adapter_name}" if adapter_name else "LoRA"
            raise InputError(f"{name}: {one_line(error, 200)}") from None
        if not fits:
            self._forget_adapters(before)
            raise InputError("LoRA: its metadata name other layers than its weights are for; save it again")

    def _holds(self, weights: Mapping[str, Any], before: set[str]) -> bool:
        """Whether the adapter that was added has a place for each of the weights."""
        from peft import get_peft_model_state_dict

        added = set(self.transformer.peft_config) - before
        held = {key for name in added for key in get_peft_model_state_dict(self.transformer, adapter_name=name)}
        return {key.removeprefix(f"{self.transformer_name}.") for key in weights} <= held

    def _forget_adapters(self, before: set[str]) -> None:
        """Remove what an attempt to load has left, so that adapters of before are all there is."""
        added = [name for name in getattr(self.transformer, "peft_config", {}) if name not in before]
        with suppress(Exception):
            if before:
                self.transformer.delete_adapters(added)
            elif added:
                self.unload_lora_weights()

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike[str],
        transformer_lora_layers: Mapping[str, Tensor] | nn.Module | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., None] | None = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: dict[str, Any] | None = None,
    ) -> None:
        """Write an adapter: peft.get_peft_model_state_dict(transformer) as transformer_lora_layers.

        transformer_lora_adapter_metadata: transformer.peft_config[NAME].to_dict(), which says how strong the adapter
        is (alpha) beside its rank. Without it, it is that of the adapter in memory whose tensors are given.
        Raises InputError for nothing to save, a path that is a file, and for tensors of no adapter in memory without
        metadata: nothing says what their alpha is.
        """
        if isinstance(transformer_lora_layers, nn.Module):
            transformer_lora_layers = transformer_lora_layers.state_dict()
        if not transformer_lora_layers:
            raise InputError("nothing to save: give transformer_lora_layers")
        warn_of_pickles(safe_serialization)
        if os.path.isfile(save_directory):
            raise InputError(f"{os.fspath(save_directory)}: a file is there; name a folder")
        metadata = transformer_lora_adapter_metadata
        if metadata is None:
            metadata = config_of(transformer_lora_layers)
        if metadata is None:
            raise InputError(
                "these tensors belong to no adapter in memory, so their alpha is not known: give "
                "transformer_lora_adapter_metadata, as transformer.peft_config[NAME].to_dict()"
            )
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers={cls.transformer_name: transformer_lora_layers},
            lora_metadata={cls.transformer_name: _as_json(metadata)},
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=True,
        )

    def fuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Add the adapters to the weights; unfuse_lora takes them out again."""
        super().fuse_lora(components=components or self._lora_loadable_modules, **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Take fused adapters out of the weights."""
        super().unfuse_lora(components=components or self._lora_loadable_modules, **kwargs)


def _as_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A peft configuration as JSON can hold it: sets as lists, enumerations as their values."""

    def plain(value: Any) -> Any:
        if isinstance(value, set | frozenset):
            return sorted(value)
        return getattr(value, "value", value)

    return {name: plain(value) for name, value in metadata.items()}
