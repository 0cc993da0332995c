"""vllm.outputs."""

from __future__ import annotations

from types import SimpleNamespace


class RequestOutput:
    """A finished answer."""

    def __init__(self, text: str, prompt: str) -> None:
        self.finished, self.prompt, self.prompt_token_ids = True, prompt, [1, 2, 3]
        self.metrics = self.prompt_logprobs = None
        self.outputs = [SimpleNamespace(text=text, token_ids=[4, 5], logprobs=None)]


class PoolingRequestOutput:
    """Never given."""
