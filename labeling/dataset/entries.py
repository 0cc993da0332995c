"""The group `text`: a row has one entry {task, prompt, tokens, embedding} per task, and a set such a list per view."""

from __future__ import annotations

TEXT = "text"
DROPPED_CAPTION = ""  # the task of the entry with the empty prompt, which stands for a dropped caption


def entry_columns(sets: bool, *fields: str) -> list[str]:
    """Columns to read of the group `text` for some fields of its entries alone: embeddings are most of the group.

    sets: whether the rows are sets, which have a list of entries for each view.
    """
    element = ".list.element" * (2 if sets else 1)
    return [f"entries{element}.{field}" for field in fields]
