"""The labelers of a process that labels on CPUs, each loaded when it is first needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labeling.labeler import Labeler
from labeling.resources import Resources
from labeling.run import LabelerRun, import_packages


class Labelers:
    """Labelers by group. networks: the groups whose networks are run by other processes."""

    def __init__(
        self, labelers: Mapping[str, Labeler], resources: Mapping[str, Resources], networks: Sequence[str]
    ) -> None:
        self.networks = frozenset(networks)
        self._labelers = labelers
        self._resources = resources
        self._runs: dict[str, LabelerRun] = {}  # of the labelers that are loaded

    def __getitem__(self, group: str) -> Labeler:
        return self._labelers[group]

    def run_of(self, group: str) -> LabelerRun:
        """The labeler of a group, ready to label: the first labels wait for no other labeler's model."""
        if group not in self._runs:
            labeler = self._labelers[group]
            import_packages(labeler)
            labeler.load_processor()
            if group not in self.networks:
                labeler.load()
            self._runs[group] = LabelerRun(labeler, self._resources[group])
        return self._runs[group]
