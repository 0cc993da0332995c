"""Which things a model is asked to find: names from a list, from a caption, or those that a model has named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, field_validator

from labeling.labeler import AddedLater, Row, required

MOST_NAMES = 10  # of a picture (docs/paper.md, One-Gen)
_SOURCES = {"": (), "caption": ("caption.caption",), "objects": ("objects.names",)}  # names_from → what it reads


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ONE = _set("a an the this that his her its their my your our one another each")
_MANY = _set("two three four five six seven eight nine ten some several many few these those various")
# Words that no name of a thing goes over: prepositions, conjunctions, pronouns, verbs that captions are full of.
_ENDS = _set("""
    of in on at by to from with without and or but as for into onto over under above below near behind beside between
    against along across around through toward towards while where when who whom whose which what is are was were be
    been being has have had does do did can could may might will would appears appear seems seem sits sit stands stand
    lies lie looks look holds hold wears wear walks walk runs run rides ride plays play eats eat drinks drink shows
    show fills fill hangs hang rests rest leans lean surrounds surround faces face smiles smile there here it he she
    they we you i not no very out up down off next main most
""")
# What captions speak of that is no thing to find, whatever stands before it.
_NO_THING = _set("""
    picture image photo photograph photography scene view shot background foreground middle center centre left right
    top bottom side front back edge corner part rest lighting color colors colour colours style mood atmosphere
    composition time day night moment way kind sort type distance contrast focus effect tone tones
    width height arm knees
""")
_MEASURES = _set("group pair couple piece slice cup glass bowl plate number lot row set bunch crowd")
_SINGULARS = {"people": "person", "men": "man", "women": "woman", "children": "child", "sheep": "sheep"}
_LONGEST = 3  # words of a name


class NamesParameters(BaseModel):
    """names: what to find; names_from: where the names of a picture come from instead, "caption" for the things that
    its caption speaks of, "objects" for the group of that name; with both, those of `names` that are named there."""

    names: Annotated[tuple[str, ...], AddedLater()] = ()
    names_from: Annotated[Literal["", "caption", "objects"], AddedLater()] = ""

    @field_validator("names")
    @classmethod
    def _clean(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        clean = tuple(dict.fromkeys(" ".join(name.split()) for name in names))
        for name in clean:
            if not name or "." in name:
                raise ValueError(f"{name!r} cannot be looked for; write words")
        return clean

    @property
    def are_named(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self.names or self.names_from)

    @property
    def names_reads(self) -> tuple[str, ...]:
        """The columns that the names of a row come from."""
        return _SOURCES[self.names_from]


def names_of(row: Row, parameters: NamesParameters, most: int = MOST_NAMES) -> list[str]:
    """The names to look for in a row's picture. Raises RowError where they are in error."""
    required(row, *parameters.names_reads)
    if not parameters.names_from:
        return list(parameters.names)
    if parameters.names_from == "objects":
        names = list(row["objects.names"])
        if parameters.names:
            spoken = {singular(name.lower()) for name in names}
            names = [name for name in parameters.names if singular(name.lower()) in spoken]
    elif parameters.names:
        names = mentioned(row["caption.caption"], parameters.names)
    else:
        names = phrases(row["caption.caption"])
    return names[:most]


def mentioned(text: str, names: Sequence[str]) -> list[str]:
    """Pick the names that a text speaks of, in the singular or plural."""
    words = " ".join(singular(word) for word in re.findall(r"\w+", text.lower()))
    return [name for name in names if re.search(rf"\b{re.escape(_singulars(name.lower()))}\b", words)]


def phrases(text: str) -> list[str]:
    """Names of the things that an English text speaks of, in its order, each once: what follows an article or a number.

    No grammar is known: of "a brown dog on the sofa" it is the words up to one that ends a name.
    """
    names: list[str] = []
    words: list[str] | None = None
    many = False

    def end(after: str) -> None:
        nonlocal words
        name = _name(words or [], many)
        # "a group of people" and "a slice of pizza" name people and pizza, which come without an article.
        words = [] if after == "of" and name in _MEASURES else None
        if name and words is None and name not in names and name.split()[-1] not in _NO_THING:
            names.append(name)

    for word in re.findall(r"[\w'-]+|[^\w\s]", text.lower()):
        if word in _ONE or word in _MANY:
            end(word)
            words, many = [], word in _MANY
        elif word in _ENDS or not word[0].isalnum():
            end(word)
            many = many or words is not None
        elif words is not None:
            words.append(word)
    end("")
    return names


def singular(word: str) -> str:
    """An English word in the singular, as far as its ending tells."""
    if word in _SINGULARS:
        return _SINGULARS[word]
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3 else word


def parse_names(text: str, most: int) -> list[str]:
    """Names out of what a model wrote when it was asked for a list: by commas, lines, bullets, numbers or as JSON."""
    names: list[str] = []
    for part in re.split(r"[,;\n•*]|(?<!\S)-\s|(?<!\S)\d+[.):]", text):
        name = re.sub(r"^(?:(?:and|an?|the|some)\s+)+", "", part.strip(" \t.:'\"[](){}<>`").lower())
        if name and len(name) <= 40 and len(name.split()) <= _LONGEST + 1 and name not in names and "." not in name:
            names.append(name)
    return names[:most]


def _singulars(name: str) -> str:
    return " ".join(singular(word) for word in re.findall(r"\w+", name))


def _name(words: Sequence[str], many: bool) -> str:
    """The name that words are after an article, "" for none."""
    rest = [word for word in words if not word.endswith("'s")]
    while rest and (rest[-1].isdecimal() or (len(rest) > 1 and rest[-1].endswith(("ly", "ing", "ed")))):
        rest.pop()
    rest = rest[-_LONGEST:]
    if rest and many:
        rest[-1] = singular(rest[-1])
    return " ".join(rest)


def reads_with(reads: Sequence[str], parameters: Any) -> tuple[str, ...]:
    """What a labeler reads, with what the names of a row come from."""
    return (*reads, *(column for column in parameters.names_reads if column not in reads))
