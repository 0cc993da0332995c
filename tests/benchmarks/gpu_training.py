"""Sections of `make bench-gpu` about the transformer: attention, training steps, graphs, FSDP2, checkpoints, LoRA."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_common import (
    Setting,
    build,
    by_groups,
    gigabytes,
    inputs_of,
    relative_norm,
    require,
    samples_of,
    sizes_of,
    synchronize,
    timed,
)
from torch import Tensor, nn

from training.batch import StepBatch
from training.flops import FlopCounter, peak_flops
from training.lora import LoraConfig, add_adapter
from training.objective import flow_matching_loss
from training.optimizer import trained
from training.packed_model import PackedModel
from training.parallel import distribute
from training.updates import Updates

Figures = dict[str, Any]


def attention(setting: Setting) -> Figures:
    """The one kernel beside dense attention by groups: errors in bf16 against dense fp32, of outputs and gradients."""
    figures: Figures = {}
    pack = inputs_of(samples_of(setting, 1, setting.tokens // 2), setting.device)
    bf16 = {"device_type": setting.device, "dtype": torch.bfloat16}

    def run(model: nn.Module, dense: bool, half: bool) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        with by_groups(dense), torch.autocast(**bf16, enabled=half):
            outputs = model.forward_packed(*pack)
        torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return torch.cat([output.flatten() for output in outputs]).detach(), gradient

    for cap in (True, False):
        model = build(setting, 2, soft_capping=cap)
        reference = run(model, dense=True, half=False)
        for name, dense in (("dense", True), ("flex", False)):
            if not setting.cuda and not dense:
                continue
            found = run(model, dense, half=True)
            for what, one, other in zip(("output", "gradient"), found, reference, strict=True):
                figures[f"{name}_bf16_{what}_error{'_capped' * cap}"] = relative_norm(one, other)
        if setting.cuda:
            with torch.no_grad(), by_groups(False):
                exact = torch.cat([output.flatten() for output in model.forward_packed(*pack)])
            figures[f"flex_fp32_output_error{'_capped' * cap}"] = relative_norm(exact, reference[0])
        figures.update(_uniform(setting, model, cap))
    for what in ("output", "gradient"):
        for cap in ("", "_capped") if setting.cuda else ():
            dense, flex = (figures[f"{name}_bf16_{what}_error{cap}"] for name in ("dense", "flex"))
            require(flex < 1.5 * dense, f"the error of {what}s{cap} is more than that of dense attention", figures)
    return figures


def _uniform(setting: Setting, model: nn.Module, cap: bool) -> Figures:
    """A batch of one shape with padded texts, as sampling calls the model."""
    if not setting.cuda:
        return {}
    torch.manual_seed(2)
    x, t = torch.randn(2, 2, 16, 32, 36, device="cuda"), torch.tensor([500.0, 20.0], device="cuda")
    text = torch.randn(2, 120, setting.config["caption_channels"], device="cuda")
    mask = torch.arange(120, device="cuda").expand(2, 120) < torch.tensor([[120], [7]], device="cuda")
    found = []
    for dense in (True, False):
        with torch.no_grad(), by_groups(dense), torch.autocast("cuda", torch.bfloat16, enabled=not dense):
            found.append(model(x, t, text, mask))
    return {f"flex_bf16_uniform_error{'_capped' * cap}": relative_norm(found[1], found[0])}


class Trainer:
    """Steps as a worker of a run does them: bf16 under autocast, float32 weights, AdamW fused, averages."""

    def __init__(self, setting: Setting, model: nn.Module) -> None:
        """model: on its device, and distributed where it is to be."""
        self.model, self.step = model, 0
        self.updates = Updates(model, setting.training, torch.device(setting.device), 1, setting.autocast)

    def __call__(self, samples: list[Any]) -> None:
        """One update."""
        self.updates.update(StepBatch(self.step, [samples], sum(len(sample.sigmas) for sample in samples)))
        self.step += 1


def steps(setting: Setting) -> Figures:
    """Steps of the published size on mixed packs: blocks uncompiled, then compiled."""
    figures: Figures = {}
    model = build(setting)
    model.enable_gradient_checkpointing()
    figures["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    trainer = Trainer(setting, PackedModel(model))
    for name in ("eager", "compiled") if setting.cuda else ("eager",):
        if name == "compiled":
            model.compile_blocks()
        figures |= {f"{name}_{key}": value for key, value in measure_steps(setting, trainer, model).items()}
    if setting.cuda:
        figures |= _spent(lambda: trainer(samples_of(setting, 20)))
    return figures


def _spent(work: Callable[[], Any]) -> Figures:
    """Milliseconds on the GPU by kind of kernel, and the costliest that are neither products nor attention."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    kinds = {"flex_attention": "attention", "nvjet": "products", "gemm": "products", "multi_tensor": "optimizer"}
    found: Figures = {f"{kind}_ms": 0.0 for kind in (*kinds.values(), "other")}
    others: dict[str, float] = {}
    for event in profile.key_averages():
        milliseconds = event.self_device_time_total / 1000
        kind = next((kind for part, kind in kinds.items() if part in event.key), "other")
        found[f"{kind}_ms"] += milliseconds
        if kind == "other":
            others[event.key[:110]] = round(milliseconds, 2)
    return found | {"costliest_others_ms": dict(sorted(others.items(), key=lambda one: -one[1])[:12])}


