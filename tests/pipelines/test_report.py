"""The report: what is on the page, that it needs nothing but itself, and that no text of others becomes markup."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from labeling.dataset import IMAGE_SCHEMA, REJECTED_SCHEMA, SCHEMA_VERSION, Dataset, open_store, recipe, write_shard
from model.inputs import InputError
from model.pictures import encode_png
from pipelines.reports.dataset import describe_dataset
from pipelines.reports.gallery import pick_rows
from pipelines.reports.overlays import Inliner
from pipelines.reports.page import report, split_target, versions, write_report
from training.config import load_config

EVIL = '<script>alert("x")</script>'
HOSTILE_COLOR = "red;background:url(http://evil.example/x)"
SIDE = 64
SOURCE = {"labeler": "test", "version": 1, "parameters": {}, "weights": "", "reads": []}


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read_page(address: str) -> Page:
    store, name = split_target(address)
    html = store.read(name).decode()
    assert len(html) < 12_000_000
    page = Page(html)
    assert_self_contained(page)
    return page


def assert_self_contained(page: Page) -> None:
    assert not page.all("script")
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "action", "data"):
                assert (value or "").startswith(("data:", "#")), (tag, value)
            if name == "style":
                assert "url(" not in (value or "")
    for image in page.all("img"):
        assert image["alt"]


def decoded(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))).convert("RGB"))


def write_group(
    dataset: str, group: str, rows: list[dict[str, Any]], schema: pa.Schema, reads: tuple[str, ...]
) -> None:
    """A group of one shard, as a labeling job leaves it."""
    target = Dataset(dataset)
    declaration = {**SOURCE, "labeler": group, "reads": list(reads)}
    target.declare(group, declaration)
    read = {}
    for column in (*reads, *(["images.id"] if reads else [])):
        of, _, name = column.partition(".")
        read[column] = target.footer(of, "000000").columns[name]
    table = pa.Table.from_pylist([{**row, "model": "m 1", "version": 1} for row in rows], schema)
    write_shard(target.store, group, "000000", table, [len(rows)], recipe(declaration, read))


def labeled(**columns: pa.DataType) -> pa.Schema:
    common = {"model": pa.string(), "version": pa.int32(), "error": pa.string()}
    return pa.schema([("id", pa.string()), *columns.items(), *common.items()])


POINT = pa.struct([("x0", pa.float32()), ("y0", pa.float32()), ("x1", pa.float32()), ("y1", pa.float32())])
ENTRY = pa.struct([("task", pa.string()), ("prompt", pa.string()), ("embedding", pa.list_(pa.float16()))])


def describe(store_uri: str, kind: str, rows: int) -> None:
    description = {
        "schema": SCHEMA_VERSION,
        "kind": kind,
        "shards": [{"name": "000000", "rows": rows, "source": 0}],
        "sources": [{"uri": f"/{EVIL}"}],
    }
    open_store(store_uri).put("dataset.json", json.dumps(description).encode())


def build_pictures(uri: str, count: int = 3, side: int = SIDE) -> str:
    """A dataset of noise with hostile texts; the last row is in error in every group."""
    random = np.random.default_rng(0)
    images = [
        {
            "id": f"{index:032x}",
            "image": encode_png(random.integers(0, 256, (side, side, 3), dtype=np.uint8)),
            "width": side,
            "height": side,
            "source": f"{EVIL.replace('/', '')}{index}.png",
            "author": EVIL,
            "licence": 'CC0" onload="alert(1)',
        }
        for index in range(count)
    ]
    write_group(uri, "images", images, IMAGE_SCHEMA, ())
    rejected = pa.Table.from_pylist([{"source": f"bad-{EVIL}.txt", "reason": f"no picture {EVIL}"}], REJECTED_SCHEMA)
    write_shard(open_store(uri), "rejected", "000000", rejected, [1], "r")
    box = {"x0": side / 4, "y0": side / 4, "x1": side, "y1": side}
    half = np.zeros((side, side), np.uint8)
    half[: side // 2] = 1
    ramp = np.linspace(1, 65535, side * side).astype(np.uint16).reshape(side, side)
    ramp[:, : side // 2] = 0
    values: dict[str, tuple[pa.Schema, dict[str, Any]]] = {
        "boxes": (
            labeled(
                boxes=pa.list_(POINT),
                scores=pa.list_(pa.float32()),
                names=pa.list_(pa.string()),
                colors=pa.list_(pa.string()),
            ),
            {"boxes": [box], "scores": [0.5], "names": [EVIL], "colors": [HOSTILE_COLOR]},
        ),
        "segmentation": (
            labeled(mask=pa.binary(), names=pa.list_(pa.string()), colors=pa.list_(pa.string())),
            {"mask": encode_png(half), "names": [EVIL], "colors": ["#00FF00"]},
        ),
        "edges": (labeled(edges=pa.binary()), {"edges": encode_png(half * np.uint8(255))}),
        "depth": (
            labeled(depth=pa.binary(), near=pa.float32(), far=pa.float32(), method=pa.string()),
            {"depth": encode_png(ramp), "near": 0.5, "far": 0.125, "method": "stereo"},
        ),
        "caption": (labeled(caption=pa.string()), {"caption": f"A caption {EVIL}"}),
        "brightness": (labeled(value=pa.float32()), {"value": 12.5}),
    }
    for group, (schema, row) in values.items():
        rows = [{"id": image["id"], **row} for image in images[:-1]]
        rows.append({"id": images[-1]["id"], "error": f"broken {EVIL}"})
        write_group(uri, group, rows, schema, ("images.image",))
    entries = [{"task": "", "prompt": "", "embedding": []}, {"task": "edges", "prompt": EVIL, "embedding": [1.0]}]
    texts = [{"id": image["id"], "entries": entries} for image in images]
    write_group(uri, "text", texts, labeled(entries=pa.list_(ENTRY)), ("caption.caption",))
    describe(uri, "pictures", count)
    return uri


def build_sets(uri: str) -> str:
    """A dataset of one set of three views, with cameras on a circle and depth."""
    lists = {field.name: pa.list_(field.type) for field in IMAGE_SCHEMA if field.name != "id"}
    picture = encode_png(np.full((SIDE, SIDE, 3), 90, np.uint8))
    image = {"image": picture, "width": SIDE, "height": SIDE, "source": "still.glb/0"}
    one = {"id": "s", **{name: [image.get(name)] * 3 for name in lists}}
    write_group(uri, "images", [one], pa.schema([("id", pa.string()), *lists.items()]), ())
    poses = []
    for angle in (0.0, 2.0, 4.0):
        pose = np.eye(4)
        pose[:3, 2] = pose[:3, 3] = [2 * np.cos(angle), 2 * np.sin(angle), 0]  # looks along −z, at the origin
        poses.append(pose.ravel().tolist())
    cameras = {"c2w": poses, "intrinsics": [[1.4, 0, 0.5, 0, 1.4, 0.5, 0, 0, 1]] * 3}
    floats = pa.list_(pa.list_(pa.float32()))
    write_group(uri, "cameras", [{"id": "s", **cameras}], labeled(c2w=floats, intrinsics=floats), ())
    depth = encode_png(np.full((SIDE, SIDE), 40_000, np.uint16))
    row = {"id": "s", "depth": [depth] * 3, "near": [2.0] * 3, "far": [1.0] * 3, "method": ["given"] * 3}
    schema = labeled(
        depth=pa.list_(pa.binary()),
        near=pa.list_(pa.float32()),
        far=pa.list_(pa.float32()),
        method=pa.list_(pa.string()),
    )
    write_group(uri, "depth", [row], schema, ("images.image",))
    describe(uri, "sets", 1)
    return uri


def build_run(run: Path, datasets: dict[str, str]) -> None:
    """What a finished run leaves, as training, sampling and evaluation write it."""
    mixture = {
        "pictures": {"dataset": datasets["pictures"], "tasks": ["edges", "text2image"]},
        "views": {"dataset": datasets["views"], "tasks": ["views"]},
    }
    config = load_config("debug", {"mixture": mixture}).model_dump(mode="json")
    (run / "samples").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        {
            "step": step,
            "loss": 2 / step,
            "losses": {"edges": 3 / step, **({"views": 1.0} if step % 20 == 0 else {})},
            "tokens_per_second": 1500 + step,
            "learning_rate": 1e-3,
            "gradient_norm": float("nan") if step == 30 else 1.0,
            "wait_share": 0.25,
            "seconds": step / 10 if step <= 50 else (step - 50) / 10,  # resumed at step 50
        }
        for step in range(10, 101, 10)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 110, "lo')
    for step in (0, 100):
        (run / f"checkpoints/step-{step:06d}").mkdir(parents=True)
        (run / f"checkpoints/step-{step:06d}/state.json").write_text("{}")
    for name, level in (("in", 10), ("label", 200), ("out", 120)):
        (run / f"samples/{name}.png").write_bytes(encode_png(np.full((32, 48, 3), level, np.uint8)))
    (run / "secret.png").write_bytes(encode_png(np.full((32, 48, 3), 255, np.uint8)))
    common = {"id": "abcdef", "prompt": EVIL, "inputs": ["in.png"], "label": "label.png", "output": ["out.png"]}
    samples = [
        {**common, "task": "edges", "direction": "to_image", "note": ""},
        {**common, "task": "edges", "direction": "from_image", "note": EVIL},
        {**common, "task": "views", "direction": "from_image", "label": None, "output": ["../secret.png"], "note": ""},
    ]
    (run / "samples/samples.json").write_text(json.dumps(samples))
    figure = {"step_0": 0.01, "mean_label": 0.3, "other_pictures": 0.1, "pictures": 3, "per_picture": [0.6, 0.7, 0.8]}
    figures = {
        "image_to_edges_correlation": {"model": 0.7, **figure},
        "image_to_segmentation_correlation": {"model": 0.2, **figure},
    }
    (run / "evaluation.json").write_text(json.dumps({"checkpoint": "c", "figures": figures}))
    timings = [{"step": "label", "seconds": 10.0, "pictures": 40}, {"step": "  edges", "seconds": 4.0, "pictures": 40}]
    (run / "metrics.json").write_text(json.dumps({"timings": timings}))


def test_report_shows_ingested_images_and_rejected_files(ray_cluster: None, pictures: Path, tmp_path: Path) -> None:
    """Real pictures, ingested and labeled by the jobs, with a file name that would be markup."""
    from pipelines.ingest import ingest
    from pipelines.label import label

    (pictures / "camera.png").rename(pictures / "<script>alert(1)<&.png")
    uri = str(tmp_path / "dataset")
    ingest(str(pictures), uri)
    label(uri, ["edges", "simple_labelers:Brightness"], {"brightness": {"refuse_wider_than": 700}})
    address = report(uri)
    assert address == f"{uri}/report.html"
    page = read_page(address)
    assert len(page.all("img")) == 6 * 2, "six pictures, each with its edges"
    for phrase in (
        *("<script>alert(1)<&.png", "astronaut.png", "truncated JPEG file", "not a picture", "notes.txt"),
        *("same bytes as coffee.png", "wider than 700", "opencv"),
    ):
        assert phrase in page.text


def test_every_label_is_drawn_and_foreign_text_is_escaped(tmp_path: Path) -> None:
    page = read_page(report(build_pictures(str(tmp_path / "d"))))
    alts = [image["alt"] or "" for image in page.all("img")]
    for group in ("picture", "boxes", "segmentation", "edges", "depth"):
        assert sum(alt.startswith(group) for alt in alts) == (3 if group == "picture" else 2), group
    for phrase in (
        *(f"A caption {EVIL}", f"broken {EVIL}", f"no picture {EVIL}", f"bad-{EVIL}.txt", 'CC0" onload="alert(1)'),
        *("far 0.125", "near 0.5", "stereo", "50% unknown", f"{EVIL} 0.50", "12.5", "brightness.value"),
    ):
        assert phrase in page.text
    assert any(EVIL in text for text in page.text.split("edges")), "the prompt of the edges task"
    assert "1 prompts" in page.text, "the empty prompt is not shown"


def test_stale_and_missing_shards_are_counted(tmp_path: Path) -> None:
    uri = build_pictures(str(tmp_path / "d"))
    dataset = Dataset.open(uri)
    dataset.declare("edges", {**(dataset.declaration("edges") or {}), "version": 2})
    open_store(uri).delete("depth/000000.parquet")
    lines = {line.name: line for line in describe_dataset(uri, Inliner(), 24).groups}
    assert (lines["edges"].fresh, lines["edges"].stale) == (0, 1)
    assert (lines["depth"].missing, lines["boxes"].fresh, lines["boxes"].errors) == (1, 1, 1)
    page = read_page(report(uri))
    assert "shards stale or missing" in page.text
    assert "not labeled yet" in page.text


def test_gallery_samples_evenly_within_its_size_limit(tmp_path: Path) -> None:
    uri = build_pictures(str(tmp_path / "d"), count=40, side=240)
    section = describe_dataset(uri, Inliner(), 24)
    assert len(section.gallery) == 24
    assert {int(row.id, 16) for row in section.gallery} >= {0, 39}
    few = describe_dataset(uri, Inliner(limit=400_000), 24)
    assert 1 <= len(few.gallery) < 24
    read_page(write_report(str(tmp_path / "big.html"), [uri] * 3, None, "noise"))


def test_impossible_labels_are_gray_and_said_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "d")
    picture = encode_png(np.full((SIDE, SIDE, 3), 90, np.uint8))
    ids = [f"{index:032x}" for index in range(5)]
    images = [{"id": name, "image": picture, "width": SIDE, "height": SIDE, "source": f"{name}.png"} for name in ids]
    write_group(uri, "images", images, IMAGE_SCHEMA, ())
    reason = "no depth model, stereo pair or true disparity: set depth.model=NAME"
    depth = [{"id": name, "error": reason} for name in ids[:-1]] + [{"id": ids[-1], "error": "right picture too small"}]
    write_group(uri, "depth", depth, labeled(depth=pa.binary()), ("images.image",))
    latents = [{"id": name, "error": "no depth: depth.depth is missing"} for name in ids]
    write_group(uri, "latents-64-depth", latents, labeled(latent=pa.list_(pa.float16())), ("depth.depth",))
    describe(uri, "pictures", len(ids))

    page = read_page(report(uri))
    assert page.text.count("no depth model, stereo pair or true disparity") == 1
    assert f"onediffusion label {uri} depth latents-64-depth --set depth.model=NAME" in page.text
    assert "4 of 5 pictures cannot have depth, latents-64-depth" in page.text
    assert "right picture too small" in page.text
    lines = {line.name: (line.errors, line.unavailable) for line in describe_dataset(uri, Inliner(), 24).groups}
    assert lines == {"images": (0, 0), "depth": (1, 4), "latents-64-depth": (1, 4)}


def test_pick_rows_covers_all_shards() -> None:
    from labeling.dataset import Footer

    footers = {f"{k:06d}": Footer("r", "c", {}, 10, 0, [4, 6]) for k in range(5)}
    picked = pick_rows(footers, 5)
    assert [(shard, group) for shard, group, _ in picked] == [(f"{k:06d}", 1) for k in range(5)]
    assert all(offsets == [1] for _, _, offsets in picked)
    assert sum(len(offsets) for *_, offsets in pick_rows(footers, 100)) == 50


def test_view_set_page_shows_views_depth_and_cameras(tmp_path: Path) -> None:
    page = read_page(report(build_sets(str(tmp_path / "sets"))))
    alts = [image["alt"] or "" for image in page.all("img")]
    assert sum(alt.startswith("depth") for alt in alts) == 3
    assert sum(alt.startswith("picture") for alt in alts) == 3
    assert any(svg.get("aria-label") == "3 cameras seen from above" for svg in page.all("svg"))


def test_run_page_shows_charts_samples_and_figures(tmp_path: Path) -> None:
    datasets = {"pictures": build_pictures(str(tmp_path / "d")), "views": build_sets(str(tmp_path / "sets"))}
    run = tmp_path / "run"
    build_run(run, datasets)
    page = read_page(report(str(run)))
    for phrase in (
        *("Loss", "Throughput", "Loss by task", "waiting for data", "25% of the time", "10.0 s"),
        *("The correlation of sampled with true edges is 0.70 on 3 training pictures, more than the best baseline",),
        *("no more than the best baseline (mean of the other labels: 0.30)",),
        *("views → cameras", "4 pictures/s", "torch", "Versions"),
        *(datasets["pictures"], datasets["views"]),
    ):
        assert phrase in page.text, phrase
    alts = {image["alt"] for image in page.all("img")}
    assert {"given edges of abcdef", "sampled edges of abcdef", "true picture of abcdef"} <= alts
    summaries = [svg.get("aria-label") or "" for svg in page.all("svg")]
    assert any(text.startswith("Loss: 0.2 at step 10") for text in summaries)
    assert any(text.startswith("Loss of edges") for text in summaries)
    assert any("mean of the other labels 0.30" in text for text in summaries)
    samples = [decoded(image["src"] or "") for image in page.all("img") if image["width"] == "48"]
    assert len(samples) == 7, "two samples with input, output and label, and the input of the third"
    assert max(int(sample.max()) for sample in samples) == 200, "nothing from outside the samples' folder"
    assert "the file is not there" in page.text


def test_run_page_names_what_an_unfinished_run_lacks(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 1.5}\n')
    page = read_page(report(str(tmp_path)))
    for phrase in ("no configuration", "no whole checkpoint", "no samples", "no evaluation"):
        assert phrase in page.text
    assert "nothing was logged" not in page.text


def test_run_page_names_a_missing_dataset(tmp_path: Path) -> None:
    build_run(tmp_path / "run", {"pictures": str(tmp_path / "gone"), "views": str(tmp_path / "gone")})
    page = read_page(report(str(tmp_path / "run")))
    assert f"{tmp_path}/gone: no dataset there" in page.text
    assert "picture → edges" in page.text


def test_given_figures_and_timings_override_stored_ones(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "evaluation.json").write_text('{"figures": {"image_to_edges_correlation": {"model": 0.1717}}}')
    figures = {"image_to_edges_correlation": {"model": 0.93, "step_0": None, "per_picture": []}}
    timings = [{"step": "train", "seconds": 200, "steps": 1000, "tokens_per_second": 2911.4}]
    timings += [{"step": "label", "seconds": 3, "pictures": 0}]
    address = write_report(str(tmp_path / "page.html"), [], str(tmp_path), "t", timings=timings, figures=figures)
    page = read_page(address)
    assert "0.93" in page.text
    assert "0.17" not in page.text
    assert "5 steps/s, 2,911 tokens/s" in page.text
    assert "3 min 20 s" in page.text
    assert "nothing left to do" in page.text


def test_report_is_written_to_s3(s3: str) -> None:
    address = report(build_pictures(f"{s3}/report/d"))
    assert address == f"{s3}/report/d/report.html"
    assert len(read_page(address).all("img")) == 3 + 2 * 4


def test_unusable_targets_raise_input_errors(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"neither a dataset .* nor a run"):
            report(str(folder))
    assert not list(tmp_path.iterdir())
    for target in (f"{tmp_path}/", "s3://report.html"):
        with pytest.raises(InputError, match="needs a file name"):
            write_report(target, [], None, "t")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        write_report(f"{tmp_path}/file/page.html", [], None, "t")


def test_versions_list_installed_packages() -> None:
    assert {"python", "torch", "ray", "pyarrow", "mediapipe"} <= dict(versions()).keys()
