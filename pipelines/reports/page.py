"""`onediffusion report`: one self-contained HTML page about a dataset or a run, without script or outside resources."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from labeling.dataset import DATASET_FILE, Store, open_store
from model.inputs import InputError
from pipelines.reports.dataset import DatasetSection, describe_dataset
from pipelines.reports.figures import BASELINES
from pipelines.reports.numbers import duration, number
from pipelines.reports.overlays import Inliner, depth_gradient
from pipelines.reports.run import RunSection, describe_run, is_run, run_datasets, run_timings

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "report.html"
# Characters of inlined images, so that a page stays well below 12 MB and can be mailed and opened on a phone.
RUN_CHARACTERS, DATASET_CHARACTERS = 3_500_000, 6_000_000
MAX_ROWS = 48  # of each dataset
MAX_ROWS_OF_RUN = 8  # likewise on the page of a run, which is about what it learned from them
PACKAGES = (
    *("onediffusion", "torch", "ray", "pyarrow", "numpy", "transformers", "diffusers", "accelerate", "safetensors"),
    *("mediapipe", "mmcv", "opencv-python", "pillow", "scikit-image", "trimesh", "embreex", "boto3", "pydantic"),
)


@dataclass(frozen=True)
class Card:
    """A number worth seeing first."""

    value: str
    what: str
    href: str = ""
    tone: str = ""  # "good" or "bad"


@dataclass(frozen=True)
class Timing:
    """How long a step took and how fast it was; `part` of the step above it."""

    step: str
    part: bool
    time: str
    done: str
    speed: str


def report(uri: str, where: str | None = None, beside: str | None = None) -> str:
    """Write report.html into a dataset or a run, and return the page's address.

    The page of a run also shows the datasets that the run was trained on. where: SQL that is true of the rows of a
    dataset to show. beside: a run to compare a run with. Raises InputError when there is neither at `uri`, the page
    cannot be written there, or the condition is bad.
    """
    store = open_store(uri)
    if beside is not None and not is_run(open_store(beside)):
        raise InputError(f"--with {beside}: no run (no config.yaml, metrics.jsonl or checkpoints/)")
    if beside is not None and not is_run(store):
        raise InputError(f"{uri}: --with compares runs, and this is none")
    name = store.uri.rstrip("/").rsplit("/", 1)[-1]
    if store.exists(DATASET_FILE):
        return write_report(f"{store.uri}/{PAGE}", [store.uri], None, f"Dataset {name}", where=where)
    if is_run(store):
        if where is not None:
            raise InputError(f"{uri}: --where selects rows of a dataset, and this is a run")
        timings, title = run_timings(store), f"Run {name}"
        return write_report(
            *(f"{store.uri}/{PAGE}", run_datasets(store), store.uri, title),
            timings=timings,
            beside=beside,
            max_rows=MAX_ROWS_OF_RUN,
        )
    raise InputError(
        f"{uri}: neither a dataset (no dataset.json) nor a run (no config.yaml, metrics.jsonl or checkpoints/); "
        "make one with `ingest` or `train`"
    )


def write_report(
    target: str,
    datasets: Sequence[str],
    run: str | None,
    title: str,
    timings: Sequence[Mapping[str, Any]] = (),
    figures: Mapping[str, Any] | None = None,
    where: str | None = None,
    beside: str | None = None,
    max_rows: int = MAX_ROWS,
) -> str:
    """Write the page at `target` (local or s3://), whole or not at all, and return its address.

    datasets, run: what it is about; a part of them that is not there is named on the page.
    timings: {"step", "seconds"} and what was done: "pictures", "samples", "steps", "tokens_per_second";
    a step whose name begins with a blank is part of the one above it. figures: of the evaluation (default: those in
    RUN/evaluation.json). where, beside: as `report` takes them. max_rows: of each dataset, that are shown.
    Raises InputError when `target` cannot be written.
    """
    store, name = split_target(target)
    run_section = describe_run(run, Inliner(RUN_CHARACTERS), figures, beside=beside) if run else None
    sections, characters = [], DATASET_CHARACTERS
    for index, uri in enumerate(datasets):
        inline = Inliner(max(characters, 0) // (len(datasets) - index))
        sections.append(describe_dataset(uri, inline, max_rows, where))
        characters -= inline.used
    page = render(title, sections, run_section, timings)
    store.put(name, page.encode())
    return f"{store.uri}/{name}"


def split_target(target: str) -> tuple[Store, str]:
    """The folder that a file's address lies in, and its name there. Raises InputError for a folder's address."""
    folder, _, name = target.rpartition("/")
    if not name or folder == "s3:/":
        raise InputError(f"{target}: the page needs a file name, as in {target.rstrip('/')}/{PAGE}")
    return open_store(folder or ("/" if target.startswith("/") else ".")), name


def render(
    title: str,
    datasets: Sequence[DatasetSection],
    run: RunSection | None,
    timings: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page as HTML."""
    return fill_template(
        PAGE,
        title=title,
        written=written_now(),
        cards=_cards(datasets, run, timings),
        datasets=datasets,
        run=run,
        baselines=list(BASELINES.values()),
        timings=[_timing(timing) for timing in timings],
        versions=versions(),
        machine=f"{platform.system()} {platform.machine()}",
    )


def written_now() -> str:
    """The time, as pages say when they were written."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def fill_template(template: str, **values: Any) -> str:
    """A page as HTML. All text is escaped: names and captions come from anywhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # trim_blocks and lstrip_blocks: thousands of small elements, none of them padded.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template(template).render(depth_gradient=depth_gradient(), **values)


def versions() -> list[tuple[str, str]]:
    """(package, version) of Python and of what results depend on, as far as it is installed."""
    installed = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            installed.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return installed


def _cards(
    datasets: Sequence[DatasetSection], run: RunSection | None, timings: Sequence[Mapping[str, Any]]
) -> list[Card]:
    cards = []
    for figure in run.figures if run else ():
        tone = "good" if figure.wins else "bad"
        cards.append(Card(figure.model, f"correlation, {figure.title}", "#evaluation", tone))
    for kind in ("pictures", "sets"):
        of_kind = [section for section in datasets if section.kind == kind]
        if of_kind:
            rows = sum(section.rows for section in of_kind)
            cards.append(Card(number(rows), kind, f"#dataset-{datasets.index(of_kind[0])}"))
    groups = {group.name for section in datasets for group in section.groups}
    if groups:
        cards.append(Card(number(len(groups)), "column groups"))
        errors = sum(group.errors for section in datasets for group in section.groups)
        cards.append(Card(number(errors), "rows in error", tone="" if not errors else "bad"))
        unfinished = sum(group.stale + group.missing for section in datasets for group in section.groups)
        if unfinished:
            cards.append(Card(number(unfinished), "shards stale or missing", tone="bad"))
    rejected = sum(section.rejected_count for section in datasets)
    if rejected:
        cards.append(Card(number(rejected), "files rejected"))
    if run:
        cards.append(Card(number(run.step), "steps trained", "#run"))
        cards += [Card(run.loss, "loss at the end", "#run")] if run.loss != "–" else []
        cards += [Card(run.speed, "tokens/s in training", "#run")] if run.speed != "–" else []
    total = sum(timing.get("seconds") or 0 for timing in timings if not str(timing.get("step", "")).startswith(" "))
    if total:
        cards.append(Card(duration(total), "from start to end", "#timings"))
    return cards


def _timing(timing: Mapping[str, Any]) -> Timing:
    seconds = timing.get("seconds") or 0
    done, speed = [], []
    for unit in ("pictures", "samples", "steps"):
        count = timing.get(unit)
        if count is not None:
            done.append(f"{number(count)} {unit}" if count else "nothing left to do")
            if count and seconds:
                speed.append(f"{number(count / seconds)} {unit}/s")
    if timing.get("tokens_per_second") and timing.get("steps") != 0:
        speed.append(f"{number(timing['tokens_per_second'])} tokens/s")
    step = str(timing.get("step", ""))
    return Timing(step.strip(), step.startswith(" "), duration(seconds), ", ".join(done), ", ".join(speed))
