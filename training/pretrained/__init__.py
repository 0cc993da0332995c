"""Checkpoints that come with the program, each a folder here: state.json and averaged weights in transformer/."""

from __future__ import annotations

from pathlib import Path


def pretrained_names() -> list[str]:
    """The checkpoints that can be named, as in `onediffusion sample small-cpu`."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/state.json"))


def pretrained_folder(name: str) -> Path | None:
    """The folder of the checkpoint that comes with the program under this name; None for any other address.

    A file or folder of that name where the program is started counts before it.
    """
    return Path(__file__).parent / name if name in pretrained_names() and not Path(name).exists() else None
