"""vllm.sampling_params."""

from types import SimpleNamespace


class StructuredOutputsParams(SimpleNamespace):
    """As it was given."""
