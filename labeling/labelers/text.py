"""Text: the embedding of the prompt of every task, and of the empty prompt that stands for a dropped caption.

A prompt carries the task's token and the colors of masks and boxes, so a row has one entry for each task. The group
`text-depth` has those of the task depth: what trains on depth reads no other task's. `text`, which older datasets have,
holds the entries of several tasks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import field_validator

from labeling import labeler
from labeling.dataset import DROPPED_CAPTION
from labeling.labeler import AddedLater, Labeler, Prepared, Row, required
from labeling.networks.pretrained import TORCH_TYPES, Dtype
from model.inputs import InputError
from model.inputs.schema import validate
from model.prompts import TASKS, build_prompt, find_task

if TYPE_CHECKING:
    from model.text import TextEncoder


class TextLabeler(Labeler):
    """One entry a task: its prompt, and the embedding of the prompt's tokens (L Y order, float16).

    A task whose class names could not be labeled in a row has no entry there; the row serves the other tasks.
    """

    name = "text"
    version = 1
    schema = pa.schema(
        [
            (
                "entries",
                pa.list_(
                    pa.struct(
                        [
                            ("task", pa.string()),
                            ("prompt", pa.string()),
                            ("tokens", pa.int32()),
                            ("embedding", pa.list_(pa.float16())),
                        ]
                    )
                ),
            )
        ]
    )

    class Parameters(labeler.Parameters):
        """encoder: "minilm", or the hub name or path of a text encoder; tasks: names of the tasks to have entries, of
        `text-TASK` its own; dtype: what the encoder computes in."""

        encoder: str = "minilm"
        tasks: tuple[str, ...] = (
            "text2image",
            "deblurring",
            "inpainting",
            "upscaling",
            "edges",
            "depth",
            "pose",
            "segmentation",
            "boxes",
        )
        dtype: Annotated[Literal["fp32", "bf16", "fp16"], AddedLater()] = "fp32"

        @field_validator("tasks")
        @classmethod
        def _known(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
            for task in tasks:
                if find_task(task).references > 1:  # of which a sample draws some, in any order
                    raise ValueError(f"{task} needs more than a caption and class names; leave it out (text: online)")
            # The order of a list must not make shards stale.
            return tuple(sorted(set(tasks), key=list(TASKS).index))

    parameters: Parameters

    def __init__(self, group: str, parameters: labeler.Parameters) -> None:
        """`group`: text-TASK, or text. Raises InputError for a task without stored prompts, or that `tasks` lack."""
        task = group.partition("-")[2]
        if task:
            only = validate(self.Parameters, {"tasks": [task]}, group).tasks
            given = parameters.model_dump(include={"tasks"}, exclude_unset=True)
            if task not in given.get("tasks", only):
                raise InputError(f"{group}: has prompts of {task}, which text.tasks leaves out; name it there too")
            parameters = parameters.model_copy(update={"tasks": only})
        super().__init__(group, parameters)
        named = [task for task in self.parameters.tasks if TASKS[task].phrase]
        self.reads = ("caption.caption", *(f"{task}.{column}" for task in named for column in ("names", "colors")))
        self._encoder: Any = None
        self._tokenizer: Any = None
        self._most = 0  # tokens

    @property
    def model(self) -> str:
        from model.text import text_encoder_name

        return text_encoder_name(self.parameters.encoder)

    def weights_digest(self) -> str:
        from model.text import text_encoder_digest

        return text_encoder_digest(self.parameters.encoder)

    def load_processor(self) -> None:
        if self._tokenizer is None:
            self._tokenizer, self._most = _tokenizer(self.parameters.encoder)

    def load(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.load_processor()
        if self._encoder is None:
            self._encoder = _encoder(self.parameters.encoder, self.device, self.parameters.dtype)

    def prepare(self, row: Row) -> Prepared:
        from model.text import tokenize

        prompts = {DROPPED_CAPTION: "", **self._prompts(row)}
        return Prepared(tokenize(self._tokenizer, self._most, list(prompts.values())), prompts)

    def infer(self, inputs: list[Any]) -> list[Any]:
        """Embeddings of the prompts of each row; a prompt that many share, as the empty one, is computed once."""
        different = list(dict.fromkeys(tuple(prompt) for prompts in inputs for prompt in prompts))
        embedded = self._encoder.embed(different)
        half = {prompt: one.numpy().astype(np.float16) for prompt, one in zip(different, embedded, strict=True)}
        return [[half[tuple(prompt)] for prompt in prompts] for prompts in inputs]

    def finish(self, output: Any, context: Any) -> Row:
        return {
            "entries": [
                {"task": task, "prompt": prompt, "tokens": len(embedding), "embedding": embedding.ravel()}
                for (task, prompt), embedding in zip(context.items(), output, strict=True)
            ]
        }

    def _prompts(self, row: Row) -> dict[str, str]:
        """Task → prompt, in the order of the parameters."""
        required(row, "caption.caption")
        caption = row["caption.caption"]
        prompts = {}
        for task in self.parameters.tasks:
            if TASKS[task].phrase:
                names, colors = row[f"{task}.names"], row[f"{task}.colors"]
                if names is None or colors is None:
                    continue
                prompts[task] = build_prompt(task, caption, names, colors)
            else:
                prompts[task] = build_prompt(task, caption)
        return prompts


@lru_cache(maxsize=1)
def _tokenizer(name: str) -> tuple[Any, int]:
    """Loaded once in a process that makes the prompts of several tasks."""
    from model.text import load_tokenizer

    return load_tokenizer(name)


@lru_cache(maxsize=1)
def _encoder(name: str, device: str, dtype: Dtype) -> TextEncoder:
    """As `_tokenizer`."""
    import torch

    from model.text import load_text_encoder

    return load_text_encoder(name, device, getattr(torch, TORCH_TYPES[dtype]))
