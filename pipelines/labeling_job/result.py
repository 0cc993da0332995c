"""What a labeling run did, for a person and for the command's exit code."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from labeling.dataset import FooterTable
from pipelines.labeling_job.label_process import WRITING, waiting_for
from pipelines.labeling_job.tally import Errors, Tally

_ADVICE = {
    "reading": "a faster store, or larger shards, would help",
    "decoding": "more CPUs would help",
    WRITING: "writers were slow: a faster store would help",
}
_SHARE = 0.3  # of the processes' time from which waiting is named as what held the job up


@dataclass
class LabelResult:
    """What a labeling run did, by group.

    written, fresh: shards written, and shards that were fresh before; rows: labeled; busy: seconds of work on CPUs over
    all processes; errors: rows in error by reason; seconds: of the whole run; first_label: after how many seconds the
    first label was there; steps: seconds over all processes by what they did; footers: of the shards asked for, as they
    are afterwards, of the groups and of what they read.
    """

    written: Counter[str] = field(default_factory=Counter)
    fresh: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    busy: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    errors: dict[str, Errors] = field(default_factory=dict)
    seconds: float = 0.0
    pictures: int = 0
    working: float = 0.0  # seconds in which there was work for processes
    first_label: float | None = None
    steps: dict[str, float] = field(default_factory=dict)
    footers: dict[str, FooterTable] = field(default_factory=dict, compare=False, repr=False)

    def add(self, tally: Tally) -> None:
        """Add what was done in one wave."""
        self.rows.update(tally.rows)
        for step, seconds in tally.steps.items():
            self.steps[step] = self.steps.get(step, 0.0) + seconds
            if step in tally.rows:
                self.busy[step] += seconds
        for group, errors in tally.errors.items():
            self.errors.setdefault(group, Errors()).merge(errors)

    def summary(self) -> list[str]:
        """One line a group: shards written and fresh, rows a second; then how fast it was, and what held it up."""
        lines = []
        for group, fresh in self.fresh.items():
            busy = self.busy.get(group, 0.0)
            speed = f", {self.rows[group] / busy:.1f} rows/s a process" if busy else ""
            lines.append(f"{group}: {self.written[group]} shards labeled, {fresh} fresh{speed}")
        if self.pictures and self.working:
            first = f", first label after {self.first_label:.1f} s" if self.first_label is not None else ""
            lines.append(
                f"{self.pictures} rows in {self.seconds:.1f} s: {self.pictures / self.working:.1f} a second{first}"
            )
            lines.append(self.bottleneck())
        return lines

    def bottleneck(self) -> str:
        """What the processes on CPUs spent most of their time on, and what would make the job faster."""
        total = sum(self.steps.values())
        step = max(self.steps, key=lambda step: self.steps[step])
        for group in self.rows:
            if self.steps.get(waiting_for(group), 0.0) > _SHARE * total:
                share = self.steps[waiting_for(group)] / total
                remedy = f"more GPUs or a larger batch would help ({group}.processes, {group}.batch)"
                return f"waiting for the network of {group} took {share:.0%} of the time: {remedy}"
        advice = _ADVICE.get(step, "it runs on CPUs: more of them would help")
        return f"{step} took {self.steps[step] / total:.0%} of the time: {advice}"
