"""What tests share that try any values. FUZZ_EXAMPLES sets how many of each kind are tried; the suite tries few."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

from model.inputs import InputError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
LIGHT = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
# Where an example loads a model the suite tries fewer.
HEAVY = settings(LIGHT, max_examples=EXAMPLES if "FUZZ_EXAMPLES" in os.environ else 8)


def told(call: Any) -> Any:
    """What the call gives, None where it is refused in one line. Anything else that is raised fails the test."""
    try:
        return call()
    except InputError as error:
        message = str(error)
    assert message and "\n" not in message, repr(message)
    return None
