"""vllm.config."""

from types import SimpleNamespace


class ModelConfig(SimpleNamespace):
    """As it was given."""
