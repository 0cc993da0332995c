"""What a run would cost, printed: a table for people, JSON for machines."""

from __future__ import annotations

import json
from dataclasses import asdict

from training.config import TrainingConfig
from training.cost import ClusterSpec, Cost

_GIB = 2**30


def print_cost(config: TrainingConfig, cluster: ClusterSpec, cost: Cost, as_json: bool) -> None:
    """Print a run's cost and, below it, what stands in the way."""
    if as_json:
        print(
            json.dumps({"cluster": asdict(cluster), **asdict(cost), "advice": advice(config, cluster, cost)}, indent=1)
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{config.name} on {cluster.gpus} × {cluster.device}, by arithmetic", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("weights", f"{cost.parameters / 1e9:.2f} billion")
    if cost.trained < cost.parameters:
        table.add_row("weights of the adapter", f"{cost.trained / 1e6:.1f} million")
    for part, size in cost.memory.items():
        table.add_row(f"memory: {part}", f"{size / _GIB:.1f} GiB")
    total = sum(cost.memory.values())
    table.add_row("memory of a GPU", f"{total / _GIB:.1f} of {cluster.memory_gb:g} GiB", end_section=True)
    table.add_row("image tokens of a step", f"{cost.tokens:,.0f}, {cost.tokens / cluster.gpus:,.0f} a GPU")
    table.add_row("FLOP of a step", f"{cost.flops:.2e}")
    table.add_row("bytes that a GPU sends in a step", f"{cost.sent / 1e9:.1f} GB")
    table.add_row(
        "bytes that a GPU's worker reads for a step",
        f"{cost.read / 1e6:.1f} MB, {cost.read / cost.step / 1e6:.0f} MB/s",
    )
    table.add_row("seconds of computing", f"{cost.compute:.3f}")
    if cost.encode:
        table.add_row("of which for pictures and prompts that are not stored", f"{cost.encode:.3f}")
    table.add_row("seconds of communication", f"{cost.communication:.3f}")
    table.add_row("seconds of a step", f"{cost.step:.3f}")
    table.add_row("model FLOP utilization", f"{cost.mfu:.0%}", end_section=True)
    table.add_row(
        "checkpoint, written beside the steps",
        f"{_short(cost.checkpoint_bytes / 1e9)} GB in {_short(cost.checkpoint)} s",
    )
    table.add_row("memory of a node for its copies", f"{_short(cost.checkpoint_host_bytes / _GIB)} GiB")
    table.add_row("seconds that steps wait for one", f"{cost.checkpoint_stall:.2f}", end_section=True)
    table.add_row("the whole run", f"{_short(cost.hours)} hours, {_short(cost.hours * cluster.gpus)} GPU hours")
    if cost.dollars is not None:
        table.add_row("price", f"{_short(cost.dollars)} dollars")
    console = Console()
    console.print(table)
    for line in advice(config, cluster, cost):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _short(value: float) -> str:
    """A whole number, or two digits of a smaller one."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def advice(config: TrainingConfig, cluster: ClusterSpec, cost: Cost) -> list[str]:
    """What stands in the way of the run, and what to change; nothing where all is well."""
    lines = []
    total = sum(cost.memory.values()) / _GIB
    if total > 0.9 * cluster.memory_gb:
        remedies = []
        if cluster.sharding != "all" and cluster.gpus > 1:
            remedies.append("shard over all GPUs (--shard all)")
        if not config.workers.gradient_checkpointing:
            remedies.append("set workers.gradient_checkpointing=true")
        if config.initialize and not config.lora:
            remedies.append("train an adapter (--set lora.rank=16)")
        remedies.append("lower workers.pack_tokens")
        lines.append(f"Memory: {total:.0f} GiB are close to or above what a GPU has; {', or '.join(remedies)}.")
    if cost.communication > cost.compute:
        each, full = cost.tokens / cluster.gpus, cluster.gpus * config.workers.pack_tokens
        remedies = [] if cluster.sharding == "node" else ["shard within nodes (--shard node)"]
        remedies.append(
            f"raise `batch` (now {config.batch}), so that a GPU has more than {each:,.0f} tokens a step "
            f"(--set step_tokens={full} fills a pass of each)"
        )
        lines.append(f"Communication takes longer than computing; {', or '.join(remedies)}.")
    of_node = min(cluster.per_node, cluster.gpus) * cost.read / cost.step / 1e9
    if of_node > cluster.store_gbytes:
        lines.append(
            f"Reading: the workers of a node read {of_node:.1f} GB/s, above the {cluster.store_gbytes:g} GB/s of "
            "--store-gbytes; keep the datasets on a faster store."
        )
    if config.checkpoints.every * cost.step < cost.checkpoint:
        lines.append(
            f"Checkpoints: one takes as long as {cost.checkpoint / cost.step:.0f} steps, and there is one every "
            f"{config.checkpoints.every}, so steps wait; raise checkpoints.every, or write to a faster store."
        )
    return lines
