"""LoRA adapters of the transformer, in the files and by the calls that diffusers' users know."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin, _fetch_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn

from model.adapters import check_adapter, config_of, layers_of
from model.constants import LORA_TARGETS
from model.inputs import InputError, as_path, one_line, shown
from model.saving import folder_to_write, warn_of_pickles
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
        if not isinstance(source, str | dict) or source == "":
            raise InputError(f"LoRA {shown(source)}: give a file, a folder, a hub name, or tensors by name")
        given = next((name for name in _SOURCE if isinstance(source, dict) and kwargs.get(name) is not None), None)
        if given or (kwargs.get("revision") is not None and Path(str(source)).exists()):
            kind = "tensors that are given" if isinstance(source, dict) else "a file or folder that is here"
            raise InputError(f"load_lora_weights: {given or 'revision'} has no effect for {kind}; leave it out")
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
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{source}: no LoRA there ({one_line(error, 160)})") from None
        return state_dict

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | dict[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        **kwargs: Any,
    ) -> None:
        """Add an adapter to the transformer. Raises InputError for weights that are no adapter of it."""
        weights, metadata = self.lora_state_dict(pretrained_model_name_or_path_or_dict, **kwargs)
        prefix = f"{self.transformer_name}."
        config = None if metadata is None else {key.removeprefix(prefix): value for key, value in metadata.items()}
        weights = check_adapter(weights, self.transformer, config)
        if metadata is not None and config is not None and config.get("init_lora_weights") not in (None, True, False):
            metadata = {**metadata, f"{prefix}init_lora_weights": True}  # what it was begun with is written over
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
                low_cpu_mem_usage=low_cpu_mem_usage,
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
        """Whether the adapter that was added has a place for each of the weights, and a weight for each place."""
        from peft import get_peft_model_state_dict

        added = set(self.transformer.peft_config) - before
        held = {key for name in added for key in get_peft_model_state_dict(self.transformer, adapter_name=name)}
        without = [name for name, value in self.transformer.named_parameters() if value.is_meta]
        return not without and {key.removeprefix(f"{self.transformer_name}.") for key in weights} <= held

    def _forget_adapters(self, before: set[str]) -> None:
        """Remove what an attempt to load has left, so that adapters of before are all there is."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        if not before:
            self.unload_lora_weights()
            return
        # Where peft raises halfway it forgets the adapter's configuration and leaves its layers.
        for module in self.transformer.modules():
            if isinstance(module, BaseTunerLayer):
                for name in set(module._all_available_adapter_names()) - before:
                    module.delete_adapter(name)
        for name in set(self.transformer.peft_config) - before:
            del self.transformer.peft_config[name]

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
        """Write an adapter: peft.get_peft_model_state_dict(transformer), or the transformer if it has but one.

        transformer_lora_adapter_metadata: transformer.peft_config[NAME].to_dict(), which says how strong the adapter
        is (alpha) beside its rank. Without it, it is that of the adapter in memory whose tensors are given.
        Raises InputError for nothing to save, a path that is a file, and for tensors of no adapter in memory without
        metadata: nothing says what their alpha is.
        """
        if weight_name is not None and (not weight_name or as_path("weight_name", weight_name).name != weight_name):
            raise InputError(f"weight_name {shown(weight_name)}: give a file's name, as my_lora.safetensors")
        layers = layers_of(transformer_lora_layers)
        warn_of_pickles(safe_serialization)
        metadata = transformer_lora_adapter_metadata
        if metadata is None:
            metadata = config_of(layers)
        if metadata is None:
            raise InputError(
                "these tensors belong to no adapter in memory, so their alpha is not known: give "
                "transformer_lora_adapter_metadata, as transformer.peft_config[NAME].to_dict()"
            )
        cls._save_lora_weights(
            save_directory=folder_to_write(save_directory),
            lora_layers={cls.transformer_name: layers},
            lora_metadata={cls.transformer_name: _as_json(metadata)},
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=True,
        )

    def set_adapters(self, adapter_names: list[str] | str, adapter_weights: Any = None) -> None:
        """Which adapters act, and how strongly. Raises InputError for names that are not loaded, and other weights."""
        names = self._loaded(adapter_names)
        _check_strengths("adapter_weights", adapter_weights)
        with _told("set_adapters"):
            super().set_adapters(names, adapter_weights)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Remove adapters. Raises InputError for names that are not loaded."""
        super().delete_adapters(self._loaded(adapter_names))

    def fuse_lora(
        self, components: list[str] | None = None, lora_scale: float = 1.0, adapter_names: Any = None, **kwargs: Any
    ) -> None:
        """Add the adapters to the weights; unfuse_lora takes them out again.

        Raises InputError without adapters, for names that are not loaded, and a scale that is no finite number.
        """
        names = self._loaded(adapter_names)
        _check_strengths("lora_scale", lora_scale)
        with _told("fuse_lora"):
            super().fuse_lora(
                components=components or self._lora_loadable_modules,
                lora_scale=lora_scale,
                adapter_names=None if adapter_names is None else names,
                **kwargs,
            )

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Take fused adapters out of the weights."""
        with _told("unfuse_lora"):
            super().unfuse_lora(components=components or self._lora_loadable_modules, **kwargs)

    def _loaded(self, names: Any) -> list[str]:
        """Names of adapters, None for all, as a list. Raises InputError for those that are not loaded."""
        loaded = list(getattr(self.transformer, "peft_config", {}))
        if not loaded:
            raise InputError("no adapter is loaded: call load_lora_weights first")
        given = loaded if names is None else [names] if isinstance(names, str) else names
        if not isinstance(given, list | tuple) or not given:
            raise InputError(f"adapter_names {shown(names)}: give names of {', '.join(loaded)}")
        unknown = next((name for name in given if name not in loaded), None)
        if unknown is not None:
            raise InputError(f"adapter {shown(unknown)} is not loaded; there are {', '.join(loaded)}")
        return list(given)


def _check_strengths(name: str, value: Any) -> None:
    """Raise InputError for numbers that are not finite; value: None, a number, or nested lists and mappings of them."""
    if isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            _check_strengths(name, one)
    elif value is not None and (
        not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(float(value))
    ):
        raise InputError(f"{name} {shown(value)}: give finite numbers")


@contextmanager
def _told(call: str) -> Iterator[None]:
    """What diffusers and peft raise for arguments, as InputError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{call}: {one_line(error, 200)}") from None


def _as_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A peft configuration as JSON can hold it: sets as lists, enumerations as their values."""

    def plain(value: Any) -> Any:
        if isinstance(value, set | frozenset):
            return sorted(value)
        return getattr(value, "value", value)

    return {name: plain(value) for name, value in metadata.items()}
