"""Workers of a training that die natively, as of a fault in CUDA or for want of memory."""

from __future__ import annotations

import os
from typing import Any

STEP = 5  # as people count


def train_until_it_aborts(values: dict[str, Any]) -> dict[str, Any]:
    """What `training.run._train_worker` is, of a worker whose process aborts in that step, its checkpoints written."""
    from training import worker

    update = worker._Worker._update

    def abort(self: Any, batch: Any) -> Any:
        if batch.step + 1 == STEP:
            self.saver.wait()
            os.abort()
        return update(self, batch)

    worker._Worker._update = abort  # type: ignore[method-assign]  # in this process, which ends with the worker
    return worker.train_worker(values["settings"])
