"""What the address of a source names: a folder, one file, or the files of a folder that match a pattern."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from labeling.dataset import open_store

_WILDCARDS = "*?["


@dataclass(frozen=True)
class Address:
    """folder: address of the folder; file: the one file meant, "" for several; pattern: "" for all files below."""

    folder: str
    file: str = ""
    pattern: str = ""


def split_address(uri: str) -> Address:
    """The folder of an address and what of it is meant.

    What is there by that very name is meant by it, also where the name has brackets or other signs of a pattern.
    Raises InputError for an address that is neither local nor S3.
    """
    scheme, path = ("s3://", uri[5:]) if uri.startswith("s3://") else ("", uri)
    rooted = path.startswith("/") and not scheme
    parts = [part for part in path.split("/") if part]
    if not parts:
        return Address(uri if scheme else "/" if rooted else ".")

    def address(count: int) -> str:
        return scheme + ("/" if rooted else "") + "/".join(parts[:count]) or "."

    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        is_pattern = any(sign in part for sign in _WILDCARDS)
        if (scheme and not index) or not (is_pattern or last):
            continue
        if last and not path.endswith("/") and _is_file(address(index), part):
            return Address(address(index), file=part)
        if is_pattern and not _is_folder(address(index + 1)):
            rest = "/".join(parts[index:])
            return Address(address(index), pattern=f"{rest}/**" if path.endswith("/") else rest)
    return Address(address(len(parts)))


def _is_file(folder: str, name: str) -> bool:
    # S3 is asked only where the name can be a file's: most addresses there are prefixes.
    may_be_file = "." in name or not folder.startswith("s3://")
    return may_be_file and open_store(folder).exists(name)


def _is_folder(uri: str) -> bool:
    return next(iter(open_store(uri).scan()), None) is not None


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a file's name in its folder matches a pattern.

    * and ? stay within a folder, ** stands for any number of folders, none too, and [ab], [a-z], [!a] for one sign.
    Names that differ in their Unicode form alone are equal.
    """
    parts = unicodedata.normalize("NFC", pattern).split("/")
    text = ""
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            text += ".*" if last else "(?:[^/]+/)*"
        else:
            text += _part_regex(part) + ("" if last else "/")
    regex = re.compile(text, re.DOTALL)
    return lambda name: regex.fullmatch(name if name.isascii() else unicodedata.normalize("NFC", name)) is not None


def _part_regex(part: str) -> str:
    regex, index = "", 0
    while index < len(part):
        sign = part[index]
        end = part.find("]", index + 2) if sign == "[" else -1
        if sign in "*?":
            regex += "[^/]*" if sign == "*" else "[^/]"
        elif end > 0:
            inside = part[index + 1 : end].replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^")
            regex += f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
            index = end
        else:
            regex += re.escape(sign)
        index += 1
    return regex
