"""The section of a page about a run: losses, speed, samples, and figures of its evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from statistics import median
from typing import Any

from markupsafe import Markup

from labeling.dataset import Store, open_store
from model.inputs.yaml_files import parse_yaml
from model.prompts import TASKS
from pipelines.file_cache import FileCache
from pipelines.reports.charts import chart_top, line_chart
from pipelines.reports.figures import EVALUATION, Figure, read_json, run_figures
from pipelines.reports.numbers import duration, is_number, number
from pipelines.reports.overlays import Drawing, Inliner, inline_file
from training.checkpoint import whole_checkpoints
from training.metrics_logger import METRICS, read_metrics
from training.plan.manifest import Manifest
from training.run import CONFIG

DEMO_RESULTS, SAMPLES = "metrics.json", "samples/samples.json"
MAX_SAMPLES = 120

# What a sample shows, and what it is made from, where that has another name than its task.
_CONDITIONS = {
    "text2image": "prompt",
    "deblurring": "blurred picture",
    "inpainting": "covered picture",
    "upscaling": "small picture",
}


@dataclass(frozen=True)
class Chart:
    """A chart with its heading and one line on what it shows."""

    title: str
    svg: Markup
    note: str = ""


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
    tasks: Sequence[tuple[str, str, str, str]]  # dataset, task, weight, eligible rows
    charts: Sequence[Chart]
    task_charts: Sequence[Chart]
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


def describe_run(uri: str, inline: Inliner, figures: Mapping[str, Any] | None = None, tasks: bool = True) -> RunSection:
    """Read a run for the page. figures: of its evaluation, used instead of those in RUN/evaluation.json.

    tasks: whether to say how many rows each has, which takes the manifest: it names every shard of every dataset.
    Whatever is not there is named in `missing`.
    """
    store = open_store(uri)
    config = _config(store)
    records = [record for record in run_records(store) if isinstance(record.get("step"), int)]
    steps = whole_checkpoints(store)
    evaluated = run_figures(store, figures)
    samples, left_out = _samples(store, inline)
    present = {
        f"no configuration ({CONFIG})": bool(config),
        f"no metrics yet ({METRICS}): nothing was logged": bool(records),
        "no whole checkpoint yet": bool(steps),
        f"no samples ({SAMPLES})": bool(samples),
        f"no evaluation ({EVALUATION})": bool(evaluated),
    }
    return RunSection(
        uri=store.uri,
        name=str(config.get("name") or PurePosixPath(store.uri).name),
        step=max([record["step"] for record in records] + steps, default=0),
        loss=number(_mean(_values(records, "loss")[-5:])),
        speed=number(_median(_values(records, "tokens_per_second"))),
        speed_now=number(_median(_values(records, "tokens_per_second")[-5:])),
        facts=_facts(config, records, steps),
        tasks=_tasks(config, store) if tasks else [],
        charts=_charts(records),
        task_charts=_task_charts(records),
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
        "waiting for data": _percent(_mean(_values(records, "wait_share"))),
    }
    return {name: value for name, value in facts.items() if value}


def _workers(count: Any) -> str:
    return f"{count[0]} to {count[1]}" if isinstance(count, list) else str(count or "")


def _tasks(config: Mapping[str, Any], store: Store) -> list[tuple[str, str, str, str]]:
    manifest = Manifest.find(store)
    rows = {(stream.source, stream.task): stream.rows for stream in manifest.streams} if manifest else {}
    return [
        (name, task, f"{weight:g}", number(rows.get((name, task))))
        for name, source in (config.get("mixture") or {}).items()
        for task, weight in source.get("tasks", {}).items()
    ]


def _charts(records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    curves = (
        ("loss", "Loss", "loss", "all tasks; as logged (faint) and smoothed"),
        ("validation_loss", "Validation loss", "loss", "of the averaged weights, at every checkpoint"),
        ("tokens_per_second", "Throughput", "tokens/s", "image tokens a second over all workers"),
        ("learning_rate", "Learning rate", "rate", ""),
        ("gradient_norm", "Gradient norm", "norm", "before clipping"),
    )
    charts = [
        Chart(title, line_chart(_points(records, key), title, unit, smooth=key != "learning_rate"), note)
        for key, title, unit, note in curves
    ]
    return [chart for chart in charts if chart.svg]


def _task_charts(records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Losses by task, all on the same vertical axis."""
    tasks = dict.fromkeys(task for record in records for task in _losses(record))
    curves = {
        task: [(record["step"], losses[task]) for record in records if task in (losses := _losses(record))]
        for task in tasks
    }
    top = max((chart_top([loss for _, loss in curve]) for curve in curves.values()), default=1.0)
    charts = [Chart(task, line_chart(curve, f"Loss of {task}", "loss", top=top)) for task, curve in curves.items()]
    return [chart for chart in charts if chart.svg]


def _losses(record: Mapping[str, Any]) -> dict[str, float]:
    """Losses by task: nested, as metrics.jsonl has them, or flat, as trackers write them."""
    nested = record.get("losses") or {}
    flat = {key.removeprefix("loss/"): value for key, value in record.items() if key.startswith("loss/")}
    return {task: float(value) for task, value in {**nested, **flat}.items() if isinstance(value, int | float)}


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
    seconds = _values(records, "seconds")
    return sum(now for now, after in zip(seconds, [*seconds[1:], -1.0], strict=False) if after < now)


def _points(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(float(record["step"]), float(record[key])) for record in records if is_number(record.get(key))]


def _values(records: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [value for _, value in _points(records, key)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%} of the time"
