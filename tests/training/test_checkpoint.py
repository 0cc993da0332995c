"""Checkpoints: whole or not there, the newest kept, safetensors only; the average and the schedule."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from labeling.dataset import LocalStore, Store, open_store
from model import NextDiT
from model.inputs import InputError
from training.checkpoint import (
    STATE,
    check_checkpoint,
    checkpoint_name,
    find_step,
    load_checkpoint,
    load_state,
    load_training,
    whole_checkpoints,
)
from training.checkpoint.files import prune_checkpoints
from training.checkpoint.saving import CheckpointSaver, save_tensors
from training.checkpoint.state import TrainingState
from training.config import CheckpointConfig, OptimizerConfig, load_config
from training.divergence import unusable_checkpoint
from training.metrics_logger import MetricsLogger, read_metrics, scalars
from training.optimizer import MovingAverage, build_optimizer, learning_rate


@pytest.fixture
def transformer() -> NextDiT:
    torch.manual_seed(0)
    return NextDiT(hidden_size=24, depth=1, num_heads=2, multiple_of=8, caption_channels=8)


def weights_of(transformer: NextDiT) -> dict[str, torch.Tensor]:
    """As a run names them: averages, and live weights that differ from them."""
    state = transformer.state_dict()
    return {f"average.{name}": value for name, value in state.items()} | {
        f"model.{name}": value + 1 for name, value in state.items()
    }


def save(store: Store, transformer: NextDiT, step: int, **retention: Any) -> str:
    state = {"step": step, "codec": "dct", "transformer": dict(transformer.config)}
    return save_tensors(store, weights_of(transformer), state, CheckpointConfig(**retention))


@pytest.mark.parametrize("keep", [1, 3, 20])
def test_save_keeps_the_newest_checkpoints_and_the_first(tmp_path: Path, keep: int) -> None:
    store = open_store(tmp_path / "run")
    for step in range(0, 16, 2):
        save_tensors(store, {"a": torch.full((2,), float(step))}, {"step": step}, CheckpointConfig(keep=keep))
    assert whole_checkpoints(store) == [0, *list(range(2, 16, 2))[-keep:]]
    assert len(store.folders("checkpoints")) == len(whole_checkpoints(store))
    assert load_training(store, 14)["a"].tolist() == [14.0, 14.0]
    assert load_state(store, 14)["step"] == 14


def test_what_a_killed_process_left_of_older_checkpoints_goes_with_the_next(tmp_path: Path) -> None:
    """It was killed while it wrote that of step 2, and while it removed that of step 1."""
    store = open_store(tmp_path / "run")
    for name in ("step-000001/index.json", "step-000002/.shard-00000-of-00001.safetensors.tmp", "step-000009/x"):
        (tmp_path / "run" / "checkpoints" / name).parent.mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / name).write_bytes(b"half")
    save_tensors(store, {"a": torch.zeros(1)}, {"step": 3}, CheckpointConfig())
    assert store.folders("checkpoints") == ["step-000003", "step-000009"], "a later one is written again"


def test_checkpoints_of_some_age_stay(tmp_path: Path) -> None:
    store = open_store(tmp_path / "run")
    for step in range(1, 13):  # one every 20 minutes
        save_tensors(store, {"a": torch.zeros(1)}, {"step": step}, CheckpointConfig(keep=20))
        saved = (datetime(2026, 1, 1, tzinfo=UTC) + step * timedelta(minutes=20)).isoformat()
        store.put(f"{checkpoint_name(step)}/{STATE}", json.dumps({"step": step, "saved": saved}).encode())
    for step in (12, 12):  # what has stayed stays
        prune_checkpoints(store, step, keep=2, keep_hours=1)
        assert whole_checkpoints(store) == [1, 4, 7, 10, 11, 12]
    prune_checkpoints(store, 12, keep=2, keep_hours=0)
    assert whole_checkpoints(store) == [11, 12]


def test_load_accepts_run_checkpoint_and_diffusers_folder(tmp_path: Path, transformer: NextDiT) -> None:
    store = open_store(tmp_path / "run")
    address = save(store, transformer, 3)
    transformer.save_pretrained(tmp_path / "released" / "transformer", max_shard_size="20KB")
    for place, step in ((tmp_path / "run", 3), (address, 3), (tmp_path / "released", None)):
        loaded, state = load_checkpoint(place)
        assert state.get("step") == step
        assert not loaded.training
        for name, value in transformer.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)
    live, _ = load_checkpoint(tmp_path / "run", "live", torch.bfloat16)
    for name, value in transformer.state_dict().items():
        assert torch.equal(live.state_dict()[name], (value + 1).bfloat16())
    with pytest.raises(InputError, match="it has no live weights"):
        load_checkpoint(tmp_path / "released", "live")
    files = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert files == {".json", ".safetensors"}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shards_are_read_by_the_reader_of_torch(tmp_path: Path, transformer: NextDiT) -> None:
    address = save(open_store(tmp_path), transformer, 3)
    expected = weights_of(transformer)
    found = {name: torch.empty_like(value) for name, value in expected.items()}
    dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(address), no_dist=True)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_incomplete_checkpoint_is_skipped_and_refused(tmp_path: Path, transformer: NextDiT) -> None:
    store = open_store(tmp_path / "run")
    save(store, transformer, 1)
    address = save(store, transformer, 2)
    store.delete("checkpoints/step-000002/state.json")
    assert whole_checkpoints(store) == [1]
    assert load_checkpoint(tmp_path / "run")[1]["step"] == 1
    with pytest.raises(InputError, match="is not whole"):
        load_checkpoint(address)
    with pytest.raises(InputError, match="no checkpoint there"):
        load_checkpoint(tmp_path / "elsewhere")


SHARD = "shard-00000-of-00001.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], object], str, bool]] = {  # how, what is said of it, whether by sizes alone
    "missing shard": (lambda folder: (folder / SHARD).unlink(), f"{SHARD} is not there", True),
    "cut shard": (lambda folder: os.truncate(folder / SHARD, 5000), rf"{SHARD} has 5000 bytes, not \d+", True),
    "other bytes": (lambda folder: flip(folder / SHARD, -100), f"{SHARD} holds other bytes than were written", False),
    "cut index": (lambda folder: os.truncate(folder / "index.json", 100), "index.json is not what was written", True),
    "missing index": (lambda folder: (folder / "index.json").unlink(), "index.json is not there", True),
    "cut state": (lambda folder: os.truncate(folder / "state.json", 10), "state.json is not what was written", True),
}


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_with_the_checkpoint_before_it(tmp_path: Path, transformer: NextDiT, name: str) -> None:
    damage, said, is_seen = DAMAGES[name]
    store = open_store(tmp_path)
    for step in (4, 8):
        save(store, transformer, step)
    damage(tmp_path / "checkpoints" / "step-000008")
    remedy = "to go on from the one before it: `train` with --from-checkpoint step-000004"
    line = f"^{tmp_path}/checkpoints/step-000008: this checkpoint is damaged, {said}.*; {remedy}$"
    for attempt in (
        lambda: load_checkpoint(tmp_path),
        lambda: load_training(store, 8) if "state" not in name else load_state(store, 8),
        lambda: check_checkpoint(store, 8, content=True),
    ):
        with pytest.raises(InputError, match=line):
            attempt()
    if is_seen:
        with pytest.raises(InputError, match=line):
            check_checkpoint(store, 8)
    check_checkpoint(store, 4, content=True)
    assert find_step(store, "4") == find_step(store, "step-000004") == find_step(store, f"{tmp_path}/step-000004/") == 4
    with pytest.raises(InputError, match=r"no whole checkpoint 'step-5'.*there are: step-000004, step-000008"):
        find_step(store, "step-5")


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is what the tensors were; the next save waits, and events come when a checkpoint is whole."""
    opened, put_stream = threading.Event(), LocalStore.put_stream

    def slow(store: LocalStore, name: str, parts: Iterable[bytes | memoryview], size: int) -> None:
        assert opened.wait(20)
        put_stream(store, name, parts, size)

    monkeypatch.setattr(LocalStore, "put_stream", slow)
    store, tensors = open_store(tmp_path), {"a": torch.zeros(1000)}
    synced: list[list[int]] = []
    saver = CheckpointSaver(store, lambda: tensors, CheckpointConfig(), lambda: synced.append(whole_checkpoints(store)))
    saver.save({"step": 1})
    saver.await_copies()
    tensors["a"].fill_(1)
    assert saver.saved() == [] and whole_checkpoints(store) == []
    threading.Timer(0.2, opened.set).start()
    saver.save({"step": 2})
    assert whole_checkpoints(store)[0] == 1
    saver.wait()
    assert saver.saved() == [(step, f"{tmp_path}/checkpoints/step-00000{step}") for step in (1, 2)]
    assert [load_training(store, step)["a"][0].item() for step in (1, 2)] == [0, 1]
    assert synced == [[], [1]], "metrics are there before a checkpoint that needs them"


