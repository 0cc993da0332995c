"""What Ray starts for each of its worker processes on this machine, in the place of Ray's setup_worker.py.

Ray's own imports all of Ray, a third of a second of a core, and then becomes the worker, which imports it again. Both
need a worker's environment variables alone. This runs as a script, and imports nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import re
import sys

CONTEXT, LANGUAGE = "--serialized-runtime-env-context=", "--language="


def main(arguments: list[str]) -> None:
    """Become the worker. arguments: what Ray gives its own script: the worker's command, and two for the script."""
    os.execv(sys.executable, [sys.executable, *worker_command(arguments)])  # noqa: S606 (our own interpreter)


def worker_command(arguments: list[str]) -> list[str]:
    """The script of the worker and its arguments, after setting the worker's variables in this process.

    Workers that are not of this installation, as in a container, are left to Ray's own script.
    """
    context = json.loads(_value(arguments, CONTEXT) or "{}")
    if not _is_usual(context, _value(arguments, LANGUAGE)):
        return [os.path.join(_folder_of_ray(), "_private", "workers", "setup_worker.py"), *arguments]
    for name, value in (context.get("env_vars") or {}).items():
        # ${OTHER} stands for another variable, as in Ray's own.
        os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))
    return [word for word in arguments if not word.startswith((CONTEXT, LANGUAGE))]


def _folder_of_ray() -> str:
    from importlib.util import find_spec  # it does not import the package

    spec = find_spec("ray")
    assert spec and spec.submodule_search_locations
    return str(spec.submodule_search_locations[0])


def _value(arguments: list[str], name: str) -> str:
    return next((word[len(name) :] for word in arguments if word.startswith(name)), "")


def _is_usual(context: dict[str, object], language: str) -> bool:
    """Whether a runtime environment asks for a Python worker of this installation, and for nothing unknown."""
    asked = {name for name, value in context.items() if value}
    return (
        language == "PYTHON"
        and asked <= {"env_vars", "py_executable"}
        and context.get("py_executable") in (None, sys.executable)
    )


if __name__ == "__main__":
    main(sys.argv[1:])
