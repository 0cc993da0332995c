"""`onediffusion demo`: the whole journey on real pictures, every step the same as its own command."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labeling.dataset import DATASET_FILE, Dataset, open_store
from model.conditions import CONDITION_READS
from model.inputs import InputError

LABELS = [*CONDITION_READS, "caption"]
VIEW_TASKS = ["views", "depth"]
Say = Callable[[str], None]


def demo(out: str, pictures: str | None = None, steps: int | None = None, say: Say = print) -> str:
    """Ingest, label, render views, encode, train, sample, evaluate and report, all under `out`; the page's address.

    pictures: folder, glob or s3:// address; by default the photographs of installed packages and of this project.
    steps: of training, where the preset's are not wanted. A second run does only what is missing.
    Raises InputError when `out` holds a demo of other pictures.
    """
    from cluster.session import ray_session

    store = open_store(out)
    out = store.uri
    say(f"demo of OneDiffusion → {out}")
    source = pictures or _gather(out)
    _check_same_pictures(out, source)
    timings: list[dict[str, Any]] = []
    with ray_session():
        dataset, views, size = _datasets(out, source, timings, say)
        _train(out, size, steps, timings, say)
    from pipelines.evaluate import evaluate
    from pipelines.reports.page import write_report

    with _timed("sample and evaluate", timings):
        figures = evaluate(out, say)

    page = write_report(
        f"{out}/report.html", [dataset.uri, views.uri], out, "OneDiffusion demo", timings=timings, figures=figures
    )
    metrics = {name: values["model"] for name, values in figures.items()}
    store.put("metrics.json", json.dumps({**metrics, "figures": figures, "timings": timings}, indent=1).encode())
    for name, value in metrics.items():
        say(f"{name}: {value:.2f}")
    say(f"report: {page}")
    return page


def _gather(out: str) -> str:
    """The demo's own pictures as a source: a folder beside the results, or objects beside them."""
    from pipelines.demo_data.pictures import gather_pictures

    if not out.startswith("s3://"):
        gather_pictures(Path(out, "pictures"))
        return f"{out}/pictures"
    with tempfile.TemporaryDirectory() as folder:
        gather_pictures(Path(folder))
        store = open_store(f"{out}/pictures")
        present = store.walk()
        for name, entry in open_store(folder).walk().items():
            if name not in present or present[name].size != entry.size:
                store.put(name, Path(folder, name).read_bytes())
    return f"{out}/pictures"


def _check_same_pictures(out: str, source: str) -> None:
    if open_store(f"{out}/dataset").exists(DATASET_FILE):
        before = Dataset.open(f"{out}/dataset").description["sources"][0]["uri"]
        now = source if source.startswith("s3://") else open_store(source).uri
        if before != now:
            raise InputError(f"{out}: holds a demo of {before}; forget it with `make clean`, or choose another --out")


def _datasets(out: str, source: str, timings: list[dict[str, Any]], say: Say) -> tuple[Dataset, Dataset, int]:
    """Pictures and view sets with all their labels, and the size of their latents."""
    from pipelines.demo_data.scene import build_scene
    from pipelines.ingest import ingest
    from pipelines.label import label
    from pipelines.views import views
    from training.config import load_config

    size = load_config("debug").size
    with _timed("ingest", timings) as done:
        result = ingest(source, f"{out}/dataset")
        done(pictures=result.added + result.rejected)
    say(f"ingest: {result.added} pictures added, {result.rejected} files rejected, {result.images} pictures in all")
    dataset = Dataset.open(f"{out}/dataset")
    with _timed("views", timings) as done:
        with tempfile.TemporaryDirectory() as folder:
            build_scene(Path(folder, "still-life.glb"))
            mesh = open_store(f"{out}/mesh")
            for path in sorted(Path(folder).iterdir()):
                if not mesh.exists(path.name):
                    mesh.put(path.name, path.read_bytes())
        made = views(f"{out}/mesh", f"{out}/views")
        done(pictures=made.added * 8)
    say(f"views: {made.added} sets rendered, {made.sets} sets in all")
    sets = Dataset.open(f"{out}/views")
    latents = [f"latents-{size}", *(f"latents-{size}-{group}" for group in CONDITION_READS)]
    view_groups = ["caption", "depth", f"latents-{size}", f"latents-{size}-depth", "text"]
    for name, where, groups, parameters in (
        ("label pictures", dataset, [*LABELS, *latents, "text"], {}),
        ("label views", sets, view_groups, {"text": {"tasks": VIEW_TASKS}}),
    ):
        with _timed(name, timings) as done:
            labeled = label(where.uri, groups, parameters)
            done(pictures=sum(shard.rows for shard in where.shards) if labeled.written else 0)
        fresh, written = sum(labeled.fresh.values()), sum(labeled.written.values())
        say(f"{name}: {written} shards labeled, {fresh} shards fresh, in {len(labeled.fresh)} groups")
        for group, busy in labeled.busy.items():
            timings.append({"step": f"  {group}", "seconds": busy, "pictures": labeled.rows[group]})
    return dataset, sets, size


def _train(out: str, size: int, steps: int | None, timings: list[dict[str, Any]], say: Say) -> None:
    from pipelines.train import train
    from training.config import load_config

    overrides: dict[str, Any] = {
        "mixture": {"pictures": {"dataset": f"{out}/dataset"}, "views": {"dataset": f"{out}/views"}},
        "checkpoints": {"first": True},
    }
    config = load_config("debug", overrides | ({"steps": steps} if steps else {}))
    with _timed("train", timings) as done:
        result = train(config, out, say)
        done(steps=result.step - result.resumed_from, tokens_per_second=result.metrics.get("tokens_per_second"))


@contextmanager
def _timed(step: str, timings: list[dict[str, Any]]) -> Iterator[Callable[..., None]]:
    """Append how long a step took, with what it says it did."""
    record: dict[str, Any] = {"step": step}
    started = time.monotonic()
    yield lambda **done: record.update(done)
    record["seconds"] = time.monotonic() - started
    timings.append(record)
