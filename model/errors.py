"""The one exception a person is meant to read."""


class InputError(ValueError):
    """Something a user gave is wrong. The message is one line that names the thing and the remedy.

    The command line prints it without a traceback and exits with 2; everything else that is raised is a defect.
    """


def nearest(word: str, choices: list[str]) -> str:
    """ " (did you mean X?)" for the choice closest to `word`, or "" when none is close."""
    import difflib

    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
