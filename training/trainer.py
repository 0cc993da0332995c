"""Ray's trainer, with an end to it that does not wait for its workers."""

from __future__ import annotations

from typing import Any

import ray
from ray.train.torch import TorchTrainer


class EndableTrainer(TorchTrainer):
    """Leaves Ctrl-C to the caller, and can be ended at any time.

    Ray's own answer to Ctrl-C asks the controller to abort, which it does not hear while its workers wait for room.
    """

    ended = False
    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        """Where Ray would take Ctrl-C for itself (in the main thread only)."""
        self._controller = controller
        if self.ended:
            ray.kill(controller)

    def end(self) -> None:
        """End the controller and with it all workers: `fit` raises ActorDiedError."""
        self.ended = True
        if self._controller is not None:
            ray.kill(self._controller)
