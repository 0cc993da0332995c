"""Every preset, small: it is planned, draws its tasks in the shares that it asks for, and trains."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_stages import tiny
from typer.testing import CliRunner

from model.inputs import InputError
from model.prompts import find_task
from model.text import load_text_encoder
from pipelines.cli.app import app
from training.config import TrainingConfig, load_config, presets
from training.dataloader import read_ahead
from training.device import DeviceBatches
from training.packed_model import build_model
from training.plan.manifest import Manifest
from training.plan.mixture import build_manifest
from training.plan.step_plan import Plan
from training.reader import PlanReader
from training.step_metrics import LEVELS, StepMetrics
from training.updates import Updates

STAGES = ["stage1-256", "stage1-512", "stage2", "stage3", "subject", "editing"]


@pytest.fixture(scope="module")
def device_batches() -> DeviceBatches:
    """With one text encoder for all presets."""
    config = load_config("debug")
    batches = DeviceBatches(config, "dct", "minilm", torch.device("cpu"))
    batches.__dict__["text_encoder"] = load_text_encoder("minilm")
    return batches


def _manifest(config: TrainingConfig) -> Manifest:
    return build_manifest(config.mixture, config.size, config.lanes, config.text_encoder)


@pytest.mark.parametrize("name", [*STAGES, "debug", "small-cpu", "finetune-lora", "finetune-lora-debug"])
def test_preset_trains_three_steps_in_the_shares_that_it_asks_for(
    name: str, stage_datasets: dict[str, Path], device_batches: DeviceBatches
) -> None:
    # Of no model but its own, which is random: tests/training/test_lora.py has them of others.
    start = {"initialize": "none"} if "lora" in name else {}
    config = load_config(name, tiny(name, stage_datasets, **start))
    manifest = _manifest(config)
    tasks = {(stream.source, stream.task): stream for stream in manifest.streams}
    assert all(stream.rows for stream in tasks.values()), "the tiny datasets serve every task"

    plan = Plan(manifest, config.seed, config.batch, config.objective, config.reader.window)
    drawn, _ = plan.tasks.draws(0, 5_000)
    total = sum(stream.weight for stream in manifest.streams)
    for number, stream in enumerate(manifest.streams):
        assert np.mean(drawn == number) == pytest.approx(stream.weight / total, abs=0.01)

    torch.set_num_threads(1)
    model = build_model(config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    updates = Updates(model, config, torch.device("cpu"), 1)
    metrics = StepMetrics(tuple(manifest.counts()), torch.device("cpu"))
    for batch in device_batches.ready(read_ahead(PlanReader(manifest, config), 0, 1, range(3))):
        assert math.isfinite(float(updates.update(batch, metrics.add_pack)))
        metrics.end_step(0.0, 1.0)
    values = metrics.reduce()
    assert math.isfinite(values["loss"]) and set(values["losses"]) <= set(manifest.counts())
    assert set(values["level_losses"]) <= set(LEVELS)
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_every_preset_of_the_paper_is_tried_and_planned() -> None:
    assert set(STAGES) <= set(presets())
    for name in STAGES:
        result = CliRunner().invoke(app, ["plan", name, "--gpus", "64", "--dollars", "2", "--json"])
        assert result.exit_code == 0, result.output
        cost = json.loads(result.output)
        assert cost["hours"] > 0 and cost["dollars"] == pytest.approx(128 * cost["hours"])
        assert sum(cost["memory"].values()) < 80e9


def test_references_are_other_pictures_of_the_set_and_told_in_the_prompt(stage_datasets: dict[str, Path]) -> None:
    sets = {"dataset": str(stage_datasets["references"]), "text": "online"}
    mixture = {
        "identity": {**sets, "tasks": ["identity"], "views": [2, 3]},
        "subject": {**sets, "tasks": ["subject"]},
        "editing": {**sets, "tasks": ["editing"]},
        "pictures": None,
        "views": None,
    }
    values = tiny("debug", {"pictures": Path(), "views": Path()}, mixture=mixture, batch=24)
    config = load_config("debug", {**values, "objective": {"known_frame_share": 0.5, "caption_dropout": 0.2}})
    manifest = _manifest(config)
    plan = Plan(manifest, config.seed, config.batch, config.objective, config.reader.window)
    reader, frames = PlanReader(manifest, config), Counter[tuple[str, int]]()
    for step in range(8):
        assert plan.sizes(step).frames_in_loss == sum(int(each.sum()) for *_, each in plan.draw(step, range(24)))
        for planned, sigmas, in_loss in plan.draw(step, range(24)):
            sample = reader.read_sample(planned, sigmas, in_loss)
            assert len(sample.latents) == planned.frames == len(planned.views) == len(set(planned.views))
            assert in_loss[0], "a reference is not made of the image"
            frames[planned.task, planned.frames] += 1
            prompt = sample.prompt or ""
            if planned.drop_caption:
                assert prompt == ""
            elif planned.task == "editing":
                assert planned.views[1] == 0 < planned.views[0] and prompt.startswith("[[image_editing]]")
            else:
                assert prompt.count("[[img") == planned.frames
                assert ("<item: chair>" in prompt) == (planned.task == "subject")
    assert {count for task, count in frames if task == "identity"} == {2, 3}
    assert {count for task, count in frames if task == "editing"} == {2}
    with pytest.raises(InputError, match="the prompt of identity depends on the pictures drawn: set text to online"):
        load_config("stage3", {"mixture": {"identity": {"text": "stored"}}})
    with pytest.raises(InputError, match=r"views \[2, 5\]: identity has 2 to 4 pictures"):
        load_config("stage3", {"mixture": {"identity": {"views": [2, 5]}}})


def test_dropped_conditions_are_pure_noise_at_the_share_asked_for(stage_datasets: dict[str, Path]) -> None:
    mixture = {
        "pictures": {
            "dataset": str(stage_datasets["pictures"]),
            "tasks": {"edges": 1, "text2image": 1},
            "condition_dropout": 0.3,
        },
        "views": {"dataset": str(stage_datasets["views"]), "tasks": ["views"], "condition_dropout": 1.0},
    }
    config = load_config("debug", {"size": 64, "batch": 500, "mixture": mixture})
    manifest = _manifest(config)
    again = Manifest.from_buffer(pa.BufferReader(manifest.to_bytes()))
    assert again.streams == manifest.streams
    plan = Plan(manifest, config.seed, config.batch, config.objective, config.reader.window)
    dropped = []
    for planned, sigmas, in_loss in plan.draw(0, range(500)):
        if find_task(planned.task).condition is None:
            assert sigmas[0] < 1
        elif planned.task == "views":
            assert (sigmas[1::2] == 1).all() and (sigmas[::2] < 1).all() and in_loss.all()
        else:
            dropped.append(sigmas[1] == 1)
            assert not dropped[-1] or in_loss.all()
    assert np.mean(dropped) == pytest.approx(0.3, abs=0.08)
