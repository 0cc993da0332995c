"""Files that belong to a picture by their name and say something of it: a caption, or a JSON object."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labeling.sources.facts import TEXT_COLUMNS, plain_value
from labeling.sources.metadata import decode_text

CAPTIONS = (".txt", ".caption")  # the first of them is the text
SUFFIXES = (*CAPTIONS, ".json", ".cls")
SUFFIX_PATTERN = r"(?i)\.(txt|caption|json|cls)$"


def suffix_of(name: str) -> str:
    """The suffix of a file beside a picture, "" of another file."""
    start, _, end = name.rpartition(".")
    suffix = f".{end.lower()}"
    return suffix if start and suffix in SUFFIXES else ""


def pair(names: Sequence[str]) -> tuple[dict[int, list[int]], set[int]]:
    """Which of some names belong to which: index of a picture → indices of the files that say something of it.

    a.txt, a.caption and a.json belong to a.jpg, a.jpg.txt and a.jpg.json too, and where no picture has that very name
    to the one whose name differs in its Unicode form or in small and capital letters alone. The second value: all that
    belong to one.
    """
    stems = {index: name.rpartition(".")[0] for index, name in enumerate(names) if suffix_of(name)}
    if not stems:
        return {}, set()
    pairs: dict[int, list[int]] = {}
    for form in (str, joined_form):
        used = {one for found in pairs.values() for one in found}
        by_stem: dict[str, list[int]] = {}
        for index, stem in stems.items():
            if index not in used:
                by_stem.setdefault(form(stem), []).append(index)
        for index, name in enumerate(names) if by_stem else ():
            if index not in stems:
                stem, dot, _ = name.rpartition(".")
                found = [*(by_stem.get(form(stem), ()) if dot else ()), *by_stem.get(form(name), ())]
                if found:
                    pairs.setdefault(index, []).extend(found)
    return pairs, {one for found in pairs.values() for one in found}


def joined_form(name: str) -> str:
    """What names that differ in their Unicode form or in small and capital letters alone have in common."""
    return (name if name.isascii() else unicodedata.normalize("NFC", name)).casefold()


def read_beside(files: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    """What files beside a picture say, by name and bytes: column → value. What cannot be read says nothing."""
    facts: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for name, raw in files:
        suffix = suffix_of(name)
        text = decode_text(raw).strip()
        if suffix in CAPTIONS:
            texts[suffix] = text
        elif suffix == ".json":
            facts |= _json_facts(text)
        else:
            facts[suffix[1:]] = text
    caption = next((texts[suffix] for suffix in CAPTIONS if texts.get(suffix)), "")
    if caption:
        # The file beside is the caption: whatever the JSON calls its own is kept unless it says the same.
        facts = {key: value for key, value in facts.items() if not (key in TEXT_COLUMNS and value == caption)}
        facts[TEXT_COLUMNS[0]] = caption
    return facts


def _json_facts(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if isinstance(value, str | list):
        value = {"caption": value}
    return {str(key): plain_value(one) for key, one in value.items()} if isinstance(value, Mapping) else {}
