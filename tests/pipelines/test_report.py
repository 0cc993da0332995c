"""The report: what is on the page, that it needs nothing but itself, and that no text of others becomes markup."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from report_pages import (
    EVIL,
    SIDE,
    build_pictures,
    build_run,
    build_sets,
    decoded,
    describe,
    labeled,
    read_page,
    write_group,
)

from labeling.dataset import IMAGE_SCHEMA, REJECTED_SCHEMA, Dataset, open_store, write_shard
from model.inputs import InputError
from model.pictures import encode_png
from pipelines.reports.dataset import describe_dataset
from pipelines.reports.gallery import pick_rows
from pipelines.reports.overlays import Inliner
from pipelines.reports.page import report, versions, write_report
from pipelines.reports.replay import replay


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


def test_reasons_that_are_alike_share_a_line_and_a_long_list_is_cut(tmp_path: Path) -> None:
    uri = build_pictures(str(tmp_path / "d"))
    dataset = Dataset.open(uri)
    rows = [(f"copy-{number}.png", f"same bytes as first-{number}.png") for number in range(30)]
    rows += [(f"small-{number}.png", f"too small: {number} × 9") for number in range(2)] + [("a.svg", "a drawing")]
    table = pa.Table.from_pylist([{"source": name, "reason": reason} for name, reason in rows], REJECTED_SCHEMA)
    write_shard(dataset.store, "rejected", dataset.shards[0].name, table, [len(rows)], "recipe")
    lines = describe_dataset(uri, Inliner(), 1).rejected
    assert [(line.count, line.reason) for line in lines] == [
        (30, "same bytes as first-0.png; 29 more like it"),
        (2, "too small: 0 × 9; 1 more like it"),
        (1, "a drawing"),
    ]
    text = read_page(report(uri)).text
    assert "copy-5.png" in text and "copy-6.png" not in text and "All of them are in the group rejected" in text


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


def test_run_page_shows_noise_levels_skipped_steps_and_rows_over_time_beside_another_run(tmp_path: Path) -> None:
    datasets = {"pictures": build_pictures(str(tmp_path / "d")), "views": build_sets(str(tmp_path / "sets"))}
    for name in ("first", "second"):
        build_run(tmp_path / name, datasets)
    config = (tmp_path / "second/config.yaml").read_text()
    (tmp_path / "second/config.yaml").write_text(config.replace("learning_rate: 0.003", "learning_rate: 0.001"))
    page = read_page(report(str(tmp_path / "first"), beside=str(tmp_path / "second")))
    for phrase in (
        *("Loss by noise level", "σ 0.8-1.0", "Memory", "epochs", "samples so far", "Steps that were skipped"),
        *(f"row 3 of {EVIL}", f"report {tmp_path}/first --replay-step 41", "The same rows, step by step"),
        *("step 50", "step 100", "second, step 100", "Beside second", "optimizer.learning_rate"),
    ):
        assert phrase in page.text, phrase
    drawn = [int(decoded(image["src"] or "").max()) for image in page.all("img") if image["width"] == "40"]
    assert drawn == [30, 50, 100, 100], "what is given, drawn twice, and by the other run; nothing from outside"
    assert len([line for line in page.all("polyline") if line["class"] == "beside"]) >= 5
    assert [line for line in page.all("polyline") if line["class"] == "validation"]
    with pytest.raises(InputError, match=r"--with .*: no run"):
        report(str(tmp_path / "first"), beside=str(tmp_path / "d"))
    with pytest.raises(InputError, match=r"--with compares runs, and this is none"):
        report(str(tmp_path / "d"), beside=str(tmp_path / "first"))
    with pytest.raises(InputError, match=r"config.yaml: no such file; is this a run\?"):
        replay(str(tmp_path / "d"), 1)
