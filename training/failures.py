"""Failures of a run's workers: a group that starts again from a checkpoint may fail at the same step for ever.

It does so where a sample kills the process, or where the checkpoint to write does not fit the machine's memory. So a
failure that repeats ends the run, whatever `workers.max_failures` allows.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

from labeling.dataset import Store
from training.checkpoint import checkpoint_name, whole_checkpoints

REPEATS = 3
_NEAR = 2  # steps: workers that die of memory, or before their last message was sent, do so at about the same step


class _Failure(NamedTuple):
    step: int | None  # that had begun, as people count; None before the first of its group
    checkpoint: int  # the newest whole one's step; 0 for none


class FailureWatch:
    """Counts the failures of a run's workers at the same step without a new checkpoint between."""

    def __init__(self, store: Store) -> None:
        """store: of the run."""
        self._store = store
        self._last: _Failure | None = None
        self._times = 0

    def add(self, step: int | None, reason: str) -> dict[str, Any]:
        """Note a failure. Returns its event for people, see `training.run.run_training`."""
        failure = _Failure(step, self._last.checkpoint if self._last else 0)
        with suppress(Exception):  # a store that does not answer now has no new checkpoint to tell of
            failure = _Failure(step, (whole_checkpoints(self._store) or [0])[-1])
        self._times = self._times + 1 if self._last and _repeats(self._last, failure) else 1
        self._last = failure
        event = {"event": "failure", "step": step, "checkpoint": failure.checkpoint, "reason": reason}
        return {**event, "times": self._times}

    def verdict(self, event: dict[str, Any]) -> str | None:
        """What to tell a person where that failure ends the run."""
        if event["times"] < REPEATS:
            return None
        place = "before their first step" if event["step"] is None else f"at step {event['step']}"
        newest = event["checkpoint"]
        since = f"since {self._store.uri}/{checkpoint_name(newest)}" if newest else "and it has no checkpoint yet"
        return (
            f"{self._store.uri}: its workers failed {event['times']} times {place} {since}, so it is not tried again "
            f"({event['reason'] or 'no reason given'}); mend that, and the same command goes on"
        )


def _repeats(before: _Failure, now: _Failure) -> bool:
    if before.checkpoint != now.checkpoint:
        return False
    if before.step is None or now.step is None:
        return before.step is now.step
    return abs(before.step - now.step) <= _NEAR
