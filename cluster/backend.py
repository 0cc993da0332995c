"""What every kind of target can do, and making the one that a target file describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from cluster.kubernetes_target import KubernetesTarget
from cluster.target import LocalTarget, RayTarget, SlurmTarget, Target
from cluster.work import Finding, TargetState, Work


class Backend(Protocol):
    """A place that runs work. All raise InputError, in one line that says what to do, for what a user can mend.

    Work is found by its name alone: a submission killed at any moment leaves either nothing or something that `state`
    finds and `stop` ends.

    sees_all: whether "absent" is said of all work there, or only of what this user on this machine can see.
    """

    @property
    def sees_all(self) -> bool: ...

    def plan(self, work: Work) -> dict[str, str]:
        """Exactly what would be sent: title (as "sbatch script") → text. Holds no secret; touches nothing."""

    def examine(self, work: Work) -> list[Finding]:
        """What the target itself allows such work, before anything is sent: permissions, partitions, limits."""

    def remarks(self, work: Work) -> list[str]:
        """What may go wrong though nothing refuses it: a line each, for whoever sends it. Touches nothing."""

    def submit(self, work: Work) -> None:
        """Send it.

        Raises AlreadySubmitted when work of this name is there (then it was not sent twice), another InputError when
        it was not taken, and ConnectionError when nobody knows whether it was.
        """

    def state(self, name: str) -> TargetState:
        """What the target knows of the work; "absent" when nothing (it never came, or was forgotten)."""

    def stop(self, name: str) -> None:
        """Ask it to end, by a signal that it can answer with a checkpoint; then remove what it held. Idempotent."""

    def scale(self, name: str, work: Work) -> bool:
        """Give running work what work.resources asks for. False where that takes a new submission."""

    def logs(self, name: str) -> Iterator[str]:
        """What the target itself keeps of the output, for work that died before it kept its own log."""


def open_backend(target: Target) -> Backend:
    """The backend of a target. Nothing is contacted yet."""
    if isinstance(target, LocalTarget):
        from cluster.local import LocalBackend

        return LocalBackend(target)
    if isinstance(target, RayTarget):
        from cluster.ray_jobs import RayBackend

        return RayBackend(target)
    if isinstance(target, KubernetesTarget):
        from cluster.kubernetes.backend import KubernetesBackend

        return KubernetesBackend(target)
    assert isinstance(target, SlurmTarget)
    from cluster.slurm.backend import SlurmBackend

    return SlurmBackend(target)
