"""A run with one checkpoint of a tiny random model, learned from latents of a VAE and texts of a T5 encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import save_t5, save_vae

from labeling.dataset import open_store
from model import NextDiT
from training.checkpoint.saving import save_tensors
from training.config import CheckpointConfig


def save_run(folder: Path, live: float = 1.0) -> Path:
    """The folder of the run, below `folder`. live: what its live weights are, times the averaged ones."""
    save_vae(folder / "models" / "vae", scaling_factor=1.5)
    save_t5(folder / "models")
    torch.manual_seed(0)
    transformer = NextDiT(hidden_size=24, depth=1, num_heads=2, multiple_of=8, caption_channels=32)
    for parameter in transformer.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.1)
    facts = {
        "step": 4,
        "codec": str(folder / "models" / "vae"),
        "text_encoder": str(folder / "models"),
        "config": {"size": 64},
        "transformer": dict(transformer.config),
    }
    weights = {f"average.{name}": value for name, value in transformer.state_dict().items()}
    weights |= {f"model.{name}": live * value for name, value in transformer.state_dict().items()}
    save_tensors(open_store(folder / "run"), weights, facts, CheckpointConfig())
    return folder / "run"