def test_full_disk_is_one_line_and_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, tensors = open_store(tmp_path), {"a": torch.zeros(1000)}
    saver = CheckpointSaver(store, lambda: tensors, CheckpointConfig(keep=1))
    saver.save({"step": 1})
    saver.wait()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        saver.save({"step": 2})
        with pytest.raises(
            InputError, match=rf"^{tmp_path}/checkpoints/step-000002/\S+: cannot write there \(No space"
        ):
            saver.wait()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    check_checkpoint(store, 1, content=True)


KILLED = """
import os, signal, sys
import torch
from labeling.dataset.storage import LocalStore, S3Store, open_store
from training.checkpoint.saving import save_tensors
from training.config import CheckpointConfig
writes = killed_at = 0
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def counted(method):
    def call(store, *arguments):
        global writes
        writes += 1
        if writes < killed_at:
            return method(store, *arguments)
        if method.__name__ == "put_stream":  # in its midst
            name, parts, size = arguments
            first = next(iter(parts))
            return method(store, name, (first if part == 0 else die() for part in range(2)), size)
        die()
    return call
for kind in (LocalStore, S3Store):
    for name in ("put_stream", "put", "delete", "delete_tree"):
        setattr(kind, name, counted(getattr(kind, name)))
for run in sys.argv[1:]:
    killed_at = int(run.rpartition("/")[2])
    child = os.fork()
    if not child:
        tensors = {"a": torch.arange(1000.0), "b": torch.ones(3, 4)}
        save_tensors(open_store(run), tensors, {"step": 4}, CheckpointConfig(keep=1))
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""


@pytest.mark.slow
def test_kill_at_any_write_leaves_one_whole_checkpoint(tmp_path: Path, s3: str) -> None:
    """On disk and S3. It is that of step 2, or 4 from its last file on; another attempt writes what one alone does."""
    tensors = {"a": torch.arange(1000.0), "b": torch.ones(3, 4)}

    def save_step(store: Store, step: int) -> None:
        save_tensors(store, tensors, {"step": step}, CheckpointConfig(keep=1))

    def written(store: Store) -> dict[str, bytes]:
        names = [name for name in store.walk("checkpoints") if not name.endswith(STATE)]
        return {name: store.read(f"checkpoints/{name}") for name in names}

    undisturbed = open_store(tmp_path / "undisturbed")
    save_step(undisturbed, 4)
    # Writes are: to delete what was there, the shard, index.json, state.json, then of step 2 to delete its state, all.
    kills = {str(tmp_path): [1, 2, 3, 4, 5, 6], f"{s3}/killed": [2, 4, 5]}
    stores = [open_store(f"{root}/{number}") for root, numbers in kills.items() for number in numbers]
    for store in stores:
        save_step(store, 2)
    command = [sys.executable, "-c", KILLED, *(store.uri for store in stores)]
    statuses = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout.split()
    assert statuses == [str(int(signal.SIGKILL))] * 9
    assert [whole_checkpoints(store) for store in stores] == [*[[2]] * 4, [2, 4], [4], [2], [2], [2, 4]]
    for store in stores:
        check_checkpoint(store, whole_checkpoints(store)[-1], content=True)
        save_step(store, 4)
        assert whole_checkpoints(store) == [4]
        check_checkpoint(store, 4, content=True)
        assert written(store).items() >= written(undisturbed).items()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_single_weight_or_average_that_is_not_finite_is_noticed(transformer: NextDiT, value: float) -> None:
    average = MovingAverage(transformer, 0.9)
    state = TrainingState(transformer, build_optimizer(transformer, OptimizerConfig()), average)
    assert state.is_finite()
    for tensor in (average.average[-1], next(iter(transformer.parameters())).data):
        kept = tensor.view(-1)[-1].clone()
        tensor.view(-1)[-1] = value
        assert not state.is_finite()
        tensor.view(-1)[-1] = kept
    assert state.is_finite()
    assert "`train` with --from-checkpoint step-000002" in unusable_checkpoint("run/step-000004", "step-000002")


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
    from training.packed_model import PackedModel

    transformer.half().save_pretrained(tmp_path / "released" / "transformer")
    model = {"hidden_size": 24, "depth": 1, "num_heads": 2, "num_kv_heads": 2, "multiple_of": 8, "caption_channels": 8}
    model |= {"qk_norm": False}
    settings = {"initialize": str(tmp_path / "released"), "model": model}
    packed = PackedModel(NextDiT(**model))
    average = MovingAverage(packed, 0.9)
    state = TrainingState(packed, build_optimizer(packed, OptimizerConfig()), average)
    state.initialize(load_config("debug", settings))
    for (name, value), averaged in zip(packed.transformer.named_parameters(), average.average, strict=True):
        assert torch.equal(value, transformer.state_dict()[name].float()) and torch.equal(value, averaged)
    with pytest.raises(InputError, match="a model with depth 1, the configuration says 2"):
        state.initialize(load_config("debug", {**settings, "model": {**model, "depth": 2}}))


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
    logger = MetricsLogger(store, 3)
    logger.append({"step": 4})
    logger._file = io.TextIOWrapper(io.FileIO("/dev/full", "a"), write_through=True)
    with pytest.raises(InputError, match=r"metrics.jsonl: cannot write there \(No space left on device\)"):
        logger.append({"step": 5})
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
