"""Where the models of labelers come from: files inside installed packages, and transformers models by name or path."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model.inputs import require
from model.weights import model_folder, weights_digest

MEDIAPIPE = "mediapipe"


def package_file(module: str, name: str) -> Path:
    """A file that ships inside an installed package, which is not imported. Raises InputError without it."""
    require(module)
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / name


def mediapipe_file(name: str) -> Path:
    """A model file of mediapipe, by its path below modules/."""
    return package_file(MEDIAPIPE, f"modules/{name}")


def package_label(package: str) -> str:
    """Name and version of an installed package, as labels name their model."""
    return f"{package} {version(package)}"


def files_digest(*paths: Path) -> str:
    """Digest of the bytes of files, in the order given: the weights digest of a model in files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def pretrained_digest(name: str, role: str) -> str:
    """Weights digest of a model by hub name or path; role: what a user's error calls it. Raises InputError."""
    return weights_digest(model_folder(name, role))


def mediapipe_solution(name: str) -> Any:
    """A module of mediapipe.solutions, which logs errors alone."""
    # The C++ library reads these once, when it begins to log.
    os.environ.setdefault("GLOG_minloglevel", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import mediapipe

    return getattr(mediapipe.solutions, name)


def load_network(loader: Any, folder: Path, gpus: float, dtype: str = "float32") -> tuple[Any, str]:
    """A model from a folder, on the GPU where the labeler has a share of one, and its label: class and digest.

    loader: a class of transformers with from_pretrained; dtype: a torch type's name, "auto" for that of the file.
    The label never holds the path, which differs from machine to machine.
    """
    import torch

    device = "cuda" if gpus and torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    network = loader.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
    return network.to(device).eval(), f"{type(network).__name__} {weights_digest(folder)[:8]}"
