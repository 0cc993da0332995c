"""`onediffusion train`: a run from a configuration, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.session import ray_session
from pipelines.progress import progress
from training.config import TrainingConfig
from training.loop import TrainingResult, run_training


def train(config: TrainingConfig, run: str, say: Callable[[str], None] = print) -> TrainingResult:
    """Train with a bar on screen, saying what is resumed, left out or finished already."""
    with ray_session(), progress("train", config.steps, "steps") as advance:
        seen = 0

        def tell(record: dict[str, Any]) -> None:
            nonlocal seen
            event = record["event"]
            if event == "mixture" and record["empty"]:
                say(f"train: no rows for {', '.join(record['empty'])}; these tasks are left out")
            elif event == "resume":
                say(f"train: continuing from step {record['step']}")
            if event in ("resume", "step"):
                advance(record["step"] - seen)
                seen = record["step"]

        result = run_training(config, run, tell)
        advance(result.step - seen)
    if result.already_finished:
        say(f"train: finished already, at step {result.step}")
    else:
        say(f"train: {result.step - result.resumed_from} steps in {result.seconds:.0f} s → {result.checkpoint}")
    return result
