"""Adapters: what is trained, what a checkpoint of one holds, and what others read of it."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from free_ports import free_ports
from safetensors import safe_open
from tiny_models import save_pipeline
from tiny_run import save_run
from typer.testing import CliRunner

from labeling.dataset import open_store
from model import NextDiT, OneDiffusionPipeline
from model.inputs import InputError
from pipelines.cli.app import app
from training.batch import Sample, StepBatch
from training.checkpoint import load_checkpoint, load_training
from training.checkpoint.saving import CheckpointSaver
from training.checkpoint.state import TrainingState
from training.config import PRESETS, CheckpointConfig, TrainingConfig, load_config
from training.cost import ClusterSpec, run_cost
from training.lora import LoraConfig
from training.packed_model import build_model
from training.parallel import distribute
from training.plan.packing import deal_to_one
from training.updates import Updates

PAGE = Path(__file__).parents[2] / "docs" / "lora.md"
STEPS, SAMPLES = 4, 4
# Of the tiny pipeline and of the tiny run.
RELEASED = {"hidden_size": 48, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "multiple_of": 16, "caption_channels": 32}
OF_RUN = {"hidden_size": 24, "depth": 1, "num_heads": 2, "num_kv_heads": 2, "multiple_of": 8, "caption_channels": 32,
          "qk_norm": False}  # fmt: skip


def settings(base: Path | str, lora: dict[str, Any], model: dict[str, Any], **changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "name": "adapter",
        "steps": STEPS,
        "batch": SAMPLES,
        "size": 64,
        "mixture": {"a": {"dataset": "none", "tasks": ["text2image"]}},
        "initialize": str(base),
        "lora": {"rank": 4, **lora},
        "model": {**model, "input_size": (1, 32, 32)},
        "optimizer": {"warmup": 0, "learning_rate": 3e-2, "ema": 0.5},
    }
    return TrainingConfig(**{**values, **changes})


def samples(step: int) -> list[Sample]:
    draws = np.random.default_rng(step)
    made = []
    for _ in range(SAMPLES):
        latents = draws.standard_normal((1, 16, 8, 8)).astype(np.float16)
        text = draws.standard_normal((3, 32)).astype(np.float16)
        sigmas, seed = draws.random(1).astype(np.float32), int(draws.integers(1 << 30))
        made.append(Sample("text2image", latents, text, sigmas, np.ones(1, bool), seed))
    return made


class Trainer:
    """What a worker has, without Ray; of several processes, `rank` is one."""

    def __init__(self, config: TrainingConfig, rank: int = 0, count: int = 1) -> None:
        self.config, self.rank, self.count = config, rank, count
        device = torch.device("cpu")
        self.model = distribute(build_model(config), config.workers, device, count)
        half = config.workers.precision == "bf16"
        self.updates = Updates(self.model, config, device, count, lambda: torch.autocast("cpu", enabled=half))
        self.state = TrainingState(self.model, self.updates.optimizer, self.updates.average)
        self.losses: list[float] = []

    def begin(self, run: Path, step: int = 0) -> None:
        self.saver = CheckpointSaver(open_store(run), self.state.tensors, CheckpointConfig(keep=9))
        if step:
            self.state.restore(open_store(run), step, self.saver.group)
        else:
            self.state.initialize(self.config, self.saver.group)

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            of_step = samples(step)
            dealt = deal_to_one([sample.tokens for sample in of_step], 32, self.count, self.rank)[0]
            packs = [[of_step[place] for place in pack] for pack in dealt]
            losses: list[torch.Tensor] = []

            def add(pack: list[Sample], parts: torch.Tensor, frames: int, losses: list[Any] = losses) -> None:
                losses.append(parts.sum())

            self.updates.update(StepBatch(step, packs, SAMPLES), add)
            total = torch.stack(losses).sum()
            if self.count > 1:
                torch.distributed.all_reduce(total)
            self.losses.append(float(total) / SAMPLES)

    def save(self, step: int) -> None:
        facts = {"step": step, "config": self.config.model_dump(mode="json"), **self.state.facts()}
        unwrapped = self.model.module if hasattr(self.model, "module") else self.model
        self.saver.save({**facts, "transformer": dict(unwrapped.transformer.config)})
        self.saver.wait()


def trained(config: TrainingConfig, run: Path) -> Trainer:
    """After a run of one process, with a checkpoint after two steps and after all."""
    trainer = Trainer(config)
    trainer.begin(run)
    trainer.train(0, 2)
    trainer.save(2)
    trainer.train(2, STEPS)
    trainer.save(STEPS)
    return trainer


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_pipeline(tmp_path_factory.mktemp("released") / "model"))


@pytest.fixture(scope="module")
def run(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an adapter of the released layout, with dropout and 8-bit moments."""
    folder = tmp_path_factory.mktemp("adapter")
    lora = {"alpha": 12, "dropout": 0.2}
    optimizer = {"warmup": 0, "learning_rate": 3e-2, "ema": 0.5, "kind": "adamw8bit"}
    trained(settings(released, lora, RELEASED, optimizer=optimizer), folder)
    return folder


