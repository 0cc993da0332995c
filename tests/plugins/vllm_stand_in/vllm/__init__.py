"""What Ray's `ray.data.llm` calls of vLLM, of a model that says how large the picture is that it was shown.

It stands in for vLLM, which does not fit beside this project's torch: all that Ray does around it is real.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from vllm import config, outputs, sampling_params

__all__ = ["AsyncEngineArgs", "AsyncLLMEngine", "SamplingParams", "config", "outputs", "sampling_params"]
DARK = 40  # mean level of a picture that the model refuses


class SamplingParams(SimpleNamespace):
    """As it was given."""


class AsyncEngineArgs(SimpleNamespace):
    """As it was given."""

    def create_engine_config(self) -> Any:
        """What Ray reads of it."""
        return SimpleNamespace(
            scheduler_config=SimpleNamespace(max_num_seqs=8),
            parallel_config=SimpleNamespace(pipeline_parallel_size=1),
        )


class AsyncLLMEngine:
    """Answers each request once."""

    def __init__(self, arguments: AsyncEngineArgs) -> None:
        self.arguments = arguments

    @classmethod
    def from_engine_args(cls, arguments: AsyncEngineArgs, stat_loggers: Any = None) -> AsyncLLMEngine:
        """The engine."""
        return cls(arguments)

    async def generate(
        self, request_id: str, prompt: dict[str, Any], sampling_params: SamplingParams, lora_request: Any = None
    ) -> AsyncIterator[Any]:
        """The answer to one request. Raises ValueError for a dark picture."""
        import numpy as np

        (picture,) = prompt["multi_modal_data"]["image"]
        if np.asarray(picture).mean() < DARK:
            raise ValueError("this picture is too dark")
        asked, engine = sampling_params, self.arguments
        text = f"A picture of {picture.width} by {picture.height}, {asked.max_tokens} tokens, {engine.max_model_len}."
        yield outputs.RequestOutput(text, prompt["prompt"])

    async def do_log_stats(self) -> None:
        """Nothing."""

    def shutdown(self) -> None:
        """Nothing."""
