"""Groups of text: a row has one entry {task, prompt, tokens, embedding} per task, and a set such a list per view.

The group `text-TASK` has the entries of one task, and `text`, which older datasets have, those of all.
"""

from __future__ import annotations

TEXT = "text"
DROPPED_CAPTION = ""  # the task of the entry with the empty prompt, which stands for a dropped caption


def text_group(task: str) -> str:
    """The group that has the prompts of a task alone."""
    return f"{TEXT}-{task}"


def is_text(group: str) -> bool:
    """Whether a group has prompts."""
    return group.partition("-")[0] == TEXT


def entry_columns(sets: bool, *fields: str) -> list[str]:
    """Columns to read of a group of text for some fields of its entries alone: embeddings are most of the group.

    sets: whether the rows are sets, which have a list of entries for each view.
    """
    element = ".list.element" * (2 if sets else 1)
    return [f"entries{element}.{field}" for field in fields]
