"""Which part of which tensor lies where in a checkpoint's files, and how to tell that a file is whole."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from labeling.dataset import Store
from model.inputs import InputError

if TYPE_CHECKING:
    import torch
    from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

INDEX = "index.json"
MODEL, AVERAGE, OPTIMIZER = "model.", "average.", "optimizer."  # tensors: model.NAME, optimizer.NAME/KEY, …
BLOCK_BYTES = 1 << 20  # of a file, with a checksum each: a process that needs a part of a file reads whole ones
OLD_TRAINING = "training.safetensors"  # of checkpoints that one process wrote whole
TRANSFORMER = "transformer"  # beside it, and in folders of diffusers: averaged weights
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor: the number of its file, its first byte there, its place in the tensor and its shape."""

    file: int
    begin: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass
class TensorEntry:
    """A tensor: its type as safetensors names it, its whole shape, and its chunks, which cover it."""

    dtype: str
    shape: tuple[int, ...]
    chunks: list[Chunk]


@dataclass(frozen=True)
class FileEntry:
    """A file of a checkpoint. crc32: of each of its blocks; None where nobody took them."""

    name: str
    size: int
    block_bytes: int = BLOCK_BYTES
    crc32: tuple[int, ...] | None = None

    def ranges(self, size: int) -> list[tuple[int, int]]:
        """(begin, end) of parts of the file, each some whole blocks and about so many bytes."""
        step = max(1, size // self.block_bytes) * self.block_bytes
        return [(begin, min(self.size, begin + step)) for begin in range(0, self.size, step)]


class CheckpointIndex:
    """The tensors of a checkpoint by name, and its files, which their chunks count from 0."""

    def __init__(self, tensors: dict[str, TensorEntry], files: list[FileEntry]) -> None:
        self.tensors, self.files = tensors, files

    def to_json(self) -> bytes:
        """With a tensor a line; a chunk is [file, begin, offsets, sizes]."""
        lines = [
            f"  {json.dumps(name)}: "
            + json.dumps(
                {
                    "dtype": entry.dtype,
                    "shape": entry.shape,
                    "chunks": [[chunk.file, chunk.begin, chunk.offsets, chunk.sizes] for chunk in entry.chunks],
                }
            )
            for name, entry in sorted(self.tensors.items())
        ]
        files = ",\n".join(f"  {json.dumps(asdict(file))}" for file in self.files)
        tensors = ",\n".join(lines)
        return f'{{\n "format": 1,\n "files": [\n{files}\n ],\n "tensors": {{\n{tensors}\n }}\n}}\n'.encode()

    @classmethod
    def from_json(cls, content: bytes) -> CheckpointIndex:
        """Raises ValueError or KeyError for what `to_json` has not written."""
        values = json.loads(content)
        tensors = {
            name: TensorEntry(
                entry["dtype"],
                tuple(entry["shape"]),
                [Chunk(file, begin, tuple(offsets), tuple(sizes)) for file, begin, offsets, sizes in entry["chunks"]],
            )
            for name, entry in values["tensors"].items()
        }
        files = [
            FileEntry(file["name"], file["size"], file["block_bytes"], tuple(file["crc32"])) for file in values["files"]
        ]
        return cls(tensors, files)

    def digest(self) -> str:
        """Of what it holds: tensors, sizes of files, and their checksums where they are known."""
        tensors = sorted((name, entry.dtype, list(entry.shape)) for name, entry in self.tensors.items())
        files = sorted([file.name, file.size, list(file.crc32 or ())] for file in self.files)
        return hashlib.blake2b(json.dumps([tensors, files]).encode(), digest_size=16).hexdigest()

    def metadata(self) -> Metadata:
        """As torch.distributed.checkpoint plans by it."""
        import torch
        from torch.distributed.checkpoint.metadata import (
            ChunkStorageMetadata,
            Metadata,
            TensorProperties,
            TensorStorageMetadata,
        )

        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(torch_dtype(entry.dtype)),
                    torch.Size(entry.shape),
                    [ChunkStorageMetadata(torch.Size(part.offsets), torch.Size(part.sizes)) for part in entry.chunks],
                )
                for name, entry in self.tensors.items()
            }
        )

    def by_parameter(self, begin: str) -> list[tuple[str, TensorEntry]]:
        """Tensors whose names begin so, up to and with their last '/'."""
        return self._by_parameter.get(begin, [])

    @cached_property
    def _by_parameter(self) -> dict[str, list[tuple[str, TensorEntry]]]:
        found: dict[str, list[tuple[str, TensorEntry]]] = {}
        for name, entry in self.tensors.items():
            begin, slash, _ = name.rpartition("/")
            found.setdefault(begin + slash, []).append((name, entry))
        return found

    def chunk(self, place: MetadataIndex) -> Chunk:
        """The chunk at that place of a tensor."""
        return self._chunks[place.fqn, tuple(place.offset or ())]

    @cached_property
    def _chunks(self) -> dict[tuple[str, tuple[int, ...]], Chunk]:
        return {(name, chunk.offsets): chunk for name, entry in self.tensors.items() for chunk in entry.chunks}