def measure_steps(setting: Setting, trainer: Trainer, model: Any, rounds: int = 5) -> Figures:
    """Median step over packs that all differ, and what follows from it."""
    first, _ = timed(setting, lambda: trainer(samples_of(setting, 10)))
    timed(setting, lambda: trainer(samples_of(setting, 11)))
    if setting.cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds, tokens, flops, hardware = [], 0, 0.0, 0.0
    for seed in range(12, 12 + rounds):
        samples = samples_of(setting, seed)
        seconds.append(timed(setting, lambda samples=samples: trainer(samples))[0])
        tokens += sum(sample.tokens for sample in samples)
        flops += FlopCounter(model).step(sizes_of(samples))
        hardware += FlopCounter(model).step(sizes_of(samples), recomputed=True)
    total = sum(seconds)
    figures: Figures = {
        "first_step_seconds": first,
        "step_seconds": float(np.median(seconds)),
        "tokens_per_step": tokens / rounds,
        "tokens_per_second": tokens / total,
        "tflops_per_second": flops / total / 1e12,
    }
    if setting.cuda:
        peak = peak_flops(torch.cuda.get_device_name())
        figures |= {"mfu": flops / total / peak, "mfu_with_recomputation": hardware / total / peak} if peak else {}
        figures["peak_gigabytes"] = gigabytes(torch.cuda.max_memory_allocated())
    return figures


def graphs(setting: Setting) -> Figures:
    """Graphs that 60 packs compile to, training and validating in turn, and the kernels that attention runs in."""
    if not setting.cuda:
        return {"skipped": "compiled blocks need a CUDA GPU; tests/model/test_packs.py counts graphs on a CPU"}
    from torch._dynamo.utils import clear_compilation_metrics, counters, get_compilation_metrics

    torch._dynamo.reset()
    counters.clear()
    clear_compilation_metrics()
    model = build(setting, 2)
    model.enable_gradient_checkpointing()
    model.compile_blocks()
    trainer = Trainer(setting, PackedModel(model))

    def validate(seed: int) -> None:
        with torch.no_grad(), setting.autocast():
            flow_matching_loss(trainer.model, samples_of(setting, seed, 1024 * (1 + seed % 9)), "cuda")

    def run() -> None:
        for seed in range(100, 160):
            if seed % 2:
                validate(seed)
            else:
                trainer(samples_of(setting, seed, 1024 * (1 + seed % 9)))

    seconds, _ = timed(setting, run)
    figures: Figures = {"packs": 60, "seconds": seconds, "graphs": counters["stats"]["unique_graphs"]}
    figures["recompiled_because"] = [one.recompile_reason for one in get_compilation_metrics() if one.recompile_reason]
    figures["graph_breaks"] = sum(counters["graph_break"].values())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        trainer(samples_of(setting, 200))
        torch.cuda.synchronize()
    names = {event.key for event in profile.key_averages()}
    figures["flex_kernels"] = sorted(name for name in names if "flex_attention" in name)
    figures["dense_kernels"] = sorted(n for n in names if "softmax" in n.lower() or "fmha" in n or "flash_fwd" in n)
    figures["step_gigabytes"] = gigabytes(torch.cuda.max_memory_allocated() - before)
    figures["all_logits_gigabytes"] = gigabytes(2 * 32 * setting.tokens**2)  # of one block in bf16, were it dense
    require(figures["graphs"] <= 4, "more than 4 graphs", figures)
    require(figures["flex_kernels"] and not figures["dense_kernels"], "attention was dense", figures)
    return figures