def draw(pipeline: OneDiffusionPipeline) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    call = {"num_inference_steps": 2, "generator": generator, "output_type": "latent"}
    return pipeline("text2image", prompt="a cat", **call).latents


def test_checkpoint_holds_the_adapter_alone(run: Path, released: Path) -> None:
    tensors = load_training(open_store(run), STEPS)
    kinds = {name.split(".", 1)[0] for name in tensors}
    assert kinds == {"model", "average", "optimizer"}
    assert all(".lora_A.weight" in name or ".lora_B.weight" in name for name in tensors)
    assert sum(name.startswith("model.") for name in tensors) == 2 * 9 * RELEASED["depth"]
    state = json.loads((run / "checkpoints" / "step-000004" / "state.json").read_text())
    assert state["base"]["checkpoint"] == str(released)


def test_run_that_goes_on_ends_with_the_same_adapter(run: Path, tmp_path: Path) -> None:
    """Dropout and 8-bit moments included."""
    state = json.loads((run / "checkpoints" / "step-000004" / "state.json").read_text())
    again = Trainer(TrainingConfig.model_validate(state["config"]))
    again.begin(run, 2)
    again.train(2, STEPS)
    expected = load_training(open_store(run), STEPS)
    for name, value in again.state.tensors().items():
        assert torch.equal(value, expected[name]), name


def test_merged_model_is_the_base_with_its_adapter(run: Path, released: Path, tmp_path: Path) -> None:
    """The file that `export` writes, read by the pipeline and by diffusers' own loader."""
    result = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "adapter"), "--format", "lora"])
    file = tmp_path / "adapter" / "pytorch_lora_weights.safetensors"
    assert result.exit_code == 0 and result.output.strip() == str(file)
    pipeline = OneDiffusionPipeline.from_pretrained(released)
    plain = draw(pipeline)
    pipeline.load_lora_weights(tmp_path / "adapter")
    adapted = draw(pipeline)
    assert (adapted - plain).abs().max() > 1e-2
    merged, _ = load_checkpoint(run)
    of_merged = OneDiffusionPipeline.from_pretrained(released, transformer=merged)
    torch.testing.assert_close(draw(of_merged), adapted, atol=2e-4, rtol=2e-4)
    transformer = NextDiT.from_pretrained(released)
    transformer.load_lora_adapter(str(file), prefix="transformer")
    again = OneDiffusionPipeline.from_pretrained(released, transformer=transformer)
    torch.testing.assert_close(draw(again), adapted, atol=1e-5, rtol=1e-5)
    with safe_open(file, "pt") as stored:
        described = json.loads(stored.metadata()["lora_adapter_metadata"])
    assert described["transformer.r"] == described["transformer.lora_alpha"] == 4, "alpha / rank is in the weights"
    live = tmp_path / "live.safetensors"
    assert CliRunner().invoke(app, ["export", str(run), str(live), "--format", "lora", "--live"]).exit_code == 0
    assert live.read_bytes() != file.read_bytes()


