"""The parts of Ray that are not public and that a training needs, checked with Ray 2.60.0.

They are used in this module only, so that a new version of Ray concerns one place (and `cluster.ray_internals`, which a
training does not know); tests/training/test_ray_internals.py fails for those that have changed.
"""

from __future__ import annotations

from typing import Any

import ray
from ray._private.state import state
from ray.train.torch import TorchTrainer

CHECKED_VERSION = "2.60.0"


def draining_nodes() -> set[str]:
    """Ids of the nodes that are being removed. Ray Train asks in this way too; the public table of nodes lacks it."""
    return set(state.get_draining_nodes())


class StoppableTrainer(TorchTrainer):
    """Leaves Ctrl-C to the caller, and can be ended at any time.

    Ray's own handler of Ctrl-C asks the controller to abort, which does not answer while its workers wait for
    resources.
    """

    ended = False
    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        """Keep the controller. Ray would install its handler of Ctrl-C here; it calls this in the main thread only."""
        self._controller = controller
        if self.ended:
            ray.kill(controller)

    def end(self) -> None:
        """End the controller and with it all workers: `fit` raises ActorDiedError."""
        self.ended = True
        if self._controller is not None:
            ray.kill(self._controller)
