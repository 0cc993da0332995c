"""The model that a checkpoint's adapter is of: where it is, and how to tell that it is still the same."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from labeling.dataset import Store
from model.inputs import InputError
from training.checkpoint.files import checked_index, find_checkpoint
from training.checkpoint.index import CheckpointIndex
from training.pretrained import pretrained_folder

_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16
BASE = "base"  # in state.json of an adapter's checkpoints: a BaseModel


@dataclass(frozen=True)
class BaseModel:
    """checkpoint: address of a run's checkpoint or of a folder in diffusers layout, or a hub name; digest: of what it
    holds."""

    checkpoint: str
    digest: str

    @classmethod
    def of(cls, given: str, folder: Store, index: CheckpointIndex) -> BaseModel:
        """Of a folder with averaged weights, as `given` was found. A run's own newest checkpoint may be another later,
        and the folder of a hub name, or of what comes with the program, is another on every machine."""
        is_hub_name = "/snapshots/" in folder.uri and re.fullmatch(r"[\w.-]+/[\w.-]+", given)
        return cls(given if is_hub_name or pretrained_folder(given) else folder.uri, _digest(folder, index))

    def open(self) -> tuple[Store, CheckpointIndex]:
        """Its folder and what is in it. Raises InputError where it is gone or has other weights."""
        try:
            folder, _ = find_checkpoint(self.checkpoint)
        except InputError as error:
            raise InputError(f"the model that this adapter is of is not there: {error}") from None
        index = checked_index(folder)
        if _digest(folder, index) != self.digest:
            raise InputError(f"{self.checkpoint}: not the weights that this adapter was trained on; put them back")
        return folder, index


def _digest(folder: Store, index: CheckpointIndex) -> str:
    """Of tensors, sizes and checksums; of files without checksums, of some places in them."""
    digest = hashlib.blake2b(index.digest().encode(), digest_size=16)
    for file in sorted(index.files, key=lambda file: file.name):
        if file.crc32 is None:
            last = max(0, file.size - _SAMPLE_BYTES)
            for place in range(_SAMPLES):
                digest.update(folder.read_range(file.name, place * last // (_SAMPLES - 1), _SAMPLE_BYTES))
    return digest.hexdigest()
