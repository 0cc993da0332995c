"""A cache of what was made last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

Value = TypeVar("Value")


class Recent(OrderedDict[Any, Value]):
    """A cache of the last `size` results of a function, by its argument."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def get(self, key: Any, make: Callable[[Any], Value]) -> Value:  # type: ignore[override]
        if key in self:
            self.move_to_end(key)
            return self[key]
        value = self[key] = make(key)
        if len(self) > self.size:
            self.popitem(last=False)
        return value
