"""A checkpoint's shards: each process writes its part of the tensors as safetensors, and reads the part that it needs.

torch.distributed.checkpoint plans who writes and reads what; here it meets the store. Parts stream through, so neither
way takes memory beyond some megabytes. The shards hold offsets as torch's HuggingFaceStorageReader expects them.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint import StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from labeling.dataset import Store
from training.checkpoint.index import (
    BLOCK_BYTES,
    CheckpointIndex,
    Chunk,
    FileEntry,
    TensorEntry,
    chunk_bytes,
    dtype_name,
    read_blocks,
    torch_dtype,
)

_READ_BYTES = 8 << 20  # at a time; neighbors together up to twice as much
_WRITE_BYTES = 4 << 20
_READERS = 8


class _Part(NamedTuple):
    """Where a process has written a part of a tensor; with the first of them comes the file."""

    file: FileEntry | None
    begin: int
    dtype: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class ShardWriter(StorageWriter):
    """Writes a process's parts to one file of a checkpoint's folder."""

    def __init__(self, folder: Store, rank: int, count: int, complete: Callable[[CheckpointIndex], None]) -> None:
        """folder: of the checkpoint; complete: called on rank 0 when the files of all processes are there."""
        self.folder, self.complete = folder, complete
        self.name = f"shard-{rank:05d}-of-{count:05d}.safetensors"

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a writer serves one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: the store is ready."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On rank 0, before anyone writes."""
        self.folder.delete_tree("")  # what a killed writer left
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the file, whole or not at all."""
        parts = [(item, planner.resolve_data(item).detach()) for item in plan.items]
        # Larger types first, so that each tensor is aligned to its type. Small tensors together at the end, where few
        # blocks hold them. An empty part is no part.
        parts = sorted(
            ((item, tensor) for item, tensor in parts if tensor.numel()),
            key=lambda part: (-part[1].element_size(), -part[1].nbytes, part[0].index.fqn),
        )
        done: Future[list[WriteResult]] = Future()
        done.set_result(self._write(parts) if parts else [])
        return done

    def _write(self, parts: list[tuple[WriteItem, Tensor]]) -> list[WriteResult]:
        header: dict[str, Any] = {}
        offsets: dict[str, Any] = {}
        size = 0
        for item, tensor in parts:
            end = size + tensor.nbytes
            name = item.index.fqn
            assert name not in header, f"two parts of {name} in one process"
            header[name] = {
                "dtype": dtype_name(tensor.dtype),
                "shape": list(tensor.shape),
                "data_offsets": [size, end],
            }
            offsets[name] = {"saved_offsets": list(item.index.offset or [0] * tensor.ndim)}
            size = end
        header["__metadata__"] = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(offsets)}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        first = struct.pack("<Q", len(text)) + text
        checksums = BlockChecksums(BLOCK_BYTES)

        def stream() -> Iterator[bytes | memoryview]:
            checksums.add(memoryview(first))
            yield first
            for _, tensor in parts:
                content = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
                for begin in range(0, len(content), _WRITE_BYTES):
                    part = content[begin : begin + _WRITE_BYTES]
                    checksums.add(part)
                    yield part

        self.folder.put_stream(self.name, stream(), len(first) + size)
        file = FileEntry(self.name, len(first) + size, BLOCK_BYTES, tuple(checksums.values()))
        results = []
        for number, (item, tensor) in enumerate(parts):
            entry = header[item.index.fqn]
            part = _Part(
                None if number else file,
                len(first) + entry["data_offsets"][0],
                entry["dtype"],
                tuple(offsets[item.index.fqn]["saved_offsets"]),
                tuple(tensor.shape),
            )
            results.append(WriteResult(item.index, tensor.nbytes, part))
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On rank 0, when everyone has written."""
        index = CheckpointIndex({}, [])
        for written in results:
            for result in written:
                part: _Part = result.storage_data
                if part.file:
                    index.files.append(part.file)
                shape = tuple(metadata.state_dict_metadata[result.index.fqn].size)
                entry = index.tensors.setdefault(result.index.fqn, TensorEntry(part.dtype, shape, []))
                entry.chunks.append(Chunk(len(index.files) - 1, part.begin, part.offsets, part.sizes))
        self.complete(index)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False  # only our own code makes one


