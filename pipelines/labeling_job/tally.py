"""What a labeling job counts, by group: rows, seconds, and rows in error by reason. Nothing here grows with rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

MAX_REASONS = 200  # kept of a group; what comes after counts as other reasons
OTHER = "other reasons"


@dataclass
class Reason:
    """Rows in error for one reason, and the id of one of them."""

    rows: int = 0
    example: str = ""


@dataclass
class Errors:
    """Rows of a group in error. unexpected: those for which the labeler had not planned; unavailable: rows that can
    have no label until a parameter is set, which are no errors."""

    rows: int = 0
    unexpected: int = 0
    unavailable: int = 0
    reasons: dict[str, Reason] = field(default_factory=dict)

    def add(self, reason: str, example: str, rows: int = 1, unexpected: int = 0) -> None:
        """Count rows in error."""
        self.rows += rows
        self.unexpected += unexpected
        if reason not in self.reasons and len(self.reasons) >= MAX_REASONS:
            reason = OTHER
        entry = self.reasons.setdefault(reason, Reason(example=example))
        entry.rows += rows

    def top(self, count: int = 5) -> list[tuple[str, Reason]]:
        """The most common reasons first."""
        return sorted(self.reasons.items(), key=lambda item: -item[1].rows)[:count]

    def merge(self, other: Errors) -> None:
        """Add what another tally has counted."""
        for reason, entry in other.reasons.items():
            self.add(reason, entry.example, entry.rows)
        self.unexpected += other.unexpected
        self.unavailable += other.unavailable

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        reasons = {reason: [entry.rows, entry.example] for reason, entry in self.reasons.items()}
        return {"unexpected": self.unexpected, "unavailable": self.unavailable, "reasons": reasons}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Errors:
        """Back from `to_plain`."""
        errors = cls(unexpected=values["unexpected"], unavailable=values["unavailable"])
        for reason, (rows, example) in values["reasons"].items():
            errors.add(reason, example, rows)
        return errors


@dataclass
class Tally:
    """What was done of a part, or of many.

    rows, seconds, errors: by group; steps: seconds by what a process did ("reading", "decoding", a group, "waiting for
    GROUP", "waiting for the writer"); first_label: when the first label was there; done: when the last part was with
    its writer; both in seconds since the epoch.
    """

    rows: dict[str, int] = field(default_factory=dict)
    errors: dict[str, Errors] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    first_label: float | None = None
    done: float | None = None

    def took(self, step: str, seconds: float) -> None:
        """Count seconds of a step."""
        self.steps[step] = self.steps.get(step, 0.0) + seconds

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Count the seconds of what is done inside as a step's."""
        started = time.perf_counter()
        yield
        self.took(step, time.perf_counter() - started)

    def merge(self, other: Tally) -> None:
        """Add what another tally has counted."""
        for group, rows in other.rows.items():
            self.rows[group] = self.rows.get(group, 0) + rows
        for group, errors in other.errors.items():
            self.errors.setdefault(group, Errors()).merge(errors)
        for step, seconds in other.steps.items():
            self.took(step, seconds)
        times = [time for time in (self.first_label, other.first_label) if time is not None]
        self.first_label = min(times, default=None)
        self.done = max((time for time in (self.done, other.done) if time is not None), default=None)

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        errors = {group: errors.to_plain() for group, errors in self.errors.items()}
        times = {"first_label": self.first_label, "done": self.done}
        return {"rows": self.rows, "errors": errors, "steps": self.steps, **times}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Tally:
        """Back from `to_plain`."""
        errors = {group: Errors.from_plain(plain) for group, plain in values["errors"].items()}
        return cls(dict(values["rows"]), errors, dict(values["steps"]), values["first_label"], values["done"])
