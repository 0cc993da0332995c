"""Checkpoints of a run: their files (checkpoint.files), and what training continues from (checkpoint.state)."""

from __future__ import annotations

from training.checkpoint.files import (
    FOLDER,
    STATE,
    checkpoint_name,
    live_weights,
    load_checkpoint,
    load_state,
    load_training,
    save_checkpoint,
    whole_checkpoints,
)

__all__ = [
    "FOLDER",
    "STATE",
    "checkpoint_name",
    "live_weights",
    "load_checkpoint",
    "load_state",
    "load_training",
    "save_checkpoint",
    "whole_checkpoints",
]