def torch_dtype(name: str) -> torch.dtype:
    """The type that safetensors names so."""
    import torch

    return {
        "F64": torch.float64,
        "I64": torch.int64,
        "F32": torch.float32,
        "I32": torch.int32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }[name]


def dtype_name(dtype: torch.dtype) -> str:
    """What safetensors calls a type."""
    return next(name for name in _BYTES if torch_dtype(name) == dtype)


def read_index(folder: Store) -> CheckpointIndex:
    """The index of a checkpoint, or one made of the headers of its files where it is whole ones in safetensors.

    folder: of the checkpoint; one of diffusers, with `transformer/`, has averaged weights only.
    Raises FileNotFoundError where a file is missing, ValueError, KeyError or struct.error for one that is damaged.
    """
    try:
        return CheckpointIndex.from_json(folder.read(INDEX))
    except FileNotFoundError:
        # A name with a second dot is that of a variant, as fp16, which holds the same tensors once more.
        names = [
            f"{TRANSFORMER}/{name}"
            for name in folder.files(TRANSFORMER)
            if name.endswith(".safetensors") and name.count(".") == 1
        ]
        training = folder.exists(OLD_TRAINING)
        if not names:
            raise FileNotFoundError(f"{TRANSFORMER}/*.safetensors" if training else INDEX) from None
    index = CheckpointIndex({}, [])
    for name in names + [OLD_TRAINING] * training:
        _add_file(index, folder, name, "" if name == OLD_TRAINING else AVERAGE)
    return index


def _add_file(index: CheckpointIndex, folder: Store, name: str, prefix: str) -> None:
    """Add the tensors of a file, which are whole, to an index; prefix: of their names there."""
    (length,) = struct.unpack("<Q", folder.read_range(name, 0, 8))
    header: dict[str, Any] = json.loads(folder.read_range(name, 8, length))
    header.pop("__metadata__", None)
    size = 8 + length + max((value["data_offsets"][1] for value in header.values()), default=0)
    for tensor, value in header.items():
        shape = tuple(value["shape"])
        chunk = Chunk(len(index.files), 8 + length + value["data_offsets"][0], (0,) * len(shape), shape)
        index.tensors[prefix + tensor] = TensorEntry(value["dtype"], shape, [chunk])
    index.files.append(FileEntry(name, size))


def chunk_bytes(dtype: str, sizes: tuple[int, ...]) -> int:
    """How many bytes a chunk of this type and shape takes."""
    return _BYTES[dtype] * math.prod(sizes)


class DamagedFile(InputError):
    """A file of a checkpoint is missing or not what was written; the message says which file and how."""


def read_blocks(folder: Store, file: FileEntry, begin: int, end: int) -> bytes:
    """Bytes of a checkpoint's file, from the begin of a block to the end of another. Raises DamagedFile."""
    try:
        content = folder.read_range(file.name, begin, end - begin)
    except FileNotFoundError:
        raise DamagedFile(f"{file.name} is not there") from None
    if len(content) != end - begin:
        raise DamagedFile(f"{file.name} ends after {begin + len(content)} of {file.size} bytes")
    if file.crc32 is not None:
        step = file.block_bytes
        for place in range(0, len(content), step):
            if zlib.crc32(memoryview(content)[place : place + step]) != file.crc32[(begin + place) // step]:
                raise DamagedFile(f"{file.name} holds other bytes than were written, from {begin + place} on")
    return content
