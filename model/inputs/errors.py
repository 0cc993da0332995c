"""The one exception a person is meant to read, and saying things in one line."""

from __future__ import annotations

from model.inputs.extras import describe, missing_extra


class InputError(ValueError):
    """Something a user gave is wrong. The message is one line that names the thing and the remedy.

    The command line prints it without a traceback and exits with 2; everything else that is raised is a defect.
    """


def one_line(what: object, longest: int | None = None) -> str:
    """The text of an error (or any other text) in one line of at most `longest` characters.

    For an error without text it is the name of its class.
    """
    line = " ".join(str(what).split()) or ("" if isinstance(what, str) else type(what).__name__)
    return line if longest is None or len(line) <= longest else line[: longest - 1] + "…"


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
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        # Errors that Ray carries are instances of the class of their `cause` as well.
        cause = getattr(error, "cause", None)
        if isinstance(error, InputError) and cause is None:
            return error
        if isinstance(error, ModuleNotFoundError) and cause is None and (line := describe(error.name)):
            return InputError(line)
        if type(error).__module__.startswith("ray.") and (line := _raised_in_ray(str(error))):
            return InputError(line)
        error = cause or error.__cause__ or error.__context__
    return None


def _raised_in_ray(text: str) -> str:
    """The message of an InputError that an actor's constructor or a function of Ray Data raised, "" if there is none.

    Ray keeps only the text of the traceback of such errors.
    """
    name = f"{InputError.__module__}.{InputError.__qualname__}: "
    return next((line.removeprefix(name) for line in reversed(text.splitlines()) if line.startswith(name)), "")
