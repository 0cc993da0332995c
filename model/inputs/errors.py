"""The two exceptions a person is meant to read, and saying things in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from model.inputs.extras import describe, missing_extra

# What Ray Data adds to the message of an exception itself, as if another attempt could mend it (2.60).
_ADVICE = re.compile(r"\s*^Failed to .+ after \d+/\d+ attempts \(total backoff .*", re.DOTALL | re.MULTILINE)

_LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


class InputError(ValueError):
    """Something a user gave is wrong. The message is one line that names the thing and the remedy.

    The command line prints it without a traceback and exits with 2; everything else that is raised is a defect.
    """

    def __init__(self, message: object = "") -> None:
        # Names that it quotes may have any character, and Ray makes an error anew with its advice.
        super().__init__(_LINE_BREAKS.sub(" ", _ADVICE.sub("", str(message))))


class WorkFailed(RuntimeError):
    """Work ended without its result, through no mistake in the program. The message is one line with the remedy.

    The command line prints it without a traceback and exits with 1.
    """


def one_line(what: object, longest: int | None = None) -> str:
    """The text of an error (or any other text) in one line of at most `longest` characters.

    For an error without text it is the name of its class.
    """
    line = " ".join(str(what).split()) or ("" if isinstance(what, str) else type(what).__name__)
    return line if longest is None or len(line) <= longest else line[: longest - 1] + "…"


def shown(value: object) -> str:
    """A value that somebody gave, of any type, as a message shows it: in one line, and not all of it if it is long."""
    try:
        return one_line(repr(value), 80) or type(value).__name__
    except Exception:  # a class may fail at its own text
        return type(value).__name__


def check_characters(name: str, texts: Iterable[str]) -> None:
    """Raise InputError for half a character, as of JSON cut within one: no tokenizer and no file takes it."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{name} {shown(text)}: it has half a character; correct the text") from None


def nearest(word: str, choices: list[str]) -> str:
    """ " (did you mean X?)" for the choice closest to `word`, or "" when none is close."""
    import difflib

    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def require(*modules: str) -> None:
    """Raise InputError when one of these modules is not installed, with the extra that installs it."""
    if line := missing_extra(*modules):
        raise InputError(line)


def input_error_behind(error: BaseException | None) -> InputError | None:
    """The InputError that an exception is, or was raised from, also where Ray carried it from another process.

    A module that is not installed counts as one where an extra installs it. None where there is no InputError.
    """
    cause = error_for_person(error)
    return cause if isinstance(cause, InputError) else None


def error_for_person(error: BaseException | None) -> InputError | WorkFailed | None:
    """The first InputError or WorkFailed that an exception is or was raised from; None for a defect."""
    return next((found for one in causes(error) if (found := _for_person(one))), None)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and all that it was raised from, the nearest first, each once.

    Beside Python's own links: the `cause` that errors of Ray carry, the members of a group, the errors that Ray Train
    gives by worker, and what its look at a worker met.
    """
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        members = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        by_worker = getattr(one, "worker_failures", None) or {}
        of_check = getattr(one, "health_check_failure", None)
        waiting += [getattr(one, "cause", None), one.__cause__, *members, *dict(by_worker).values(), of_check]
        waiting.append(one.__context__)


def _for_person(error: BaseException) -> InputError | WorkFailed | None:
    # Errors that Ray carries are instances of the class of their `cause` as well, with a traceback as their text.
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return _for_person(cause) or _told_by_ray(str(error))
    if isinstance(error, InputError | WorkFailed):
        text = str(error)
        kind = InputError if isinstance(error, InputError) else WorkFailed
        return error if _ADVICE.search(text) is None else kind(_ADVICE.sub("", text))
    if isinstance(error, ModuleNotFoundError):
        line = describe(error.name)
        return InputError(line) if line else None
    if any(base.__module__.partition(".")[0] == "ray" for base in type(error).__mro__):
        return _told_by_ray(str(error))
    return None


def _told_by_ray(text: str) -> InputError | WorkFailed | None:
    """The error in a text of Ray, which keeps nothing else of what an actor's constructor or Ray Data's task raised.

    Of several that were raised from each other, it is the last. A message ends at an empty line, or where the next
    traceback begins.
    """
    kinds = {name: kind for kind in (InputError, WorkFailed) for name in _names(kind)}
    missing = "ModuleNotFoundError: No module named "
    pattern = (
        rf"^({'|'.join(map(re.escape, kinds))}): (.+(?:\n(?!\x1b|\S*ray::|Traceback |  File ).+)*)|^{missing}'(.+)'"
    )
    for match in reversed(list(re.finditer(pattern, text, re.MULTILINE))):
        name, message, module = match.groups()
        if name:
            return kinds[name](one_line(_ADVICE.sub("", message)))
        if line := describe(module):
            return InputError(line)
    return None


def _names(kind: type[Exception]) -> list[str]:
    """The full names of a class of errors and of all that derive from it, as tracebacks print them."""
    below = [name for child in kind.__subclasses__() for name in _names(child)]
    return [f"{kind.__module__}.{kind.__qualname__}", *below]