class BlockChecksums:
    """The checksums of a file's blocks, taken while it streams by."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._done: list[int] = []
        self._running, self._length = 0, 0

    def add(self, content: memoryview) -> None:
        """Take the next bytes of the file into account."""
        while content:
            some = content[: self._block_bytes - self._length]
            self._running, self._length = zlib.crc32(some, self._running), self._length + len(some)
            if self._length == self._block_bytes:
                self._done.append(self._running)
                self._running = self._length = 0
            content = content[len(some) :]

    def values(self) -> list[int]:
        """Checksums of all blocks so far, the last of which may be short."""
        return [*self._done, self._running] if self._length else list(self._done)


@dataclass
class _Target:
    """Numbers in a row of a file, from its byte `begin` on, and where they go: a flat tensor."""

    begin: int
    dtype: str
    values: Tensor

    @property
    def width(self) -> int:
        return chunk_bytes(self.dtype, (1,))

    @property
    def end(self) -> int:
        return self.begin + self.values.numel() * self.width


class ShardReader(StorageReader):
    """Reads what a process needs of a checkpoint, whatever the number of those that wrote it, and checks it."""

    def __init__(self, folder: Store, index: CheckpointIndex) -> None:
        self.folder, self.index = folder, index

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a reader serves one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.index.metadata()

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: the store is ready."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @torch.no_grad()
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the plan's parts into the planner's tensors, whose type may be another. Raises DamagedFile."""
        targets: dict[int, list[_Target]] = defaultdict(list)
        whole: list[tuple[Tensor, ReadItem, Tensor]] = []
        for item in plan.items:
            chunk = self.index.chunk(item.storage_index)
            target = planner.resolve_tensor(item).detach()
            dtype = self.index.tensors[item.storage_index.fqn].dtype
            begin = chunk.begin
            if tuple(item.lengths[1:]) == chunk.sizes[1:] and target.is_contiguous():
                if chunk.sizes:
                    begin += item.storage_offsets[0] * chunk_bytes(dtype, chunk.sizes[1:])
            else:  # split along another axis than the first: the chunk is read whole
                read = torch.empty(chunk.sizes, dtype=torch_dtype(dtype))
                whole.append((target, item, read))
                target = read
            targets[chunk.file] += _pieces(_Target(begin, dtype, target.view(-1)))
        work = [
            (self.index.files[number], group)
            for number, of_file in sorted(targets.items())
            for group in _neighbors(of_file, self.index.files[number].block_bytes)
        ]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="checkpoint") as threads:
            for _ in threads.map(lambda part: self._read(*part), work):
                pass
        for target, item, read in whole:
            for axis, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                read = read.narrow(axis, offset, length)
            target.copy_(read)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read(self, file: FileEntry, targets: list[_Target]) -> None:
        """Read neighbors at once."""
        begin = targets[0].begin // file.block_bytes * file.block_bytes
        last = max(target.end for target in targets)
        end = min(file.size, -(-last // file.block_bytes) * file.block_bytes)
        content = bytearray(read_blocks(self.folder, file, begin, end))
        for target in targets:
            with torch.no_grad():
                values = torch.frombuffer(
                    content,
                    dtype=torch_dtype(target.dtype),
                    count=target.values.numel(),
                    offset=target.begin - begin,
                )
                target.values.copy_(values)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False  # only our own code makes one


def _pieces(target: _Target) -> Iterator[_Target]:
    """A target in pieces that are read at a time."""
    count = _READ_BYTES // target.width
    for first in range(0, target.values.numel(), count):
        yield _Target(target.begin + first * target.width, target.dtype, target.values[first : first + count])


def _neighbors(targets: list[_Target], block_bytes: int) -> Iterator[list[_Target]]:
    """Targets of a file by their place, those together that lie in the same blocks or in adjacent ones."""
    group: list[_Target] = []
    for target in sorted(targets, key=lambda target: target.begin):
        if group:
            is_near = target.begin // block_bytes <= (group[-1].end - 1) // block_bytes + 1
            if not is_near or target.end - group[0].begin > 2 * _READ_BYTES:
                yield group
                group = []
        group.append(target)
    if group:
        yield group
