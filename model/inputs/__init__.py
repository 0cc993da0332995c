"""What people give the program: the errors they read, and how their files and settings are read.

It lies below everything else, so that every folder tells a user what is wrong in the same way.
"""

from __future__ import annotations

from model.inputs.errors import (
    InputError,
    WorkFailed,
    causes,
    error_for_person,
    input_error_behind,
    nearest,
    one_line,
    require,
    shown,
)
from model.inputs.paths import as_path

__all__ = [
    "InputError",
    "WorkFailed",
    "as_path",
    "causes",
    "error_for_person",
    "input_error_behind",
    "nearest",
    "one_line",
    "require",
    "shown",
]
