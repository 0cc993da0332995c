"""Checkpoints of several processes: each writes and reads its own part, whatever their number; gloo joins them."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from free_ports import free_ports

from labeling.dataset import LocalStore, open_store
from model.inputs.yaml_files import parse_yaml
from training.checkpoint import load_checkpoint, load_training
from training.checkpoint import shards as shards_module
from training.checkpoint.saving import CheckpointSaver
from training.checkpoint.state import TrainingState
from training.config import CheckpointConfig, TrainingConfig, override_config, parse_config
from training.packed_model import build_model
from training.parallel import distribute
from training.updates import Updates

pytestmark = [pytest.mark.slow, pytest.mark.long]
OLD = Path(__file__).parents[1] / "compatibility" / "run"


class Report(NamedTuple):
    """Of a process: bytes of its tensors, of the shards it wrote, and that it read; whether its numbers are right."""

    own: int
    written: int
    read: int
    right: bool


def config(**workers: Any) -> TrainingConfig:
    return TrainingConfig(
        name="sharded",
        steps=4,
        batch=8,
        size=64,
        mixture={"a": {"dataset": "none", "tasks": ["text2image"]}},
        model={"hidden_size": 96, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "caption_channels": 16},
        workers=workers,
    )


def work(rank: int, count: int, port: int, local: int, settings: TrainingConfig, run: str, step: int) -> Report:
    """A process that steps with made-up gradients and saves steps 1 and 2, or restores a step and looks at it."""
    torch.set_num_threads(1)
    shards_module.BLOCK_BYTES = 4096  # so that small files have many
    if count > 1:
        torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    read, read_range = [0], LocalStore.read_range

    def counted(store: LocalStore, name: str, offset: int, size: int) -> bytes:
        read[0] += size
        return read_range(store, name, offset, size)

    LocalStore.read_range = counted  # type: ignore[method-assign]
    store = open_store(run)
    model = distribute(build_model(settings), settings.workers, torch.device("cpu"), local)
    updates = Updates(model, settings, torch.device("cpu"), count)
    state = TrainingState(model, updates.optimizer, updates.average)
    saver = CheckpointSaver(store, state.tensors, CheckpointConfig(keep=2))
    right = True
    if not step:
        for step in (1, 2):
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, (number % 7 - 3) * step / 10)
            saver.await_copies()
            updates.optimizer.step()
            updates.average.update(step)
            saver.save({"step": step, "transformer": dict(build_model(settings).transformer.config)})
        saver.wait()
    else:
        state.restore(store, step, saver.group)
        LocalStore.read_range = read_range  # type: ignore[method-assign]
        expected = load_training(store, step)
        own = state.tensors()
        whole = {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in own.items()}
        right = whole.keys() == expected.keys() and all(
            torch.equal(value, expected[name]) for name, value in whole.items()
        )
    shards = [value.to_local() if hasattr(value, "to_local") else value for value in state.tensors().values()]
    folder = Path(run, "checkpoints", "step-000002")
    written = sum(path.stat().st_size for path in folder.glob(f"shard-{rank:05d}-of-{count:05d}.*"))
    if count > 1:
        torch.distributed.destroy_process_group()
    return Report(sum(shard.nbytes for shard in shards), written, read[0], right)


def processes(count: int, run: Path, step: int, local: int, settings: TrainingConfig) -> list[Report]:
    """What that many processes report, `local` of which take themselves for one node; step: to restore, 0 saves."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "model.transformer", "training.checkpoint.saving"])
    (port,) = free_ports(1)
    with context.Pool(count) as pool:
        arguments = [(rank, count, port, local, settings, str(run), step) for rank in range(count)]
        return pool.starmap_async(work, arguments, chunksize=1).get(timeout=300)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that two processes with FSDP2 have written."""
    run = tmp_path_factory.mktemp("sharded")
    reports = processes(2, run, 0, 2, config(fsdp=True))
    for report in reports:
        assert report.written == pytest.approx(report.own, rel=0.1), "each writes its shard, averages included"
    whole = sum(value.nbytes for value in tensors(run).values())
    assert sum(report.own for report in reports) == pytest.approx(whole, rel=1e-3)  # numbers of steps are in both
    return run


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_training(open_store(run), 2)


@pytest.mark.parametrize(
    ("count", "local", "workers", "share"),
    [(1, 1, {}, 1), (2, 2, {}, 1), (4, 4, {"fsdp": True}, 1 / 4), (4, 2, {"fsdp": True, "shard": "node"}, 1 / 2)],
)
def test_any_number_of_processes_reads_its_part(
    saved: Path, count: int, local: int, workers: dict[str, Any], share: float
) -> None:
    whole = sum(value.nbytes for value in tensors(saved).values())
    for report in processes(count, saved, 2, local, config(**workers)):
        assert report.right
        assert report.own == pytest.approx(share * whole, rel=0.1)
        assert report.own <= report.read < 1.5 * report.own


@pytest.mark.parametrize(("local", "workers"), [(2, {}), (1, {"fsdp": True, "shard": "node"})])
def test_copies_of_a_tensor_are_written_once(saved: Path, tmp_path: Path, local: int, workers: dict[str, Any]) -> None:
    """DDP and copies of shards: the processes divide the work, and write what FSDP2 over all of them does."""
    reports = processes(2, tmp_path, 0, local, config(**workers))
    whole = tensors(tmp_path)
    assert sum(report.written for report in reports) == pytest.approx(sum(v.nbytes for v in whole.values()), rel=0.1)
    assert all(report.written > 0.3 * report.own for report in reports)
    for name, value in tensors(saved).items():
        torch.testing.assert_close(whole[name], value, rtol=1e-6, atol=1e-7)
    index = json.loads((tmp_path / "checkpoints" / "step-000002" / "index.json").read_text())
    assert [len(entry["chunks"]) for entry in index["tensors"].values()] == [1] * len(whole)


def test_transformer_is_assembled_from_shards(saved: Path) -> None:
    expected = tensors(saved)
    for weights, prefix in (("averaged", "average."), ("live", "model.")):
        transformer, _ = load_checkpoint(saved, weights)  # type: ignore[arg-type]
        for name, value in transformer.state_dict().items():
            assert torch.equal(value, expected[prefix + name])
    assert not torch.equal(expected["average.x_embedder.weight"], expected["model.x_embedder.weight"])


def test_checkpoint_that_one_process_wrote_whole_is_continued_by_two(tmp_path: Path) -> None:
    """As all checkpoints were before they had shards."""
    shutil.copytree(OLD, tmp_path / "run")
    values = parse_yaml((OLD / "config.yaml").read_text(), "config")
    settings = parse_config(override_config(values, {"workers": {"fsdp": True}}), "config")
    old = load_training(open_store(tmp_path / "run"), 3)
    assert {name.partition(".")[0] for name in old} == {"model", "average", "optimizer"}
    for report in processes(2, tmp_path / "run", 3, 2, settings):
        assert report.right
