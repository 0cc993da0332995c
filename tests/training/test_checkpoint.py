"""Checkpoints: whole or not there, the newest kept, safetensors only; the average and the schedule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from labeling.dataset import LocalStore, open_store
from model import NextDiT
from model.inputs import InputError
from training.checkpoint import load_checkpoint, load_state, load_training, save_checkpoint, whole_checkpoints
from training.checkpoint.state import TrainingState
from training.config import OptimizerConfig
from training.divergence import unusable_checkpoint
from training.metrics_logger import MetricsLogger, read_metrics, scalars
from training.optimizer import MovingAverage, build_optimizer, learning_rate


@pytest.fixture
def transformer() -> NextDiT:
    torch.manual_seed(0)
    return NextDiT(hidden_size=24, depth=1, num_heads=2, multiple_of=8, caption_channels=8)


@pytest.mark.parametrize("keep", [1, 3, 20])
def test_save_keeps_the_newest_checkpoints_and_the_first(tmp_path: Path, transformer: NextDiT, keep: int) -> None:
    store = open_store(tmp_path / "run")
    for step in range(0, 16, 2):
        save_checkpoint(store, transformer, {"a": torch.full((2,), float(step))}, {"step": step}, keep)
    assert whole_checkpoints(store) == [0, *list(range(2, 16, 2))[-keep:]]
    assert len(store.folders("checkpoints")) == len(whole_checkpoints(store))
    assert load_training(store, 14)["a"].tolist() == [14.0, 14.0]
    assert load_state(store, 14)["step"] == 14


def test_load_accepts_run_checkpoint_and_diffusers_folder(tmp_path: Path, transformer: NextDiT) -> None:
    store = open_store(tmp_path / "run")
    address = save_checkpoint(store, transformer, {}, {"step": 3, "codec": "dct"}, 1)
    transformer.save_pretrained(tmp_path / "released" / "transformer")
    for place, step in ((tmp_path / "run", 3), (address, 3), (tmp_path / "released", None)):
        loaded, state = load_checkpoint(place)
        assert state.get("step") == step
        assert not loaded.training
        for name, value in transformer.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)
    files = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert files == {".json", ".safetensors"}


def test_incomplete_checkpoint_is_skipped_and_refused(tmp_path: Path, transformer: NextDiT) -> None:
    store = open_store(tmp_path / "run")
    save_checkpoint(store, transformer, {}, {"step": 1}, 5)
    address = save_checkpoint(store, transformer, {}, {"step": 2}, 5)
    store.delete("checkpoints/step-000002/state.json")
    assert whole_checkpoints(store) == [1]
    assert load_checkpoint(tmp_path / "run")[1]["step"] == 1
    with pytest.raises(InputError, match="is not whole"):
        load_checkpoint(address)
    with pytest.raises(InputError, match="no checkpoint there"):
        load_checkpoint(tmp_path / "elsewhere")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_single_weight_or_average_that_is_not_finite_is_noticed(transformer: NextDiT, value: float) -> None:
    average = MovingAverage(transformer, 0.9)
    state = TrainingState(transformer, build_optimizer(transformer, OptimizerConfig()), average, {})
    assert state.is_finite()
    for tensor in (average.average[-1], next(iter(transformer.parameters())).data):
        kept = tensor.view(-1)[-1].clone()
        tensor.view(-1)[-1] = value
        assert not state.is_finite()
        tensor.view(-1)[-1] = kept
    assert state.is_finite()
    assert "remove that folder to go on from step-000002" in unusable_checkpoint("run/step-000004", "step-000002")


def test_moving_average_is_applied_only_within_its_context(transformer: NextDiT) -> None:
    average = MovingAverage(transformer, 0.5)
    weight = next(transformer.parameters())
    start = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    average.update(1000)
    with average.applied():
        torch.testing.assert_close(weight, start + 0.5)
    torch.testing.assert_close(weight, start + 1.0)
    average.reset()
    with torch.no_grad():
        weight.add_(1.0)
    average.update(0)  # early on it follows closely: decay 1/10
    with average.applied():
        torch.testing.assert_close(weight, start + 1.9)


def test_learning_rate_warms_up_and_decays() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup=4, schedule="linear")
    rates = [learning_rate(step, 12, config) for step in range(12)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[-1] == pytest.approx(1 / 8)
    assert learning_rate(8, 12, config) == pytest.approx(0.5)
    assert learning_rate(8, 12, config.model_copy(update={"schedule": "cosine"})) == pytest.approx(0.5)
    assert learning_rate(11, 12, config.model_copy(update={"schedule": "constant"})) == 1.0


def test_weight_decay_spares_norms_gates_and_biases(transformer: NextDiT) -> None:
    groups = build_optimizer(transformer, OptimizerConfig(weight_decay=0.1)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(parameter.ndim >= 2 for parameter in groups[0]["params"])
    assert all(parameter.ndim < 2 for parameter in groups[1]["params"])


def test_initial_weights_must_be_of_the_same_model(tmp_path: Path, transformer: NextDiT) -> None:
    from training.checkpoint.state import load_initial_weights
    from training.config import load_config

    transformer.save_pretrained(tmp_path / "released" / "transformer")
    model = {"hidden_size": 24, "depth": 1, "num_heads": 2, "num_kv_heads": 2, "multiple_of": 8, "caption_channels": 8}
    model |= {"qk_norm": False}
    settings = {"initialize": str(tmp_path / "released"), "model": model}
    weights = load_initial_weights(load_config("debug", settings))
    assert weights.keys() == {f"transformer.{name}" for name in transformer.state_dict()}
    with pytest.raises(InputError, match="a model with depth 1, the configuration says 2"):
        load_initial_weights(load_config("debug", {**settings, "model": {**model, "depth": 2}}))


def test_full_disk_on_resume_keeps_recorded_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    logger = MetricsLogger(store, 0)
    for step in range(1, 6):
        logger.append({"step": step})
    with monkeypatch.context() as full:
        full.setattr(LocalStore, "put_file", _full)
        with pytest.raises(OSError, match="No space left"):
            MetricsLogger(store, 3)
    assert [record["step"] for record in read_metrics(store)] == [1, 2, 3, 4, 5]
    MetricsLogger(store, 3).append({"step": 4})
    assert [record["step"] for record in read_metrics(store)] == [1, 2, 3, 4]


def _full(store: LocalStore, name: str, path: Path) -> None:
    raise OSError(28, "No space left on device")


def test_metrics_of_older_runs_are_read_under_their_present_names(tmp_path: Path) -> None:
    old = {"step": 2, "loss": 1.0, "held_out_loss": 1.5, "held_out_losses": {"edges": 1.5}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(old) + "\n")
    logger = MetricsLogger(open_store(tmp_path), 2)
    logger.append({"step": 3, "validation_loss": 1.25})
    assert read_metrics(open_store(tmp_path)) == [
        {"step": 2, "loss": 1.0, "validation_loss": 1.5, "validation_losses": {"edges": 1.5}},
        {"step": 3, "validation_loss": 1.25},
    ]
    assert (tmp_path / "metrics.jsonl").read_text().startswith(json.dumps(old) + "\n"), "lines stay as they are"


def test_tensorboard_scalars_have_a_name_for_each_task() -> None:
    record = {"step": 2, "loss": 1.0, "losses": {"edges": 1.5}, "validation_losses": {"views": 2.0}}
    assert scalars(record) == {"loss": 1.0, "loss/edges": 1.5, "validation_loss/views": 2.0}
