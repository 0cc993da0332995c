"""`onediffusion demo`: the whole journey on real pictures, every step the same as its own command."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from labeling.dataset import DATASET_FILE, IMAGES, Dataset, open_store
from model.inputs import InputError

CONDITIONS = ["boxes", "segmentation", "pose", "edges", "depth"]
LABELS = [*CONDITIONS, "caption"]
VIEW_TASKS = ["views", "depth"]
VIEWS_PER_SET = 8
SET_TASKS = ("identity", "subject", "editing")
MOST_LOOKED_AT = 1000  # pictures, among which those to be edited are
EDITED = ("cat_on_floor.jpg", "air_balloon.jpg", "dog.jpg")
Say = Callable[[str], None]
Timings = list[dict[str, Any]]  # of each step, as `pipelines.reports.page.write_report` takes them


def demo(out: str, pictures: str | None = None, steps: int | None = None, say: Say = print) -> str:
    """Ingest, label, render views, make sets, encode, train, sample, evaluate and report, all under `out`: its page.

    pictures: folder, glob or s3:// address; by default the photographs of installed packages and of this project.
    steps: the number of training steps, instead of the preset's. A second run does only what is missing.
    Raises InputError when `out` holds a demo of other pictures.
    """
    from cluster.session import kept_ray

    store = open_store(out)
    out = store.uri
    say(f"demo of OneDiffusion → {out}")
    source = pictures or _gather(out)
    _check_same_pictures(out, source)
    timings: Timings = []
    with kept_ray():
        dataset = _ingest(out, source, timings, say)
        views = _render_views(out, timings, say)
        _label(dataset, views, timings, say)
        _make_sets(out, dataset, timings, say)
        _train(out, steps, timings, say)
    from pipelines.evaluate import evaluate
    from pipelines.reports.page import write_report

    with _timed("sample and evaluate", timings):
        figures = evaluate(out, say)

    page = write_report(
        f"{out}/report.html",
        [dataset.uri, views.uri, *(f"{out}/{kind}" for kind in SET_TASKS)],
        out,
        "OneDiffusion demo",
        timings=timings,
        figures=figures,
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
        before = Dataset.open(f"{out}/dataset").sources[0]["uri"]
        now = source if source.startswith("s3://") else open_store(source).uri
        if before != now:
            raise InputError(f"{out}: holds a demo of {before}; forget it with `make clean`, or choose another --out")


def _ingest(out: str, source: str, timings: Timings, say: Say) -> Dataset:
    from pipelines.ingest import ingest

    with _timed("ingest", timings) as record:
        result = ingest(source, f"{out}/dataset")
        record["pictures"] = result.added + result.rejected
    say(f"ingest: {result.added} pictures added, {result.rejected} files rejected, {result.images} pictures in all")
    return Dataset.open(f"{out}/dataset")


def _render_views(out: str, timings: Timings, say: Say) -> Dataset:
    from labeling.sources.view_sets import ViewOptions
    from pipelines.demo_data.scene import build_scene
    from pipelines.views import views

    with _timed("views", timings) as record:
        with tempfile.TemporaryDirectory() as folder:
            build_scene(Path(folder, "still-life.glb"))
            mesh = open_store(f"{out}/mesh")
            for path in sorted(Path(folder).iterdir()):
                if not mesh.exists(path.name):
                    mesh.put(path.name, path.read_bytes())
        result = views(f"{out}/mesh", f"{out}/views", ViewOptions(VIEWS_PER_SET))
        record["pictures"] = result.added * VIEWS_PER_SET
    say(f"views: {result.added} sets rendered, {result.sets} sets in all")
    return Dataset.open(f"{out}/views")


def _label(pictures: Dataset, views: Dataset, timings: Timings, say: Say) -> None:
    """Make all groups that the debug preset trains on."""
    from pipelines.label import label
    from training.config import load_config

    size = load_config("debug").size
    latents = [f"latents-{size}", *(f"latents-{size}-{group}" for group in CONDITIONS)]
    view_groups = ["caption", "depth", f"latents-{size}", f"latents-{size}-depth", "text"]
    for step, dataset, groups, parameters in (
        ("label pictures", pictures, [*LABELS, *latents, "text"], {}),
        ("label views", views, view_groups, {"text": {"tasks": VIEW_TASKS}}),
    ):
        with _timed(step, timings) as record:
            result = label(dataset.uri, groups, parameters)
            record["pictures"] = sum(shard.rows for shard in dataset.shards) if result.written else 0
        fresh, written = sum(result.fresh.values()), sum(result.written.values())
        say(f"{step}: {written} shards labeled, {fresh} shards fresh, in {len(result.fresh)} groups")
        for group, seconds in result.busy.items():
            timings.append({"step": f"  {group}", "seconds": seconds, "pictures": result.rows[group]})


def _make_sets(out: str, pictures: Dataset, timings: Timings, say: Say) -> None:
    """Sets of people, of items and of edits, of crops of the demo's photographs and of what was labeled."""
    from pipelines.demo_data.crops import ITEMS, write_crops
    from pipelines.demo_data.pictures import gather_pictures
    from pipelines.ingest import ingest
    from pipelines.label import label
    from pipelines.sets import sets
    from training.config import load_config

    with _timed("sets", timings) as record:
        crops = open_store(f"{out}/crops-files")
        if not crops.exists("metadata.csv"):
            with tempfile.TemporaryDirectory() as folder:
                gather_pictures(Path(folder, "photographs"))
                write_crops(Path(folder, "photographs"), Path(folder, "crops"))
                # The table comes last: with it the folder is whole.
                for path in sorted(Path(folder, "crops").rglob("*.*"), key=lambda path: (path.suffix == ".csv", path)):
                    crops.put(path.relative_to(Path(folder, "crops")).as_posix(), path.read_bytes())
        ingest(crops.uri, f"{out}/crops")
        label(f"{out}/crops", ["faces", "hashes"], {"faces": {"tiles": 1}})
        rows = list(islice(pictures.rows(IMAGES, ["id", "source"]), MOST_LOOKED_AT))
        chosen = [row["id"] for row in rows if row["source"] in EDITED] or [row["id"] for row in rows[: len(EDITED)]]
        where = f"images.id in ({', '.join(map(repr, chosen))})"
        made = {
            "identity": sets("identity", [f"{out}/crops"], f"{out}/identity", {}),
            "subject": sets(
                "subject",
                [f"{out}/crops"],
                f"{out}/subject",
                {"where": f"images.source like '{ITEMS}/%'", "duplicates": -1},
            ),
            "editing": sets("editing", [pictures.uri], f"{out}/editing", {"where": where, "edits": 3}),
        }
        for kind in made:
            label(f"{out}/{kind}", [f"latents-{load_config('debug').size}"])
        record["pictures"] = sum(result.added for result in made.values())
    for kind, result in made.items():
        say(f"sets: {result.added} of {kind} written, {result.sets} in all")


def _train(out: str, steps: int | None, timings: Timings, say: Say) -> None:
    from pipelines.train import train
    from training.config import load_config

    overrides: dict[str, Any] = {
        "mixture": {"pictures": {"dataset": f"{out}/dataset"}, "views": {"dataset": f"{out}/views"}},
        "checkpoints": {"first": True},
    }
    config = load_config("debug", overrides | ({"steps": steps} if steps else {}))
    with _timed("train", timings) as record:
        result = train(config, out, say)
        record["steps"] = result.step - result.resumed_from
        record["tokens_per_second"] = result.metrics.get("tokens_per_second")


@contextmanager
def _timed(step: str, timings: Timings) -> Iterator[dict[str, Any]]:
    """Append how long a step took; yields the record, to which the step adds what it did."""
    record: dict[str, Any] = {"step": step}
    started = time.monotonic()
    yield record
    record["seconds"] = time.monotonic() - started
    timings.append(record)
