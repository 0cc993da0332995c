"""What a run would cost, beside what was measured and by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from model.inputs import InputError
from pipelines.cli.app import app
from training.config import PRESETS, load_config
from training.cost import ClusterSpec, configured_sharding, run_cost

GIB = 2**30


def test_memory_and_step_of_one_gpu_are_as_measured() -> None:
    """docs/gpu.md: 2.80 billion weights, 16.5 k tokens, no average: 44.5 GiB, 0.94 to 1.00 s."""
    sources = {"pictures": {"text": "stored"}}  # no encoder was beside it
    config = load_config("stage1-256", {"batch": 64, "workers": {"count": 1}, "mixture": sources})
    cost = run_cost(config, ClusterSpec(1))
    assert cost.parameters / 1e9 == pytest.approx(2.80, abs=0.01)
    measured = sum(cost.memory.values()) - cost.memory["average"]
    assert measured / GIB == pytest.approx(44.5, rel=0.05)
    assert cost.step == pytest.approx(0.97, rel=0.1)
    assert cost.communication == 0


def test_bytes_sent_are_those_of_rings() -> None:
    config = load_config("stage1-256")
    weights = run_cost(config, ClusterSpec(64)).parameters
    # Gathered twice in bf16, gradients scattered in float32; each GPU has one part of 64 already.
    assert run_cost(config, ClusterSpec(64)).sent == pytest.approx(weights * (2 + 2 + 4) * 63 / 64)
    # Without shards the gradients alone are added up: scattered, then gathered.
    whole = run_cost(config, ClusterSpec(64, sharding="none"))
    assert whole.sent == pytest.approx(2 * weights * 4 * 63 / 64)
    # Within nodes of 8, the eight copies of a shard are added up too.
    node = run_cost(config, ClusterSpec(64, sharding="node"))
    assert node.sent == pytest.approx(weights * 8 * 7 / 8 + 2 * weights * 4 / 8 * 7 / 8)
    assert node.communication == pytest.approx(weights * 7 * 8e-9 / 3600 + weights * 7 / 8 * 8e-9 / 400)


def test_shards_divide_memory() -> None:
    config = load_config("stage1-256")
    by_sharding = {name: run_cost(config, ClusterSpec(64, sharding=name)).memory for name in ("none", "node", "all")}
    for part in ("weights", "gradients", "optimizer", "average"):
        assert by_sharding["none"][part] == pytest.approx(8 * by_sharding["node"][part])
        assert by_sharding["none"][part] == pytest.approx(64 * by_sharding["all"][part])


def test_all_nodes_write_checkpoints_beside_the_steps() -> None:
    """Weights, two moments and averages in float32: 16 bytes a weight, a shard of them copied for each GPU."""
    config = load_config("stage1-256")
    for sharding, shards in (("none", 1), ("node", 8), ("all", 64)):
        cost = run_cost(config, ClusterSpec(64, sharding=sharding, store_gbytes=0.5))
        assert cost.checkpoint_bytes == 16 * cost.parameters
        assert cost.checkpoint == pytest.approx(16 * cost.parameters / (8 * 0.5e9))
        assert cost.checkpoint_host_bytes == pytest.approx(8 * 16 * cost.parameters / shards)
    assert cost.checkpoint_stall == 0
    often = run_cost(load_config("stage1-256", {"checkpoints": {"every": 1}}), ClusterSpec(64))
    assert often.checkpoint_stall == pytest.approx(often.checkpoint - often.step)
    assert often.hours == pytest.approx(config.steps * often.checkpoint / 3600)


def test_more_tokens_than_a_pass_take_more_passes() -> None:
    config = load_config("stage1-256", {"batch": 64 * 128})
    cost = run_cost(config, ClusterSpec(64))
    assert cost.tokens / 64 == 128 * 256 and cost.passes == 2


def _preset_text(preset: str) -> str:
    """A preset with its comments as running text."""
    return (PRESETS / f"{preset}.yaml").read_text().replace("\n# ", " ")


@pytest.mark.parametrize("preset", ["stage1-256", "stage1-512", "stage2", "stage3", "subject", "editing"])
def test_presets_state_what_the_model_says_and_fill_their_gpus(preset: str) -> None:
    config, stated = load_config(preset), _preset_text(preset)
    cost = run_cost(config, ClusterSpec(64, sharding=configured_sharding(config)))
    figures = f"about {cost.hours:.1f} hours on 64 H100, {cost.step:.2f} s a step at {cost.mfu:.0%} MFU".replace(
        "%", " %"
    )
    assert f"`onediffusion plan {preset} --gpus 64` {figures}" in stated
    assert {source.text for source in config.mixture.values()} == {"online"}
    # As many samples as published, in steps of a whole pass of every GPU.
    published = {"stage2": 1_000_000, "stage3": 100_000, "subject": 40_000, "editing": 30_000}.get(
        preset, 500_000
    ) * 256
    assert config.steps * config.batch == pytest.approx(published, rel=2e-5)
    assert config.optimizer.ema == pytest.approx(0.9999 ** (config.batch / 256), abs=2e-5)
    assert cost.passes == 1 and 0.99 < cost.tokens / 64 / config.workers.pack_tokens <= 1
    assert cost.communication < 0.15 * cost.compute
    assert sum(cost.memory.values()) < 0.5 * 80 * GIB
    for gpus in (8, 256):
        assert run_cost(config, ClusterSpec(gpus, sharding="node")).mfu == pytest.approx(cost.mfu, rel=0.05)


def test_published_batch_costs_what_the_preset_says_of_it() -> None:
    stated = re.search(r"about (\S+) hours with `--set (\S+) --set (\S+) --set (\S+)`", _preset_text("stage1-256"))
    assert stated
    config = load_config("stage1-256", stated.groups()[1:])
    assert (config.batch, config.steps, config.optimizer.ema) == (256, 500_000, 0.9999)
    cost = run_cost(config, ClusterSpec(64, sharding="node"))
    assert f"{cost.hours:.1f}" == stated[1]
    assert cost.tokens / 64 == 1024 and cost.communication > cost.compute


def test_encoders_of_a_run_take_their_share_of_its_gpus() -> None:
    """docs/gpu.md: 98 pictures a second at 512², 27.6 k tokens a second of a T5 four times as large."""
    stored, online = (
        load_config("stage1-512", {"mixture": {"pictures": {"text": mode, "latents": mode}}, "codec": "models/sd3"})
        for mode in ("stored", "online")
    )
    before, after = (run_cost(config, ClusterSpec(64)) for config in (stored, online))
    assert before.encode == 0
    assert after.encode == pytest.approx(16 / 98 + 16 * 300 / (4 * 27.6e3), rel=0.05)
    assert after.compute - before.compute == pytest.approx(after.encode)
    assert after.flops == before.flops
    more = sum(after.memory.values()) - sum(before.memory.values())
    assert after.memory["text encoder"] + after.memory["autoencoder"] == pytest.approx(more)
    assert 3 * GIB < more < 4 * GIB
    assert before.compute / run_cost(
        load_config("stage1-512", {**stored.model_dump(mode="json"), "workers": {"gradient_checkpointing": False}}),
        ClusterSpec(64),
    ).compute == pytest.approx(4 / 3, rel=0.01), "blocks are not computed again"
    # A picture and no latents; the caption and no embedding.
    assert after.read == pytest.approx(16 * (300e3 + 300 * 4))
    by_dct = run_cost(load_config("stage1-512", {**online.model_dump(mode="json"), "codec": "dct"}), ClusterSpec(64))
    assert by_dct.encode == pytest.approx(16 * 300 / (4 * 27.6e3), rel=0.05)


def test_bytes_read_are_those_stored_of_a_workers_samples() -> None:
    def check(bytes_of_text: int, tasks: list[str], text: str) -> None:
        config = load_config("stage1-256", {"batch": 256, "mixture": {"pictures": {"tasks": tasks, "text": text}}})
        frames = {"text2image": 1, "depth": 2, "deblurring": 1, "views": 8}  # that are stored
        expected = sum(frames[task] for task in tasks) / len(tasks) * 16 * 32 * 32 * 2 + bytes_of_text
        assert run_cost(config, ClusterSpec(64)).read == pytest.approx(4 * expected)

    check(300 * 2048 * 2, ["text2image"], text="stored")
    check(300 * 2048 * 2, ["text2image", "depth", "deblurring"], text="stored")
    check(300 * 4, ["views"], text="online")


def test_token_budget_makes_the_batch_that_fills_the_gpus() -> None:
    cluster = ClusterSpec(64, sharding="node")
    mixed = load_config("stage2", {"step_tokens": 2**19})
    assert 0.99 * 2**19 < run_cost(mixed, cluster).tokens <= 2**19
    assert load_config("stage2", {"step_tokens": 2**19, "batch": mixed.batch}) == mixed, (
        "as a run's config.yaml has both"
    )
    assert mixed.fixed() == load_config("stage2", {"batch": mixed.batch}).fixed()


def test_impossible_plans_are_one_line() -> None:
    config = load_config("stage1-256", ["batch=256"])
    with pytest.raises(InputError, match="batch 256 leaves some of 512 GPUs without a sample"):
        run_cost(config, ClusterSpec(512))
    with pytest.raises(InputError, match="no peak is known for device 'Z9'; there are B200"):
        run_cost(config, replace(ClusterSpec(64), device="Z9"))


def test_command_prints_table_and_json() -> None:
    command = ["plan", "stage1-256", "--set", "batch=256", "--gpus", "64", "--gbps", "200", "--dollars", "2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert "memory of a GPU" in result.output and "Communication takes longer than computing" in result.output
    assert "bytes that a GPU's worker reads for a step" in result.output
    slow = CliRunner().invoke(app, [*command, "--set", "mixture.pictures.tasks.views=1", "--store-gbytes", "0.001"])
    assert "Reading: the workers of a node read" in slow.output
    values = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    expected = run_cost(load_config("stage1-256", ["batch=256"]), ClusterSpec(64, gbps=200, dollars=2, sharding="node"))
    assert values["hours"] == pytest.approx(expected.hours)
    assert values["dollars"] == pytest.approx(expected.hours * 64 * 2)
    quick = CliRunner().invoke(app, [*command, "--json", "--shard", "node", "--set", "batch=4096"])
    assert json.loads(quick.output)["advice"] == []
