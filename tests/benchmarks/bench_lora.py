"""`make bench-lora`: a LoRA of the demo's model on ten pictures of a toy, by the commands that a person types.

The toy is rendered from ten sides. Measured with the same noise before and after: the loss on the toy's pictures, and
on the demo's, by task. What is shown beside it is how far the loss of the toy fell, and the seconds from the command
to the adapter.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PICTURES, SECONDS, OTHERS = 10, 300, 1.05  # at most: seconds of training; loss of others, times that before
CAPTION = "a picture of the sks toy"
STEPS = 24  # of 16 samples that each loss is measured by


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", default="runs/demo", help="a demo's folder; made where it is not there")
    parser.add_argument("--out", default="runs/bench/lora")
    parser.add_argument("--set", action="append", default=[], help="further --set of the training")
    given = parser.parse_args()
    out, demo = Path(given.out), Path(given.demo)
    if not list(demo.glob("checkpoints/*/state.json")):
        onediffusion("demo", "--out", demo)
    subject = out / "toy"
    if not subject.exists():
        draw_toy(out / "mesh", out / "views", out / "pictures")
        onediffusion("ingest", out / "pictures", subject)
        onediffusion("label", subject, "caption", "text", "latents-96")
    run = out / "run"
    settings = [f"mixture.pictures.dataset={subject}", f"initialize={demo}", *given.set]
    began = time.monotonic()
    onediffusion("train", "finetune-lora-debug", "--run", run, *(part for one in settings for part in ("--set", one)))
    seconds = time.monotonic() - began
    figures = {"seconds": seconds, "cores": os.cpu_count(), **compare(demo, run, subject)}
    worst = max(figures["others"].values(), key=lambda pair: pair[1] / pair[0])
    figures |= {"toy_ratio": figures["toy"][1] / figures["toy"][0], "others_ratio": ratio(figures["all_others"])}
    out.mkdir(parents=True, exist_ok=True)
    Path("runs", "bench", "lora.json").write_text(json.dumps({**figures, "worst_ratio": ratio(worst)}, indent=1) + "\n")
    show(figures)
    sys.exit(seconds > SECONDS or figures["toy_ratio"] >= 1 or figures["others_ratio"] > OTHERS)


def onediffusion(*arguments: str | Path) -> None:
    """Run a command, which succeeds."""
    subprocess.run([sys.executable, "-m", "pipelines", *map(str, arguments)], check=True)


def draw_toy(mesh: Path, views: Path, pictures: Path) -> None:
    """Ten pictures of a toy of colored solids, from all around, each with a caption beside it."""
    import trimesh
    from PIL import Image

    from labeling.dataset import Dataset

    solids = [
        (trimesh.creation.box((0.8, 0.9, 0.5)), (0, 0, 0), (30, 150, 160)),
        (trimesh.creation.icosphere(3, 0.35), (0, 0.75, 0), (240, 130, 30)),
        (trimesh.creation.box((0.18, 0.18, 0.9)), (-0.5, 0.1, 0.2), (200, 40, 60)),
        (trimesh.creation.box((0.18, 0.18, 0.9)), (0.5, 0.1, 0.2), (200, 40, 60)),
        (trimesh.creation.icosphere(2, 0.08), (-0.13, 0.8, 0.32), (20, 20, 20)),
        (trimesh.creation.icosphere(2, 0.08), (0.13, 0.8, 0.32), (20, 20, 20)),
    ]
    for solid, place, color in solids:
        solid.apply_translation(place)
        solid.visual.vertex_colors = (*color, 255)
    mesh.mkdir(parents=True, exist_ok=True)
    trimesh.util.concatenate([solid for solid, _, _ in solids]).export(mesh / "toy.glb")
    onediffusion("views", mesh, views, "--count", str(PICTURES))
    pictures.mkdir(parents=True, exist_ok=True)
    (row,) = Dataset.open(str(views)).rows("images")
    for number, content in enumerate(row["image"]):
        Image.open(io.BytesIO(content)).convert("RGB").save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(CAPTION)


def compare(demo: Path, run: Path, subject: Path) -> dict[str, Any]:
    """Mean losses (before, after): of the toy, of all the demo's samples, and of each of its tasks."""
    from training.checkpoint import load_checkpoint
    from training.config import load_config

    source = {"dataset": str(subject), "tasks": ["text2image"]}
    own = load_config("debug", {"mixture": {"pictures": source, "views": None}})
    sources = {"pictures": {"dataset": str(demo / "dataset")}, "views": {"dataset": str(demo / "views")}}
    others = load_config("debug", {"mixture": sources})
    before, after = (load_checkpoint(address)[0] for address in (demo, run))
    toy = [measure(model, own)[0] for model in (before, after)]
    demos = [measure(model, others) for model in (before, after)]
    by_task = {task: (loss, demos[1][1][task]) for task, loss in demos[0][1].items()}
    return {"toy": toy, "all_others": [demos[0][0], demos[1][0]], "others": by_task}


def measure(model: Any, config: Any) -> tuple[float, dict[str, float]]:
    """(mean loss, by task) of the same samples with the same noise, whatever the model."""
    import torch

    from training.dataloader import read_ahead
    from training.device import DeviceBatches
    from training.plan.mixture import build_manifest
    from training.objective import flow_matching_loss
    from training.packed_model import PackedModel
    from training.reader import PlanReader

    device, packed = torch.device("cpu"), PackedModel(model)
    manifest = build_manifest(config.mixture, config.size, config.lanes)
    encoded = DeviceBatches(config, "dct", "minilm", device).encoded
    sums: dict[str, list[float]] = {}
    with torch.no_grad():
        for batch in read_ahead(PlanReader(manifest, config), 0, 1, range(STEPS)):
            for pack in encoded(batch).packs:
                _, losses = flow_matching_loss(packed, pack, device)
                for sample, loss in zip(pack, losses.tolist(), strict=True):
                    part = sums.setdefault(sample.task, [0.0, 0.0])
                    part[0] += loss
                    part[1] += float(sample.in_loss.sum())
    total, frames = (sum(values) for values in zip(*sums.values(), strict=True))
    return total / frames, {task: loss / count for task, (loss, count) in sums.items()}


def ratio(pair: Any) -> float:
    return float(pair[1] / pair[0])


def show(figures: dict[str, Any]) -> None:
    table = Table(title=f"a LoRA of the demo's model on {PICTURES} pictures: {figures['seconds']:.0f} s")
    for name in ("loss on", "before", "after", "ratio"):
        table.add_column(name, justify="left" if name == "loss on" else "right")
    rows = {"the toy": figures["toy"], "the demo's, all": figures["all_others"], **figures["others"]}
    for name, pair in rows.items():
        table.add_row(name, *(f"{value:.4f}" for value in pair), f"{ratio(pair):.3f}")
    console = Console()
    console.print(table)
    console.print(f"asked for: at most {SECONDS} s, the toy below 1, all others at most {OTHERS}")


if __name__ == "__main__":
    main()
