"""A worker's batches, read ahead in the plan's order: by threads of the worker, or by option in Ray Data's processes.

Each worker has a stream of its own rather than a share of one that is split as workers ask: the plan alone decides who
gets what, and it must not depend on who was faster.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from labeling.dataset import in_parallel
from model.inputs import InputError
from training.batch import StepBatch
from training.config import TrainingConfig
from training.reader import Allocate, PlanReader

_BLOCK_STEPS = 4  # steps a task: enough to hide Ray's cost of one, few enough to begin at once
_SEGMENT_STEPS = 8192  # steps of one Ray Data execution, which keeps some memory for each of its blocks
_STORE_SHARE = 0.25  # of the object store for what all workers have read ahead
_THROTTLE_SECONDS = 0.05  # far below the time of a block of steps


def load_batches(
    manifest: Any,
    config: TrainingConfig,
    rank: int,
    workers: int,
    processes: int,
    steps: Sequence[int],
    allocate: Allocate | None = None,
) -> Iterator[StepBatch]:
    """The batches of worker `rank` for consecutive steps. Degraded pictures are left to `training.device`.

    manifest: a Ray reference to the Manifest. processes: of Ray Data that read; 0 are threads of this process.
    allocate: makes the arrays that threads read into. Raises the InputError of a reader (a shard that changed, a prompt
    that is missing).
    """
    if processes:
        return _read_in_processes(manifest, config, rank, workers, processes, steps)
    return _read_in_threads(manifest, config, rank, workers, steps, allocate)


def _read_in_threads(
    manifest: Any, config: TrainingConfig, rank: int, workers: int, steps: Sequence[int], allocate: Allocate | None
) -> Iterator[StepBatch]:
    import ray

    yield from read_ahead(PlanReader(ray.get(manifest), config, allocate=allocate), rank, workers, steps)


def read_ahead(reader: PlanReader, rank: int, workers: int, steps: Sequence[int]) -> Iterator[StepBatch]:
    """The batches of a reader, `prefetch` steps ahead of who takes them, by threads as its configuration says.

    Reading files and decoding pictures happen outside Python's lock.
    """
    ahead = reader.config.reader.prefetch + 1
    return in_parallel(lambda step: reader.read(step, rank, workers), steps, reader.threads, ahead)


def prefetch(batches: Iterator[StepBatch]) -> Iterator[StepBatch]:
    """Load the first batch now, and not when it is asked for: readers have to start for it."""
    first: Future[list[StepBatch]] = Future()

    def load() -> None:
        try:
            first.set_result(list(islice(batches, 1)))
        except BaseException as error:  # raised where the batch is asked for
            first.set_exception(error)

    threading.Thread(target=load, daemon=True).start()
    return chain(_result(first), batches)


def _result(batches: Future[list[StepBatch]]) -> Iterator[StepBatch]:
    yield from batches.result()


class ThrottleCallback:
    """Makes Ray Data's scheduling loop sleep between rounds (an ExecutionCallback of Ray Data).

    Once enough is read ahead there is no task to wait for, and the loop, a thread of the training worker, spins: on two
    cores it took half of the worker's time.
    """

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing to prepare."""

    def on_execution_step(self, executor: Any) -> None:
        """Sleep."""
        time.sleep(_THROTTLE_SECONDS)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing to clean up."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing to clean up."""


class StepReader:
    """The reading actor: numbers of steps in, encoded batches of one worker out."""

    def __init__(self, manifest: Any, config: TrainingConfig, rank: int, workers: int) -> None:
        """manifest: {"ref": Ray's reference to a Manifest}."""
        import ray

        os.environ["OMP_NUM_THREADS"] = "1"  # of torch, where rays of cameras need it: a reader has about one CPU
        self.reader = PlanReader(ray.get(manifest["ref"]), config)
        self.rank, self.workers = rank, workers

    def __call__(self, table: pa.Table) -> pa.Table:
        """(step) → (batch, error). A user's error is returned as a value: Ray would bury it in a traceback."""
        batches: list[bytes | None] = []
        errors: list[str | None] = []
        for step in table["step"].to_pylist():
            try:
                batches.append(self.reader.read(step, self.rank, self.workers).to_bytes())
                errors.append(None)
            except InputError as error:
                batches.append(None)
                errors.append(str(error))
        return pa.table({"batch": pa.array(batches, pa.large_binary()), "error": pa.array(errors, pa.string())})


def _read_in_processes(
    manifest: Any, config: TrainingConfig, rank: int, workers: int, processes: int, steps: Sequence[int]
) -> Iterator[StepBatch]:
    for start in range(0, len(steps), _SEGMENT_STEPS):
        segment = steps[start : start + _SEGMENT_STEPS]
        for row in _execute(manifest, config, rank, workers, processes, segment):
            for data, error in zip(row["batch"], row["error"], strict=True):
                if error.is_valid:
                    raise InputError(error.as_py())
                yield StepBatch.from_bytes(data.as_py())


def _execute(
    manifest: Any, config: TrainingConfig, rank: int, workers: int, processes: int, steps: Sequence[int]
) -> Iterator[pa.Table]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext, ExecutionResources
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [ThrottleCallback]
    # Every worker runs its own execution; together they must not take each other's memory.
    store = ray.cluster_resources().get("object_store_memory", 0.0) * _STORE_SHARE / workers
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=store)
    beside = config.reader.beside
    if beside:
        # On the worker's node where resources allow it, so that batches do not cross the network once more.
        here = ray.get_runtime_context().get_node_id()
        context.scheduling_strategy = NodeAffinitySchedulingStrategy(here, soft=True)
    else:
        context.scheduling_strategy = "SPREAD"
    # Not from_arrow: for each block it runs a task that asks for a whole CPU, and waits forever where only parts are
    # free.
    rows = [{"step": step} for step in steps]
    dataset = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // _BLOCK_STEPS)).map_batches(
        StepReader,
        fn_constructor_args=[{"ref": manifest}, config, rank, workers],
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=0 if beside else config.reader.cpus,  # else the worker has requested them, see training.run
        compute=ActorPoolStrategy(size=processes),
    )
    yield from dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=config.reader.prefetch)
