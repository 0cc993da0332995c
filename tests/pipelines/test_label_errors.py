"""Rows in error in a labeling job: counted by reason, tried again, and too many of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import onediffusion, said_on

from labeling.dataset import Dataset, dataset_status
from labeling.plan import Wave
from labeling.resources import Resources
from model.inputs import InputError, WorkFailed
from model.inputs.yaml_files import to_yaml
from model.pictures import encode_png
from pipelines.ingest import ingest
from pipelines.label import label, plan
from pipelines.labeling_job.wave import WaveRun

pytestmark = pytest.mark.usefixtures("ray_cluster")
BRIGHTNESS, BROKEN, HALVED = (f"simple_labelers:{name}" for name in ("Brightness", "Broken", "Halved"))


def stamps(dataset: Dataset, group: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(dataset.uri, group).glob("0*.parquet")}


def test_rows_in_error_are_tried_again_and_the_others_keep_their_labels(dataset: Dataset, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    parameters = {"broken": {"until": str(mended), "wider_than": 600}}
    first = label(dataset.uri, [BROKEN], parameters)
    wide = sum(row["width"] > 600 for row in dataset.rows("images", ["width"]))
    errors = first.errors["broken"]
    assert (errors.rows, errors.unexpected, errors.unavailable) == (wide, wide, 0)
    ((reason, kept),) = errors.top()
    assert reason == "ValueError: it is broken"
    assert kept.example in {row["id"] for row in dataset.rows("images") if row["width"] > 600}
    before, recipes = (
        stamps(dataset, "broken"),
        [dataset.footer("broken", shard.name).recipe for shard in dataset.shards],
    )

    again = label(dataset.uri, [BROKEN], parameters, only_errors=True)
    assert not again.written.total()
    assert stamps(dataset, "broken") == before
    mended.touch()
    assert not label(dataset.uri, [BROKEN], parameters).written.total()  # errors alone make nothing stale
    touched = sum(dataset.footer("broken", shard.name).errors > 0 for shard in dataset.shards)
    assert plan(dataset.uri, [BROKEN], only_errors=True)["broken"].shards == touched
    last = label(dataset.uri, [BROKEN], parameters, only_errors=True)
    assert last.written == {"broken": touched}
    assert dataset_status(dataset)["broken"].errors == 0
    assert [dataset.footer("broken", shard.name).recipe for shard in dataset.shards] == recipes
    assert [row["width"] for row in dataset.rows("broken")] == [row["width"] for row in dataset.rows("images")]
    after = stamps(dataset, "broken")
    assert sum(after[name] != before[name] for name in before) == touched < len(before)


def test_refused_job_leaves_groups_as_they_were(dataset: Dataset) -> None:
    """It is refused when Ray has started: declarations of before are back, and new groups are gone."""
    label(dataset.uri, [BRIGHTNESS])
    files = {path: path.read_bytes() for path in Path(dataset.uri).rglob("*.json")}
    folders = {path for path in Path(dataset.uri).rglob("*") if path.is_dir()}
    with pytest.raises(InputError, match=r"neither a part of a GPU nor a whole number"):
        label(
            dataset.uri,
            [BRIGHTNESS, "edges"],
            {"brightness": {"gain": 2.0}},
            resources={"edges": Resources(gpus=1.5)},
        )
    assert {path: path.read_bytes() for path in Path(dataset.uri).rglob("*.json")} == files
    assert {path for path in Path(dataset.uri).rglob("*") if path.is_dir()} == folders
    assert not label(dataset.uri, [BRIGHTNESS]).written


def test_command_tells_reasons_and_fails_where_every_row_does(
    dataset: Dataset, tmp_path: Path, shared_ray: None
) -> None:
    widths = [row["width"] for row in dataset.rows("images", ["width"])]
    wide, mended = sum(width > 600 for width in widths), tmp_path / "mended"
    command = ("label", dataset.uri, BROKEN, "--set", f"broken.until={mended}")
    some = onediffusion(*command, "--set", "broken.wider_than=600")
    assert some.returncode == 0, some.stderr
    assert f"broken: {wide} of {len(widths)} rows in error" in some.stdout.splitlines()
    assert re.search(rf"^  {wide} × ValueError: it is broken \(as \w+\)$", some.stdout, re.MULTILINE)
    every = onediffusion(*command, "--set", "broken.wider_than=0")
    assert every.returncode == 1
    again = f"onediffusion label {dataset.uri} broken --only-errors"
    line = f"onediffusion: broken: every row is in error (ValueError: it is broken); when it is mended: {again}"
    assert said_on(every.stderr) == [line]
    mended.touch()
    last = onediffusion(*command, "--only-errors")
    assert last.returncode == 0, last.stderr
    assert f"broken: {len(dataset.shards)} shards labeled" in last.stdout and "in error" not in last.stdout


def test_submitted_job_repeats_rows_in_error_only(
    dataset: Dataset, tmp_path: Path, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    mended = tmp_path / "mended"
    parameters = {"broken": {"until": str(mended), "wider_than": 600}}
    label(dataset.uri, [BROKEN], parameters)
    before = stamps(dataset, "broken")
    touched = sum(dataset.footer("broken", shard.name).errors > 0 for shard in dataset.shards)
    mended.touch()
    job = {"kind": "label", "dataset": dataset.uri, "groups": [BROKEN], "parameters": parameters}
    (tmp_path / "job.yaml").write_text(to_yaml(job))
    sent = onediffusion("submit", tmp_path / "job.yaml", "--target", "local", "--only-errors")
    assert sent.returncode == 0, sent.stderr
    done = onediffusion("logs", "-f", sent.stdout.strip())
    assert f"broken: {touched} shards labeled" in done.stdout, done.stdout + done.stderr
    after = stamps(dataset, "broken")
    assert sum(after[name] != before[name] for name in before) == touched < len(before)
    assert dataset_status(dataset)["broken"].errors == 0


def test_labels_that_read_a_mended_label_are_computed_again(dataset: Dataset, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    names, parameters = [BROKEN, HALVED], {"broken": {"until": str(mended), "wider_than": 600}}
    label(dataset.uri, names, parameters)
    status = dataset_status(dataset)
    assert status["halved"].errors == status["broken"].errors > 0
    mended.touch()
    result = label(dataset.uri, names, parameters, only_errors=True)
    touched = sum(max(dataset.read("images", shard.name)["width"].to_pylist()) > 600 for shard in dataset.shards)
    assert result.written == {"broken": touched, "halved": touched}
    status = dataset_status(dataset)
    assert (status["halved"].errors, status["halved"].fresh) == (0, len(dataset.shards))
    widths = [row["width"] for row in dataset.rows("images")]
    assert [row["half"] for row in dataset.rows("halved")] == [width / 2 for width in widths]


def test_only_errors_repeats_what_a_lost_writer_had(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mended = tmp_path / "mended"
    names, parameters = [BROKEN, HALVED], {"broken": {"until": str(mended), "wider_than": 600}}
    label(dataset.uri, names, parameters)
    touched = sum(dataset.footer("broken", shard.name).errors > 0 for shard in dataset.shards)
    mended.touch()
    run, lost = WaveRun.__call__, []

    def lose_first(self: WaveRun, wave: Wave, *rest: Any) -> int:
        """The first wave of each group loses its writer, with all that it had."""
        if wave.groups in lost:
            return run(self, wave, *rest)
        lost.append(wave.groups)
        return 1

    monkeypatch.setattr(WaveRun, "__call__", lose_first)
    result = label(dataset.uri, names, parameters, only_errors=True)
    assert lost == [["broken"], ["halved"]]
    assert result.written == {"broken": touched, "halved": touched}
    assert result.fresh == dict.fromkeys(("broken", "halved"), len(dataset.shards) - touched)
    status = dataset_status(dataset)
    assert [(status[group].errors, status[group].fresh) for group in ("broken", "halved")] == [
        (0, len(dataset.shards))
    ] * 2
    monkeypatch.setattr(WaveRun, "__call__", lambda *_: 1)
    mended.unlink()
    label_all = {"broken": {**parameters["broken"], "wider_than": 500}}
    with pytest.raises(WorkFailed, match="writers were lost in each of 5 tries"):
        label(dataset.uri, names, label_all)


def test_rows_that_nothing_can_label_count_apart(dataset: Dataset, tmp_path: Path) -> None:
    for name in ("right", "disparity"):
        assert all(row[name] is None for row in dataset.rows("images", [name]))
    result = label(dataset.uri, ["depth", BROKEN], {"broken": {"until": str(tmp_path / "never")}})
    rows = sum(shard.rows for shard in dataset.shards)
    assert (result.errors["broken"].rows, result.errors["broken"].unavailable) == (rows, 0)
    assert (result.errors["depth"].rows, result.errors["depth"].unavailable) == (0, rows)


def test_labeler_that_fails_too_often_stops_the_job_and_finished_shards_stay(tmp_path: Path, shared_ray: None) -> None:
    source = tmp_path / "source"
    source.mkdir()
    random = np.random.default_rng(0)
    for index in range(110):
        picture = random.integers(0, 256, (40, 40 + (index >= 80), 3), np.uint8)
        (source / f"{index:03d}.png").write_bytes(encode_png(picture))
    ingest(str(source), str(tmp_path / "dataset"), shard_rows=20)
    uri = str(tmp_path / "dataset")
    settings = ("--set", f"broken.until={tmp_path / 'never'}", "--set", "broken.wider_than=40")
    stopped = onediffusion("label", uri, BRIGHTNESS, BROKEN, *settings)
    reason = r"broken: \d+% of \d+ rows failed, more than 5%.*it is broken.*max_errors"
    assert stopped.returncode == 1 and re.search(reason, stopped.stderr), stopped.stderr
    status = dataset_status(Dataset.open(uri))
    assert status["brightness"].fresh >= status["broken"].fresh > 0
    allowed = onediffusion("label", uri, BRIGHTNESS, BROKEN, *settings, "--resources", "broken.max_errors=0.6")
    assert allowed.returncode == 0, allowed.stderr
    assert dataset_status(Dataset.open(uri))["broken"].errors == 30
