"""Saving while training goes on: tensors are copied aside, and a thread writes the copies to the store.

Training waits in two places only: before it changes weights whose copies are not complete, and before the next save
while this one is still being written.
"""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import WriteItem

from labeling.dataset import Store
from model.inputs import InputError, WorkFailed, one_line
from training.checkpoint.files import SAVED, STATE, checkpoint_name, prune_checkpoints
from training.checkpoint.index import INDEX, CheckpointIndex
from training.checkpoint.loading import cause_raised
from training.checkpoint.shards import ShardWriter
from training.config import CheckpointConfig

_WRITING_HOURS = 2  # that processes wait for the slowest one


class CopyPlanner(DefaultSavePlanner):
    """Plans by the tensors that are trained, and writes their copies."""

    def __init__(self, cached: bool = False) -> None:
        """cached: plan once, for processes that save the same tensors again and again."""
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False, enable_plan_caching=cached)
        self.copies: Mapping[str, Tensor] = {}

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self.copies[write_item.index.fqn]


def save_tensors(
    store: Store,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    retention: CheckpointConfig,
    planner: CopyPlanner | None = None,
    group: Any = None,
    before_whole: Callable[[], None] | None = None,
) -> str:
    """Write the checkpoint of state["step"], and remove those that `retention` does not keep. Returns its address.

    Called by all processes of `group`, or by one alone without a group. tensors: by name, DTensors as shards; a planner
    may have copies of what each process has of them. state: what state.json holds besides the time.
    before_whole: called on rank 0 just before the checkpoint becomes whole. Of one that fails nothing is left.
    Raises InputError and WorkFailed, on all processes, for what a disk or S3 refuses.
    """
    name = checkpoint_name(state["step"])
    folder = store.subfolder(name)
    rank, count = (0, 1) if group is None else (group.rank(), group.size())

    def complete(index: CheckpointIndex) -> None:
        folder.put(INDEX, index.to_json())
        if before_whole:
            before_whole()
        whole = {**state, SAVED: datetime.now(UTC).isoformat(timespec="seconds")}
        folder.put(STATE, json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n")

    if planner is None:
        planner = CopyPlanner()
        planner.copies = tensors
    try:
        with cause_raised(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.save(
                dict(tensors),
                storage_writer=ShardWriter(folder, rank, count, complete),
                planner=planner,
                process_group=group,
                no_dist=group is None,
            )
        if rank == 0:
            prune_checkpoints(store, state["step"], retention.keep, retention.keep_hours)
    except Exception as error:
        if rank == 0 and not folder.exists(STATE):
            folder.delete_tree("")  # it may fill the disk
        if isinstance(error, InputError | WorkFailed):
            raise
        raise WorkFailed(f"{folder.uri}: could not be written ({one_line(error, 200)})") from error
    return folder.uri


class CheckpointSaver:
    """Saves a worker's tensors in the background, one checkpoint at a time. All workers call it at the same steps."""

    def __init__(
        self,
        store: Store,
        tensors: Callable[[], Mapping[str, Tensor]],
        retention: CheckpointConfig,
        before_whole: Callable[[], None] | None = None,
    ) -> None:
        """tensors: gives what is saved, by name, the same objects whenever they are there; see `save_tensors`."""
        distributed = torch.distributed.is_initialized()
        # A group of its own: these collectives run beside those of training. It sends no tensors, so gloo serves GPUs.
        self.group = (
            torch.distributed.new_group(backend="gloo", timeout=timedelta(hours=_WRITING_HOURS))
            if distributed
            else None
        )
        self.store, self.retention, self.before_whole = store, retention, before_whole
        self._tensors = tensors
        self._planner = CopyPlanner(cached=distributed)
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        self._copied_on_device: torch.cuda.Event | None = None
        self._saved: deque[tuple[int, str]] = deque()
        self._error: BaseException | None = None
        self.waited = 0.0  # seconds that training has spent here

    def save(self, state: Mapping[str, Any], check: Callable[[Mapping[str, Tensor], Any], None] | None = None) -> None:
        """Begin to save the tensors as they are. Waits for the save before, and raises its failure.

        check: called in the background with the copies and the group, to raise where they must not be saved.
        """
        self.wait()
        began = time.monotonic()
        tensors = dict(self._tensors())
        ready = None
        if any(tensor.is_cuda for tensor in tensors.values()):
            ready = torch.cuda.Event()
            ready.record()
        self._copied.clear()
        self._thread = threading.Thread(
            target=self._run, args=(tensors, dict(state), check, ready), name="checkpoint", daemon=True
        )
        self._thread.start()
        self.waited += time.monotonic() - began

    def await_copies(self) -> None:
        """Call it before the tensors change: returns when those under way to a checkpoint are copied."""
        if self._thread is None:
            return
        began = time.monotonic()
        self._copied.wait()
        if self._copied_on_device is not None:  # the device waits, not this process
            torch.cuda.current_stream().wait_event(self._copied_on_device)
            self._copied_on_device = None
        self.waited += time.monotonic() - began

    def saved(self) -> list[tuple[int, str]]:
        """(step, address) of the checkpoints that have become whole since the last call. Raises a save's failure."""
        if self._error is not None:
            raise self._error
        return [self._saved.popleft() for _ in range(len(self._saved))]

    def wait(self) -> None:
        """Wait until nothing is being written. Raises the failure of a save."""
        if self._thread is not None:
            began = time.monotonic()
            self._thread.join()
            self._thread = None
            self.waited += time.monotonic() - began
        if self._error is not None:
            raise self._error

    def _run(
        self,
        tensors: dict[str, Tensor],
        state: dict[str, Any],
        check: Callable[[Mapping[str, Tensor], Any], None] | None,
        ready: torch.cuda.Event | None,
    ) -> None:
        try:
            try:
                self._copy(tensors, ready)
            finally:
                self._copied.set()
            if check:
                check(self._planner.copies, self.group)
            address = save_tensors(
                self.store, tensors, state, self.retention, self._planner, self.group, self.before_whole
            )
            self._saved.append((state["step"], address))
        except BaseException as error:  # raised where training asks
            self._error = error

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor], ready: torch.cuda.Event | None) -> None:
        """Copy what this process has of the tensors to memory of the host, which is pinned for a GPU and used again."""
        shards = {name: _local(tensor) for name, tensor in tensors.items()}
        for name, shard in shards.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != shard.shape or buffer.dtype != shard.dtype:
                self._buffers[name] = torch.empty(shard.shape, dtype=shard.dtype, pin_memory=shard.is_cuda)
        self._planner.copies = {name: self._buffers[name] for name in shards}
        if ready is None:
            for name, shard in shards.items():
                self._buffers[name].copy_(shard)
            return
        device = next(shard.device for shard in shards.values() if shard.is_cuda)
        torch.cuda.set_device(device)  # of this thread
        stream = torch.cuda.Stream(device)
        stream.wait_event(ready)
        with torch.cuda.stream(stream):
            for name, shard in shards.items():
                self._buffers[name].copy_(shard, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(stream)
        self._copied_on_device = copied
        self._copied.set()
        copied.synchronize()


def _local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    shard = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return shard.detach()
