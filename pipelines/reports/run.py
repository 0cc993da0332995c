"""The section of a page about a run: losses, speed, samples, and figures of its evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from statistics import median
from typing import Any

from labeling.dataset import Store, open_store
from model.inputs.yaml_files import parse_yaml
from model.prompts import TASKS
from pipelines.file_cache import FileCache
from pipelines.reports.comparison import Comparison, compare
from pipelines.reports.curves import Chart, part_charts, run_charts, values_of
from pipelines.reports.figures import EVALUATION, Figure, read_json, run_figures
from pipelines.reports.numbers import duration, number
from pipelines.reports.overlays import Drawing, Inliner, inline_file
from pipelines.reports.timeline import Timeline, timelines
from training.anomalies import read_skipped
from training.checkpoint import whole_checkpoints
from training.metrics_logger import METRICS, read_metrics
from training.plan.manifest import Manifest
from training.run import CONFIG

DEMO_RESULTS, SAMPLES = "metrics.json", "samples/samples.json"
MAX_SAMPLES, MAX_SKIPPED = 120, 20

# What a sample shows, and what it is made from, where that has another name than its task.
_CONDITIONS = {
    "text2image": "prompt",
    "deblurring": "blurred picture",
    "inpainting": "covered picture",
    "upscaling": "small picture",
}


@dataclass(frozen=True)
class MixtureLine:
    """A task of a source, how many samples of it were drawn, and how often each row was among them on average."""

    source: str
    task: str
    weight: str
    rows: str
    drawn: str
    epochs: str


@dataclass(frozen=True)
class Sample:
    """One sample beside what it was made from and what it should have been."""

    direction: str
    prompt: str
    inputs: Sequence[Drawing]
    outputs: Sequence[Drawing]
    truth: Drawing | None
    note: str


@dataclass(frozen=True)
class RunSection:
    """All that the page shows of a run."""

    uri: str
    name: str
    step: int
    loss: str
    speed: str  # of the whole run
    speed_now: str
    facts: Mapping[str, str]
    tasks: Sequence[MixtureLine]
    charts: Sequence[Chart]
    task_charts: Sequence[Chart]
    level_charts: Sequence[Chart]
    skipped: Sequence[Mapping[str, Any]]  # of the last steps that were skipped
    skipped_count: int
    timelines: Sequence[Timeline]
    comparison: Comparison | None
    samples: Mapping[str, Sequence[Sample]]
    samples_left_out: int
    figures: Sequence[Figure]
    missing: Sequence[str] = field(default_factory=list)


def is_run(store: Store) -> bool:
    """Whether training has left anything there."""
    return store.exists(CONFIG) or store.exists(METRICS) or bool(whole_checkpoints(store))


def run_datasets(store: Store) -> list[str]:
    """Addresses of the datasets that a run was trained on, as its configuration names them."""
    mixture = _config(store).get("mixture") or {}
    return list(dict.fromkeys(str(source["dataset"]) for source in mixture.values() if source.get("dataset")))


def run_timings(store: Store) -> list[dict[str, Any]]:
    """Timings that the demo left beside its run, if any."""
    results = read_json(store, DEMO_RESULTS)
    return list(results.get("timings") or []) if isinstance(results, dict) else []


_metrics = FileCache(lambda store, name: read_metrics(store), capacity=8)


def run_records(store: Store) -> list[dict[str, Any]]:
    """The records of a run's metrics, oldest first, read once for as long as they stay the same."""
    entry = store.files().get(METRICS)
    return _metrics.get(store, METRICS, entry) if entry else []


def describe_run(
    uri: str,
    inline: Inliner,
    figures: Mapping[str, Any] | None = None,
    tasks: bool = True,
    beside: str | None = None,
) -> RunSection:
    """Read a run for the page. figures: of its evaluation, used instead of those in RUN/evaluation.json.

    tasks: whether to say how many rows each has, which takes the manifest: it names every shard of every dataset.
    beside: address of a run to compare it with. Whatever is not there is named in `missing`.
    """
    store = open_store(uri)
    config = _config(store)
    records = [record for record in run_records(store) if isinstance(record.get("step"), int)]
    steps = whole_checkpoints(store)
    evaluated = run_figures(store, figures)
    other = open_store(beside) if beside else None
    other_records = run_records(other) if other else []
    rows = timelines(store, inline, other)
    samples, left_out = _samples(store, inline)
    skipped = read_skipped(store)
    step = max([record["step"] for record in records] + steps, default=0)
    comparison = None
    if other:
        seconds = (_training_seconds(records), _training_seconds(other_records))
        comparison = compare((store, other), (config, _config(other)), (records, other_records), seconds)
    present = {
        f"no configuration ({CONFIG})": bool(config),
        f"no metrics yet ({METRICS}): nothing was logged": bool(records),
        "no whole checkpoint yet": bool(steps),
        f"no samples ({SAMPLES})": bool(samples or rows),
        f"no evaluation ({EVALUATION})": bool(evaluated),
    }
    return RunSection(
        uri=store.uri,
        name=str(config.get("name") or PurePosixPath(store.uri).name),
        step=step,
        loss=number(_mean(values_of(records, "loss")[-5:])),
        speed=number(_median(values_of(records, "tokens_per_second"))),
        speed_now=number(_median(values_of(records, "tokens_per_second")[-5:])),
        facts=_facts(config, records, steps),
        tasks=_tasks(config, store, step) if tasks else [],
        charts=run_charts(records, other_records),
        task_charts=part_charts(records, "losses", "Loss of {}", other_records),
        level_charts=part_charts(records, "level_losses", "Loss at noise levels {}", other_records),
        skipped=skipped[-MAX_SKIPPED:],
        skipped_count=len(skipped),
        timelines=rows,
        comparison=comparison,
        samples=samples,
        samples_left_out=left_out,
        figures=evaluated,
        missing=[what for what, is_present in present.items() if not is_present],
    )


