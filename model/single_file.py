"""The transformer as one safetensors file: its weights under their published names, its configuration in the metadata.

That is the form in which ComfyUI and other programs keep models (`models/diffusion_models/NAME.safetensors`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from model.inputs import InputError
from model.loading import load_weights
from model.quantization import is_quantized_linear
from model.weights import damaged

CONFIG = "config"  # in the metadata: JSON, {"transformer": arguments of NextDiT}
ARCHITECTURE = "onediffusion"


def write_single_file(transformer: Any, path: Path, dtype: torch.dtype, fp8: bool = False) -> None:
    """Write a transformer as one file. dtype: of its weights.

    fp8: linear weights of the blocks as float8_e4m3fn, rounded without a scale, as ComfyUI reads them.
    """
    layers = {f"{name}.weight" for name, module in transformer.named_modules() if is_quantized_linear(name, module)}
    weights = {
        name: value.to(torch.float8_e4m3fn if fp8 and name in layers else dtype).contiguous()
        for name, value in transformer.state_dict().items()
    }
    config = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": ARCHITECTURE,
        CONFIG: json.dumps({"transformer": config}),
    }
    save_file(weights, path, metadata)


def read_single_file(cls: Any, path: Path, dtype: torch.dtype | None) -> Any:
    """The transformer, a `cls`, in a file that `write_single_file` wrote; dtype: of its weights, bf16 for None where
    some are in 8 bits, else as stored. Raises InputError."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            stored = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from None
    try:
        config = json.loads(metadata[CONFIG])["transformer"]
        with torch.device("meta"):
            model = cls.from_config(config)
    except (KeyError, ValueError, TypeError, AssertionError):
        raise InputError(f"{path}: no transformer of OneDiffusion; its metadata has no {CONFIG} of one") from None
    load_weights(model, [Path(path)], dtype or (torch.bfloat16 if "F8_E4M3" in stored else None))
    return model.eval()
