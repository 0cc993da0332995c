"""One wave of a labeling job on Ray: parts of shards through the processes that label them."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any

import pyarrow as pa

from cluster.ray_environment import starts_own_ray
from cluster.ray_internals import execution_callback
from cluster.session import cluster_has
from labeling.dataset import IMAGES, Dataset, Footers, FooterTable
from labeling.labeler import Labeler
from labeling.plan import Wave
from labeling.resources import Resources
from model.inputs import WorkFailed
from pipelines.labeling_job.coordinator import Coordinator
from pipelines.labeling_job.label_process import LabelProcess
from pipelines.labeling_job.language_model import ask, processor_config
from pipelines.labeling_job.parts import PART_ROWS, blocks_of_parts, count_rows, cut_parts, pack
from pipelines.labeling_job.placement import Placement, place_labelers
from pipelines.labeling_job.result import LabelResult
from pipelines.labeling_job.shard_writer import Declarations
from pipelines.labeling_job.tally import Tally
from pipelines.progress import progress

LEAST_ROWS = 8  # for which a process is started
CALLS = 2  # parts that a process works on: one is labeled while another goes to the writer
CALLS_WITH_NETWORKS = 4  # or waits for a network
BLOCKS_IN_FLIGHT = 2  # of a process, besides those that it works on
FAST_POLLS, POLL_SECONDS = 100, 0.25  # looks of Ray Data's scheduler at its own pace, and what is added after them
SMALL_JOB = 100  # rows below which no share of errors stops a job
ENOUGH_ROWS = 1000  # that a share of errors is taken of at least, where there are so many
LOOK_SECONDS = 10.0  # between two looks at whether networks have processes

_log = logging.getLogger(__name__)


class WaveRun:
    """Runs waves; `first_label` is when the first label of all was made, in seconds since the epoch."""

    def __init__(
        self,
        dataset: Dataset,
        labelers: Mapping[str, Labeler],
        declarations: Declarations,
        resources: Mapping[str, Resources],
        most: tuple[float, float],
        start_ray: Callable[[], None],
    ) -> None:
        """most: CPUs and GPUs that the cluster may grow to; start_ray: connects to Ray, if it is not yet."""
        self.dataset = dataset
        self.labelers = labelers
        self.declarations = declarations
        self.resources = resources
        self.most = most
        self.start_ray = start_ray
        self.first_label: float | None = None

    def __call__(self, wave: Wave, footers: Footers, result: LabelResult, only_errors: bool) -> int:
        """Compute the shards of a wave, and add what was done to the result; how many writers were lost.

        Raises WorkFailed for a labeler with more unexpected errors than it may have.
        """
        images = FooterTable.of(footers[IMAGES])
        rows = images.total("rows", images.positions(list(wave.work)))
        if not rows:
            return 0
        self.start_ray()
        import ray  # after its start, which sets the environment that Ray reads once

        labelers = {group: labeler for group, labeler in self.labelers.items() if group in wave.groups}
        cpus = max(cluster_has("CPU") or 1.0, self.most[0])
        gpus = max(cluster_has("GPU"), self.most[1])
        resources = {group: self.resources[group] for group in labelers}
        placement = place_labelers(labelers, resources, gpus, cpus, may_grow=not starts_own_ray())
        config = self._language_model(labelers, gpus)
        coordinator = self._coordinator(placement)
        cpus_now = cluster_has("CPU") or 1.0
        reserved = placement.reserved_cpus(gpus, cpus_now)
        if reserved:
            ray.get(coordinator.count_losses.remote())  # the networks ask for theirs before others do
        processes = max(1, int((cpus_now - reserved) / placement.cpus + 1e-3))
        processes = min(processes, -(-rows // LEAST_ROWS))
        part_rows = 1 if placement.pools else min(PART_ROWS, -(-rows // (processes * 4)))
        parts = cut_parts(wave, self.declarations, footers, part_rows, only_errors)
        tables, count = [], 0
        for block in blocks_of_parts(parts, rows, processes):  # packed at once: of 10⁵ shards they take 200 MB
            tables.append(pa.table({"parts": [pack(block)]}))
            count += len(block)
        process = (self.dataset, labelers, resources, placement, coordinator)
        totals = count_rows(wave, footers)
        total, started = Tally(), time.monotonic()
        most = max(processes, int((cpus - placement.reserved_cpus(gpus, cpus)) / placement.cpus + 1e-3))
        excluded = reserved if cpus_now - reserved >= placement.cpus else 0.0
        if config:
            running = ask(tables, process, processes, config)
        else:
            running = _run(tables, process, processes, most, placement, excluded)
        done = 0
        try:
            with (
                _waits_named(coordinator if placement.pools else None),
                progress("label " + " ".join(labelers), rows, "rows") as advance,
                closing(running) as tallies,
            ):
                for tally in tallies:
                    done += 1
                    total.merge(tally)
                    advance(max(tally.rows.values(), default=0))
                    self._check_errors(total, totals)
            losses = int(ray.get(coordinator.count_losses.remote()))
            if config and done < count:  # what collected the answers was lost with some of them
                losses += 1
        finally:
            ray.kill(coordinator)
        self.first_label = self.first_label or total.first_label
        result.add(total)
        result.pictures += rows
        result.working += time.monotonic() - started
        return losses

    def _language_model(self, labelers: Mapping[str, Labeler], gpus: float) -> dict[str, Any]:
        """What `ray.data.llm` is to run for the only labeler, nothing where it runs no model. Raises InputError."""
        for group, labeler in labelers.items():
            if labeler.language_model:
                assert len(labelers) == 1, "such a labeler has a pass of its own"
                grows = not starts_own_ray()
                return processor_config(labeler.language_model, group, self.resources[group], gpus, grows)
        return {}

    def _coordinator(self, placement: Placement) -> Any:
        """On this machine, where the job's end is its end; it is started again when it is lost."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        pools = {name: (pool, self.labelers[name], self.resources[name]) for name, pool in placement.pools.items()}
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        return ray.remote(Coordinator).options(**options).remote(self.dataset, self.declarations, pools)

    def _check_errors(self, total: Tally, rows: Mapping[str, int]) -> None:
        """Raises WorkFailed for a labeler that fails too often. rows: to label, by group."""
        for group, errors in total.errors.items():
            most = self.resources[group].max_errors
            if rows[group] < SMALL_JOB or errors.unexpected <= most * max(
                total.rows[group], min(rows[group], ENOUGH_ROWS)
            ):
                continue
            reason, entry = errors.top(1)[0] if errors.reasons else ("", None)
            example = f" (row {entry.example}: {entry.rows} rows)" if entry else ""
            raise WorkFailed(
                f"{group}: {errors.unexpected / total.rows[group]:.0%} of {total.rows[group]} rows failed, more than "
                f"{most:.0%}; most often: {reason}{example}. Finished shards stay; mend it and label again, or allow "
                f"more ({group}.max_errors)"
            )