@pytest.mark.torchao
def test_adapter_is_loaded_beside_weights_in_eight_bits(run: Path, released: Path, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    for command in (
        ["export", str(released), str(tmp_path / "eight"), "--quantize", "int8"],
        ["export", str(run), str(file), "--format", "lora"],
    ):
        assert CliRunner().invoke(app, command).exit_code == 0
    eight = OneDiffusionPipeline.from_pretrained(tmp_path / "eight")
    plain = draw(eight)
    eight.load_lora_weights(file)
    of_half = OneDiffusionPipeline.from_pretrained(released, torch_dtype=torch.bfloat16)
    of_half.load_lora_weights(file)
    expected, found = draw(of_half), draw(eight)
    assert (found - expected).norm() < 0.1 * (plain - expected).norm()


def test_other_weights_than_those_trained_on_are_refused(tmp_path: Path) -> None:
    base = save_run(tmp_path)
    trained(settings(base, {}, OF_RUN), tmp_path / "adapter")
    pinned = json.loads((tmp_path / "adapter" / "checkpoints" / "step-000004" / "state.json").read_text())["base"]
    assert pinned["checkpoint"] == f"{base}/checkpoints/step-000004", "the run's newest one when it began"
    load_checkpoint(tmp_path / "adapter")
    with pytest.raises(InputError, match="a run of an adapter"):
        Trainer(settings(tmp_path / "adapter", {}, OF_RUN)).begin(tmp_path / "more")
    save_run(tmp_path, 2.0)
    with pytest.raises(InputError, match="not the weights that this adapter was trained on"):
        load_checkpoint(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"a model with hidden_size 24, the configuration says 48"):
        Trainer(settings(base, {}, RELEASED)).begin(tmp_path / "other")
    result = CliRunner().invoke(app, ["export", str(base), str(tmp_path / "out"), "--format", "lora"])
    assert result.exit_code != 0 and "has no adapter" in str(result.exception)


def test_base_may_be_named_as_on_the_hub(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the hub's cache, as a download leaves it; the address that is kept is the name, which others have too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "hub" / "models--someone--OneDiffusion"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(released, folder / "snapshots" / ("0" * 40))
    trainer = Trainer(settings("someone/OneDiffusion", {}, RELEASED))
    trainer.begin(tmp_path / "run")
    assert trainer.state.facts()["base"]["checkpoint"] == "someone/OneDiffusion"
    weight = dict(trainer.model.named_parameters())["transformer.layers.0.attention.wq.base_layer.weight"]
    assert torch.equal(weight, NextDiT.from_pretrained(released).layers[0].attention.wq.weight)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such folder, and the hub does not give it"):
        load_checkpoint("nobody/OneDiffusion")
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="no checkpoint there"):
        load_checkpoint("runs/mistyped")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [{}, {"fsdp": True, "gradient_checkpointing": True, "precision": "bf16"}])
