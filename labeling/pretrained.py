"""Labelers with pretrained models: files inside installed packages, and transformers models by name or path."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from labeling import labeler
from labeling.labeler import Labeler
from model.inputs import require
from model.weights import model_folder, weights_digest

MEDIAPIPE = "mediapipe"


class PretrainedLabeler(Labeler):
    """A labeler that uses a transformers model where its parameter `model` names one, and else what is embedded.

    role: what a user's error calls the model.
    """

    role: ClassVar[str]

    class Parameters(labeler.Parameters):
        """model: hub name or path of a transformers model, "" for none."""

        model: str = ""

    parameters: Parameters

    def __init__(self, group: str, parameters: BaseModel) -> None:
        super().__init__(group, parameters)
        self._network: Any = None
        self._processor: Any = None
        self._network_label = ""  # the model's class and digest, never its path, which differs by machine

    def weights_digest(self) -> str:
        if self.parameters.model:
            return weights_digest(self.model_folder())
        return self.embedded_digest()

    def embedded_digest(self) -> str:
        """Digest of the weights that are used where no model is named; "" for none."""
        return ""

    def model_folder(self) -> Path:
        """Where the files of the named model lie. Raises InputError for one that is not there."""
        return model_folder(self.parameters.model, self.role)

    def load_network(self, loader: Any, dtype: str = "float32") -> None:
        """Load the named model, onto `device`.

        loader: a class of transformers with from_pretrained; dtype: a torch type's name, "auto" for that of the file.
        """
        import torch

        if self.device == "cpu":
            torch.set_num_threads(1)
        folder = self.model_folder()
        network = loader.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
        self._network = network.to(self.device).eval()
        self._network_label = f"{type(network).__name__} {weights_digest(folder)[:8]}"


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


def mediapipe_solution(name: str) -> Any:
    """A module of mediapipe.solutions, which logs errors alone."""
    # The C++ library reads these once, when it begins to log.
    os.environ.setdefault("GLOG_minloglevel", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import mediapipe

    return getattr(mediapipe.solutions, name)
