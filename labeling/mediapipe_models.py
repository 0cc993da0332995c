"""mediapipe's models of people: where their files lie, and loading them without their chatter."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from model.inputs import require


def mediapipe_file(name: str) -> Path:
    """A model file that ships inside mediapipe, by its path below modules/."""
    require("mediapipe")
    spec = importlib.util.find_spec("mediapipe")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "modules" / name


def solution(name: str) -> Any:
    """A module of mediapipe.solutions."""
    # Read once, when the C++ library starts to log.
    os.environ.setdefault("GLOG_minloglevel", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import mediapipe

    return getattr(mediapipe.solutions, name)