def test_two_processes_train_what_one_trains(released: Path, tmp_path: Path, workers: dict[str, Any]) -> None:
    """DDP and FSDP2; what two processes saved in 8 bits, one reads to the same bytes."""
    optimizer = {"warmup": 0, "learning_rate": 1e-3, "ema": 0.5, "kind": "adamw8bit"}
    lora = {"rank": 64, "targets": ["wq", "w2", "x_embedder"]}
    config = settings(released, lora, RELEASED, optimizer=optimizer, workers=workers)
    one = trained(settings(released, lora, RELEASED, optimizer=optimizer), tmp_path / "one")
    (port,) = free_ports(1)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "model.transformer"])
    with context.Pool(2, signal.signal, (signal.SIGTERM, signal.SIG_DFL)) as pool:
        arguments = [(rank, port, config, tmp_path / "two") for rank in range(2)]
        losses = pool.starmap_async(_in_process, arguments, chunksize=1).get(timeout=300)
    assert losses[0] == pytest.approx(one.losses, rel=2e-2 if "precision" in workers else 1e-4)
    saved = load_training(open_store(tmp_path / "two"), STEPS)
    assert any(value.dtype == torch.uint8 for value in saved.values())
    alone = Trainer(settings(released, lora, RELEASED, optimizer=optimizer))
    alone.begin(tmp_path / "two", STEPS)
    for name, value in alone.state.tensors().items():
        assert torch.equal(value, saved[name]), name


def _in_process(rank: int, port: int, config: TrainingConfig, run: Path) -> list[float]:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    trainer = Trainer(config, rank, 2)
    trainer.begin(run)
    trainer.train(0, STEPS)
    trainer.save(STEPS)
    torch.distributed.destroy_process_group()
    return trainer.losses


def test_configuration_names_what_an_adapter_cannot_be() -> None:
    with pytest.raises(InputError, match=r"no layer 'wqq' \(did you mean 'wq'"):
        load_config("finetune-lora", ["lora.targets=[wqq]"])
    with pytest.raises(InputError, match="lora is an adapter of a trained model"):
        load_config("finetune-lora", ["initialize=null"])
    assert "lora" not in load_config("debug").fixed() and "kind" not in load_config("debug").fixed()["optimizer"]


def test_files_of_the_page_are_configurations(tmp_path: Path) -> None:
    beside, options = re.findall(r"```yaml\n(.+?)```", PAGE.read_text(), re.DOTALL)
    file = tmp_path / "toy.yaml"
    file.write_text(options)
    assert load_config(file).lora == LoraConfig(rank=32, alpha=16, targets=["wq", "wk", "wv", "wo"], dropout=0.05)
    file.write_text(beside)
    config = load_config(file)
    weights = [weight for source in config.mixture.values() for weight in source.tasks.values()]
    of_subject, alone = config.mixture["pictures"].tasks["text2image"] / sum(weights), load_config("finetune-lora")
    assert config.batch * of_subject == pytest.approx(alone.batch), "it sees the subject as often as without the others"


def test_preset_fits_a_gpu_of_24_gigabytes() -> None:
    config = load_config("finetune-lora")
    gpu = ClusterSpec(1, "RTX 4090", 24)
    cost = run_cost(config, gpu)
    assert cost.parameters / 1e9 == pytest.approx(2.8, rel=0.01) and cost.trained / cost.parameters < 0.01
    assert sum(cost.memory.values()) / 2**30 < 0.5 * 24
    assert cost.checkpoint_bytes == 16 * cost.trained
    eight = run_cost(load_config("finetune-lora", ["optimizer.kind=adamw8bit"]), gpu)
    assert eight.memory["optimizer"] == pytest.approx(cost.memory["optimizer"] / 4, rel=0.02)
    whole = run_cost(load_config("stage1-512"), ClusterSpec(1))
    assert sum(cost.memory.values()) < 0.25 * sum(whole.memory.values())

    rows = re.findall(r"^\| (.*) \| (.*) GiB \| (.*) GiB \| (.*) s \| (.*) minutes \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 8
    for what, *figures in rows:
        cost = run_cost(load_config("finetune-lora", re.findall(r"--set ([^ `]+)", what)), gpu)
        memory, weights = sum(cost.memory.values()) / 2**30, cost.memory["weights"] / 2**30
        assert figures == [f"{memory:.1f}", f"{weights:.1f}", f"{cost.step:.2f}", f"{60 * cost.hours:.0f}"], what
    stated = (PRESETS / "finetune-lora.yaml").read_text()
    assert "about 7 GiB" in stated and f"about {rows[0][-1]} minutes" in stated
