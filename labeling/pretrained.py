"""Loading a model of transformers in the process that labels with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.weights import weights_digest


def load_network(loader: Any, folder: Path, gpus: float, dtype: str = "float32") -> tuple[Any, str]:
    """A model from a folder, on the GPU where the labeler has a share of one, and its name: class and digest.

    loader: a class of transformers with from_pretrained; dtype: a torch type's name, "auto" for that of the file.
    The name never holds the path, which differs from machine to machine.
    """
    import torch

    device = "cuda" if gpus and torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    network = loader.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
    return network.to(device).eval(), f"{type(network).__name__} {weights_digest(folder)[:8]}"
