"""Where a run keeps the pictures that it draws at its checkpoints (`training.fixed_samples`)."""

from __future__ import annotations

from labeling.dataset import Store

FOLDER, INDEX = "samples", "samples.json"


def step_folder(step: int) -> str:
    """The folder of a checkpoint's pictures in the run."""
    return f"{FOLDER}/step-{step:06d}"


def drawn_steps(store: Store) -> list[int]:
    """The steps of which a run has pictures, in order."""
    names = [name for name in store.folders(FOLDER) if name.startswith("step-")]
    steps = sorted(int(name.removeprefix("step-")) for name in names)
    return [step for step in steps if store.exists(f"{step_folder(step)}/{INDEX}")]
