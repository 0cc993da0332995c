"""The errors that a person reads, found behind whatever carried them."""

from __future__ import annotations

import pickle

import pytest

from cluster.target import parse_target
from model.inputs import InputError, WorkFailed, error_for_person, input_error_behind


class Refused(InputError):
    """A kind of InputError, as other modules have."""


def test_error_is_found_behind_what_was_raised_from_it() -> None:
    carrier = RuntimeError("b")
    carrier.__cause__ = InputError("a")
    assert str(error_for_person(carrier)) == "a"
    assert str(error_for_person(ExceptionGroup("c", [ValueError("d"), carrier]))) == "a"
    assert error_for_person(RuntimeError("b")) is None
    failed = WorkFailed("no row could be labeled")
    assert error_for_person(failed) is failed
    assert input_error_behind(failed) is None


def test_message_is_one_line_whatever_it_quotes() -> None:
    error = InputError("a\r\n  b\u2028c  d\x85e")
    assert str(error) == "a b c  d e" and str(pickle.loads(pickle.dumps(error))) == str(error)
    with pytest.raises(InputError, match=r"^target\.yaml: environment: the name: write it .*, got '.{1,3}'$"):
        parse_target({"type": "local", "environment": {"\n": None}}, "target.yaml")


def test_error_is_found_in_what_ray_raises(ray_prepared: None) -> None:
    from ray.exceptions import ActorDiedError, RayTaskError, UserCodeException

    text = (
        'Traceback (most recent call last):\n  File "task.py", line 1, in task\n    raise {0}\n{0}\n\n'
        "The above exception was the direct cause of the following exception:\n\n"
        "Traceback (most recent call last):\n"
        "ray.exceptions.UserCodeException: UDF failed to process a data block."
    )

    def task_error(line: str) -> RayTaskError:
        cause = UserCodeException("UDF failed to process a data block.")
        return RayTaskError("map", text.format(line), cause, "ray::map", 1, "127.0.0.1")

    name = "model.inputs.errors"
    refused = f"{Refused.__module__}.Refused: a\nb"
    for line, kind, message in (
        (f"{name}.InputError: x.bin: no such weights", InputError, "x.bin: no such weights"),
        (f"{name}.WorkFailed: too many errors", WorkFailed, "too many errors"),
        (refused, InputError, "a b"),
        ("ModuleNotFoundError: No module named 'mediapipe'", InputError, "onediffusion[labelers]"),
    ):
        error = task_error(line)
        for carried in (error, error.as_instanceof_cause(), ActorDiedError(error)):
            found = error_for_person(carried)
            assert isinstance(found, kind) and message in str(found), (line, type(carried))
    for line in ("ModuleNotFoundError: No module named 'mine'", f"ValueError: says {name}.InputError: nothing"):
        assert error_for_person(task_error(line)) is None
    # As Ray Data leaves the exception of a generator: with its own words in the message.
    advised = "z\nFailed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\nTo change retry attempts, …"
    for kind in (InputError, WorkFailed):
        text = f"Traceback (most recent call last):\n{name}.{kind.__name__}: {advised}"
        for cause in (kind(advised), UserCodeException("UDF failed to process a data block.")):
            found = error_for_person(RayTaskError("f", text, cause, "ray::f", 1, "127.0.0.1").as_instanceof_cause())
            assert isinstance(found, kind) and str(found) == "z"
    direct = RayTaskError("f", f"Traceback\n{name}.InputError: y", InputError("y"), "ray::f", 1, "127.0.0.1")
    assert str(error_for_person(direct.as_instanceof_cause())) == "y"