def _config(store: Store) -> dict[str, Any]:
    """The configuration of a run as it was stored, {} where there is none. Raises InputError for what is not YAML."""
    try:
        text = store.read(CONFIG).decode()
    except FileNotFoundError:
        return {}
    return dict(parse_yaml(text, f"{store.uri}/{CONFIG}") or {})


def _facts(config: Mapping[str, Any], records: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> dict[str, str]:
    model, objective = config.get("model") or {}, config.get("objective") or {}
    optimizer, workers = config.get("optimizer") or {}, config.get("workers") or {}
    facts = {
        "steps": f"{config['steps']:,} planned" if "steps" in config else "",
        "batch": f"{config['batch']} samples a step" if "batch" in config else "",
        "size": f"around {config['size']} × {config['size']} pixels" if "size" in config else "",
        "model": f"hidden {model['hidden_size']}, depth {model['depth']}, {model['num_heads']} heads" if model else "",
        "known frames": f"in {objective['known_frame_share']:.0%} of the samples" if objective else "",
        "learning rate": f"{optimizer['learning_rate']:g}, {optimizer['schedule']} after {optimizer['warmup']} steps"
        if optimizer
        else "",
        "workers": _workers(workers.get("count")),
        "seed": str(config.get("seed", "")),
        "checkpoints": ", ".join(f"{step:,}" for step in steps),
        "time in training": duration(_training_seconds(records)) if records else "",
        "waiting for data": _percent(_mean(values_of(records, "wait_share"))),
    }
    return {name: value for name, value in facts.items() if value}


def _workers(count: Any) -> str:
    return f"{count[0]} to {count[1]}" if isinstance(count, list) else str(count or "")


def _tasks(config: Mapping[str, Any], store: Store, step: int) -> list[MixtureLine]:
    """How often each task's samples were drawn up to a step, and how many epochs of its rows that is."""
    manifest = Manifest.find(store)
    rows = {(stream.source, stream.task): stream.rows for stream in manifest.streams} if manifest else {}
    weights = {
        (name, task): float(weight)
        for name, source in (config.get("mixture") or {}).items()
        for task, weight in source.get("tasks", {}).items()
    }
    used = {key: weight for key, weight in weights.items() if rows.get(key, 1)}
    trained_on = 1 - float((config.get("validation") or {}).get("share") or 0)
    drawn = {key: step * config.get("batch", 0) * weight / sum(used.values()) for key, weight in used.items()}
    return [
        MixtureLine(
            source=name,
            task=task,
            weight=f"{weight:g}",
            rows=number(rows.get((name, task))),
            drawn=number(round(drawn.get((name, task), 0))),
            epochs=number(drawn[name, task] / (rows[name, task] * trained_on)) if rows.get((name, task)) else "–",
        )
        for (name, task), weight in weights.items()
    ]


def _samples(store: Store, inline: Inliner) -> tuple[dict[str, list[Sample]], int]:
    """Samples by task, in the order of the tasks, and the number of those that were left out."""
    records = [record for record in read_json(store, SAMPLES) or [] if isinstance(record, dict)]
    order = list(TASKS)
    records.sort(key=lambda one: order.index(one["task"]) if one.get("task") in order else len(order))
    samples: dict[str, list[Sample]] = {}
    count = 0
    for record in records:
        if inline.full or count == MAX_SAMPLES:
            break
        count += 1
        samples.setdefault(str(record.get("task", "")), []).append(_sample(store, record, inline))
    return samples, len(records) - count


def _sample(store: Store, record: Mapping[str, Any], inline: Inliner) -> Sample:
    task, forward = str(record.get("task", "")), record.get("direction") == "to_image"
    condition = _CONDITIONS.get(task, task)
    output, source = ("picture", condition) if forward else (condition, "picture")
    if task == "views":
        output, source = ("view" if forward else "cameras"), "view"
    subject = f"{record.get('id', '')!s:.8}"

    def picture(name: str, title: str, alt: str) -> Drawing:
        try:
            # Only files beside samples.json are read, since a run from elsewhere may name any file there.
            data = store.read(f"samples/{PurePosixPath(str(name)).name}")
        except FileNotFoundError:
            return Drawing(title, note="the file is not there")
        return inline_file(data, inline, f"{alt} of {subject}", title)

    return Sample(
        direction=("view and cameras → views" if forward else "views → cameras")
        if task == "views"
        else f"{source} → {output}",
        prompt=str(record.get("prompt") or ""),
        inputs=[picture(name, "given", f"given {source}") for name in record.get("inputs") or []],
        outputs=[picture(name, "sampled", f"sampled {output}") for name in record.get("output") or []],
        truth=picture(record["label"], "true", f"true {output}") if record.get("label") else None,
        note=str(record.get("note") or ""),
    )


def _training_seconds(records: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of all processes that trained: `seconds` counts from the start of each, so it falls on a resume."""
    seconds = values_of(records, "seconds")
    return sum(now for now, after in zip(seconds, [*seconds[1:], -1.0], strict=False) if after < now)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%} of the time"
