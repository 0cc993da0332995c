"""Labelers with pretrained models: files inside installed packages, and transformers models by name or path."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, model_validator

from labeling import labeler
from labeling.labeler import AddedLater, Labeler
from labeling.networks.batches import Inputs, PixelScale, as_inputs, in_batches, pixel_scale, settings_of, taken_apart
from model.inputs import require
from model.pictures import Picture
from model.weights import model_folder, weights_digest

MEDIAPIPE = "mediapipe"


Dtype = Literal["fp32", "bf16", "fp16", "auto"]
TORCH_TYPES: dict[Dtype, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "auto": "auto"}


class PretrainedLabeler(Labeler):
    """A labeler that uses a transformers model where its parameter `model` names one, and else what is embedded.

    role: what a user's error calls the model; outputs: names of what `finish` takes of the network's;
    network_reads: what a named model reads, where that differs from `reads`.
    """

    role: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]] = ()
    network_reads: ClassVar[tuple[str, ...]] = ()

    class Parameters(labeler.Parameters):
        """model: hub name or path of a transformers model, "" for none; dtype: what it computes in, "auto" as it is
        stored."""

        model: str = ""
        dtype: Annotated[Dtype, AddedLater()] = "fp32"

        @model_validator(mode="after")
        def _dtype_of_a_model(self) -> Self:
            if not self.model and self.dtype != type(self).model_fields["dtype"].default:
                raise ValueError(f"dtype {self.dtype} is for a model that is named; set model too")
            return self

    parameters: Parameters

    def __init__(self, group: str, parameters: BaseModel) -> None:
        super().__init__(group, parameters)
        if self.parameters.model and self.network_reads:
            self.reads = self.network_reads
        self._network: Any = None
        self._processor: Any = None
        self._config: Any = None
        self._scale: PixelScale | None = None
        self._network_label = ""  # the model's class and digest, never its path, which differs by machine

    @property
    def has_network(self) -> bool:
        return bool(self.parameters.model)

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

    def loader(self) -> Any:
        """The class of transformers that loads the named model."""
        raise NotImplementedError

    def load_processor(self) -> None:
        """Load what goes before and after the network; of the named model its configuration and image processor."""
        import cv2

        cv2.setNumThreads(1)
        if not self.has_network or self._config is not None:
            return
        import torch
        from transformers import AutoConfig

        torch.set_num_threads(1)
        folder = self.model_folder()
        self._config = AutoConfig.from_pretrained(folder, local_files_only=True)
        self._network_label = f"{_class_name(self.loader(), self._config)} {weights_digest(folder)[:8]}"
        self._processor = self.processor_of(folder)
        self._scale = pixel_scale(getattr(self._processor, "image_processor", self._processor), self.process)

    def processor_of(self, folder: Path) -> Any:
        """The processor of the model in a folder."""
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(folder, local_files_only=True)

    def load(self) -> None:
        self.load_processor()
        if not self.has_network:
            self.load_embedded()
        elif self._network is None:
            network = self.loader().from_pretrained(
                self.model_folder(),
                local_files_only=True,
                use_safetensors=True,
                dtype=TORCH_TYPES[self.parameters.dtype],
            )
            self._network = network.to(self.device).eval()

    def load_embedded(self) -> None:
        """Load what labels where no model is named."""

    def process(self, picture: Picture, **settings: Any) -> Inputs:
        """What the processor makes of a picture; settings: of the processor, over its own."""
        return as_inputs(
            self._processor(images=picture, return_tensors="pt", input_data_format="channels_last", **settings)
        )

    def pixels_of(self, picture: Picture, **settings: Any) -> Inputs:
        """The network's inputs for a picture: bytes where the device can scale them, float32 else."""
        return self.process(np.asarray(picture), **settings_of(self._scale), **settings)

    def compute(self, inputs: Mapping[str, Any]) -> Any:
        """The network's outputs for joined inputs, as its class gives them."""
        return self._network(**self.prepared(inputs))

    def prepared(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Joined inputs as the network takes them: scaled, and in its type."""
        import torch

        given = dict(inputs)
        if self._scale is not None and given["pixel_values"].dtype == torch.uint8:
            given["pixel_values"] = self._scale(given["pixel_values"])
        return {
            name: value.to(self._network.dtype) if torch.is_tensor(value) and value.is_floating_point() else value
            for name, value in given.items()
        }

    def infer(self, inputs: list[Any]) -> list[Any]:
        """The network's outputs, and None for inputs that are None: there is nothing in that row to look at."""
        indices = [index for index, one in enumerate(inputs) if one is not None]
        outputs = in_batches(
            [inputs[index] for index in indices],
            self.device,
            lambda batch, counts: taken_apart(self.compute(batch), self.outputs, counts),
        )
        computed = dict(zip(indices, outputs, strict=True))
        return [computed.get(index) for index in range(len(inputs))]


def _class_name(loader: Any, config: Any) -> str:
    """Name of the class that a class of transformers loads for a configuration, without loading it."""
    mapping = getattr(loader, "_model_mapping", None)
    if mapping is None:
        return str(loader.__name__)
    classes = mapping[type(config)]
    if not isinstance(classes, (list, tuple)):
        return str(classes.__name__)
    names = [one.__name__ for one in classes]
    return next((name for name in config.architectures or () if name in names), names[0])


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