@contextmanager
def _one_rank(setting: Setting) -> Iterator[None]:
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder, "store")), 1)
        dist.init_process_group("nccl" if setting.cuda else "gloo", store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def fsdp(setting: Setting) -> Figures:
    """FSDP2 on one rank, as a run has it: bf16 parameters, float32 gradients reduced, inputs left as they are."""
    figures: Figures = {}
    model = build(setting)
    model.enable_gradient_checkpointing()
    first = samples_of(setting, 10)
    with torch.no_grad():
        plain = _loss(setting, PackedModel(model), first)
    del model
    with _one_rank(setting):
        shared = build(setting)
        shared.enable_gradient_checkpointing()
        packed = distribute(PackedModel(shared), setting.training.workers, torch.device(setting.device), 1)
        trainer = Trainer(setting, packed)  # before weights are gathered: its averages are of shards
        with torch.no_grad():
            loss = _loss(setting, packed, first)
        figures |= {"plain_loss": plain, "loss": loss, "relative_difference": abs(loss / plain - 1)}
        if setting.cuda:
            shared.compile_blocks()
        figures |= measure_steps(setting, trainer, shared)
        del shared, packed, trainer
    require(figures["relative_difference"] < 0.01, "losses differ", figures)
    return figures


def _loss(setting: Setting, model: nn.Module, samples: list[Any]) -> float:
    with setting.autocast():
        return float(flow_matching_loss(model, samples, setting.device)[0])


def checkpoints(setting: Setting) -> Figures:
    """Saving and loading: torch.distributed.checkpoint with AdamW's state, and safetensors of the weights."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    from model import NextDiT

    figures: Figures = {}
    model = build(setting, 2)
    trainer = Trainer(setting, PackedModel(model))
    trainer(samples_of(setting, 1, 2048))
    with _one_rank(setting), tempfile.TemporaryDirectory() as folder:
        weights, optimizer = get_state_dict(trainer.model, trainer.updates.optimizer)
        state = {"model": weights, "optimizer": optimizer}
        size = gigabytes(sum(p.numel() for p in model.parameters()) * 12)
        figures["gigabytes"] = size
        figures["save_seconds"], _ = timed(setting, lambda: dcp.save(state, checkpoint_id=f"{folder}/whole"))
        figures["load_seconds"], _ = timed(setting, lambda: dcp.load(state, checkpoint_id=f"{folder}/whole"))
        figures |= _saved_aside(setting, trainer, folder)
        figures["safetensors_gigabytes"] = size / 3
        figures["safetensors_save_seconds"], _ = timed(setting, lambda: model.save_pretrained(f"{folder}/plain"))
        seconds, again = timed(
            setting, lambda: NextDiT.from_pretrained(f"{folder}/plain", use_safetensors=True).to(setting.device)
        )
        figures["safetensors_load_seconds"] = seconds
        same = zip(again.parameters(), model.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in same), "loaded weights differ from those saved"
    return figures


def _saved_aside(setting: Setting, trainer: Trainer, folder: str) -> Figures:
    """As a training saves: how long steps can be held up, and how long all takes; at first memory is pinned."""
    from labeling.dataset import open_store
    from training.checkpoint.saving import CheckpointSaver
    from training.checkpoint.state import TrainingState
    from training.config import CheckpointConfig

    state = TrainingState(trainer.model, trainer.updates.optimizer, trainer.updates.average)
    saver = CheckpointSaver(open_store(folder), state.tensors, CheckpointConfig(keep=1))

    def copy(step: int) -> None:
        saver.save({"step": step})
        saver.await_copies()

    figures: Figures = {}
    for step, name in enumerate(("first_saver", "saver"), 1):
        figures[f"{name}_copy_seconds"], _ = timed(setting, lambda step=step: copy(step))
        figures[f"{name}_write_seconds"], _ = timed(setting, saver.wait)
    figures["saver_gigabytes"] = gigabytes(sum(value.nbytes for value in state.tensors().values()))
    figures["saver_load_seconds"], _ = timed(setting, lambda: state.restore(open_store(folder), 2, saver.group))
    return figures


def lora(setting: Setting) -> Figures:
    """Steps of an adapter of rank 16 on frozen bf16 weights."""
    figures: Figures = {}
    model = build(setting, 4)
    add_adapter(model, LoraConfig(), half=setting.cuda)
    model.enable_gradient_checkpointing()
    if setting.cuda:
        model.compile_blocks()
    trainer = Trainer(setting, PackedModel(model))
    parameters = trained(model)
    figures["trained_parameters"] = sum(parameter.numel() for parameter in parameters)
    seconds = [timed(setting, lambda seed=seed: trainer(samples_of(setting, seed)))[0] for seed in range(6)]
    figures["first_step_seconds"], figures["step_seconds"] = seconds[0], float(np.median(seconds[2:]))
    synchronize(setting)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in parameters)
    return figures
