"""What tests share that try any values.

The suite tries few of each kind, always the same. FUZZ_EXAMPLES sets how many are tried, and with it pytest's
--hypothesis-seed=N which.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

from model.inputs import InputError

MANY = "FUZZ_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
LIGHT = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not MANY,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# Where an example loads a model the suite tries fewer.
HEAVY = settings(LIGHT, max_examples=EXAMPLES if MANY else 8)

# What is no path anywhere, though parts of it may be one.
NO_PATHS = ["a\0b", "\ud800", "a" * 300, "a/" * 3000, b"ab", 5]


def told(call: Any) -> Any:
    """What the call gives, None where it is refused in one line. Anything else that is raised fails the test."""
    try:
        return call()
    except InputError as error:
        message = str(error)
    assert message and "\n" not in message, repr(message)
    return None
