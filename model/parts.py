"""Whether the parts of a pipeline fit each other, told before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from model.codecs.image_codec import check_autoencoder
from model.constants import LATENT_CHANNELS
from model.inputs import InputError, shown


def check_parts(parts: Mapping[str, Any]) -> None:
    """Raise InputError for a part that every call needs and is not there, and for parts that do not fit each other."""
    missing = next((name for name in ("transformer", "vae", "scheduler") if parts.get(name) is None), None)
    if missing:
        raise InputError(f"this pipeline has no {missing}: give it one, as from_pretrained(…, {missing}=…)")
    _check_scheduler(parts["scheduler"])
    channels = getattr(getattr(parts["transformer"], "config", None), "in_channels", None)
    if channels != LATENT_CHANNELS:
        raise InputError(
            f"transformer {type(parts['transformer']).__name__} of {channels} channels: take a NextDiT of "
            f"{LATENT_CHANNELS}, as many as latents have"
        )
    check_autoencoder(parts["vae"], "vae")
    check_text_encoder(parts)


def check_text_encoder(parts: Mapping[str, Any]) -> None:
    """Raise InputError for a text encoder whose embeddings are not of the width that the transformer takes."""
    encoder, transformer = parts.get("text_encoder"), parts.get("transformer")
    width = getattr(getattr(encoder, "config", None), "hidden_size", None)
    if width is None or transformer is None:
        return
    wanted = transformer.config.caption_channels
    if width != wanted:
        raise InputError(
            f"text_encoder {type(encoder).__name__}: its embeddings are {width} wide, the transformer takes {wanted}; "
            "give the encoder that it was trained with"
        )


def check_is_part(name: str, value: Any) -> None:
    """Raise InputError for what cannot be a part of a pipeline, as the name of one."""
    if value is not None and not hasattr(value, "__module__"):
        raise InputError(f"{name} {shown(value)}: give what its from_pretrained loads, or None")


def _check_scheduler(scheduler: Any) -> None:
    name, config = type(scheduler).__name__, scheduler.config
    if not hasattr(config, "max_shift"):
        raise InputError(f"scheduler {name}: take a FlowMatchEulerDiscreteScheduler")
    for key in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"):
        value = getattr(config, key, None)
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            raise InputError(f"scheduler {name}: {key} {shown(value)} in its configuration; it is a finite number")
    if config.base_image_seq_len == config.max_image_seq_len:
        raise InputError(
            f"scheduler {name}: base_image_seq_len and max_image_seq_len are both {config.max_image_seq_len}; its "
            "shift runs between the two, as 256 and 4096"
        )
