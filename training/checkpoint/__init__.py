"""Checkpoints of a run: their folders, what lies where in them, and loading. torch is imported where tensors are.

checkpoint.files: which checkpoints there are; checkpoint.loading: tensors from them; checkpoint.saving: the saver that
works beside training; checkpoint.state: what a run saves and continues from.
"""

from __future__ import annotations

from training.checkpoint.files import (
    FOLDER,
    STATE,
    check_checkpoint,
    checkpoint_name,
    find_step,
    load_state,
    remove_checkpoint,
    whole_checkpoints,
)
from training.checkpoint.loading import load_checkpoint, load_training

__all__ = [
    "FOLDER",
    "STATE",
    "check_checkpoint",
    "checkpoint_name",
    "find_step",
    "load_checkpoint",
    "load_state",
    "load_training",
    "remove_checkpoint",
    "whole_checkpoints",
]