@contextmanager
def _waits_named(coordinator: Any) -> Iterator[None]:
    """Say in a line which networks wait for a GPU, where Ray is silent. coordinator: None where there is no network."""
    ended = threading.Event()
    thread = threading.Thread(target=_name_waits, args=(coordinator, ended), daemon=True)
    if coordinator is not None:
        thread.start()
    try:
        yield
    finally:
        ended.set()


def _name_waits(coordinator: Any, ended: threading.Event) -> None:
    import ray

    last_lines: list[str] = []
    while not ended.wait(LOOK_SECONDS):
        with suppress(Exception):  # the job itself hears of what is wrong with the coordinator or with Ray
            lines = ray.get(coordinator.waits.remote(), timeout=LOOK_SECONDS)
            for line in lines:
                if line not in last_lines:
                    _log.warning("%s", line)
            last_lines = lines


def _run(
    tables: list[Any], process: tuple[Any, ...], processes: int, most: int, placement: Placement, excluded: float
) -> Generator[Tally]:
    """The Ray Data job: the tally of each part as it is done. excluded: CPUs that Ray Data is to leave free."""
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

    context = DataContext.get_current().copy()
    if excluded:
        context.execution_options.exclude_resources = ExecutionResources(cpu=excluded)
    context.target_max_block_size = 1  # the tally of a part is given on at once, not with those of its block
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _slow_polling()]
    calls = CALLS_WITH_NETWORKS if placement.pools else CALLS
    least = min(processes, len(tables))
    pool = ActorPoolStrategy(
        min_size=least,
        max_size=max(least, min(most, len(tables))) if starts_own_ray() else None,
        max_concurrent_calls_per_actor=calls,
        max_tasks_in_flight_per_actor=calls + BLOCKS_IN_FLIGHT,
        enable_true_multi_threading=True,
    )
    with DataContext.current(context):
        rows = ray.data.from_blocks(tables).map_batches(  # from_arrow runs a task for each, to look at it
            LabelProcess,
            fn_constructor_args=process,
            batch_size=None,
            compute=pool,
            num_cpus=placement.cpus,
            num_gpus=0,
        )
        for row in rows.iter_rows():
            yield Tally.from_plain(json.loads(row["tally"]))


def _slow_polling() -> type:
    """Ray Data's scheduler looks at its tasks ten times a second, which takes a seventh of a core; they take longer."""

    class SlowPolling(execution_callback()):  # type: ignore[misc]  # Ray's class, unknown to mypy
        steps = 0

        def on_execution_step(self, executor: Any) -> None:
            self.steps += 1
            if self.steps > FAST_POLLS:  # a short job, and the start of a long one, wait for every step
                time.sleep(POLL_SECONDS)

    return SlowPolling
