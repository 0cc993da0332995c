"""Text: the embedding of the prompt of every task, and of the empty prompt that stands for a dropped caption.

A prompt carries the task's token and the colors of masks and boxes, so a row has one entry for each task.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import field_validator

from labeling import labeler
from labeling.dataset import DROPPED_CAPTION
from labeling.labeler import Labeler, Row, required
from model.prompts import TASKS, build_prompt, find_task


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
        """encoder: "minilm", or the hub name or path of a text encoder; tasks: names of the tasks to have entries."""

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

        @field_validator("tasks")
        @classmethod
        def _known(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
            for task in tasks:
                if find_task(task).references:  # reference captions or an instruction, which no group holds
                    raise ValueError(f"{task} needs more than a caption and class names; leave it out")
            # The order of a list must not make shards stale.
            return tuple(sorted(set(tasks), key=list(TASKS).index))

    parameters: Parameters

    def __init__(self, group: str, parameters: labeler.Parameters) -> None:
        super().__init__(group, parameters)
        named = [task for task in self.parameters.tasks if TASKS[task].phrase]
        self.reads = ("caption.caption", *(f"{task}.{column}" for task in named for column in ("names", "colors")))
        self._encoder: Any = None
        self._empty: Any = None

    @property
    def model(self) -> str:
        return str(self._encoder.name)

    def weights_digest(self) -> str:
        from model.text import text_encoder_digest

        return text_encoder_digest(self.parameters.encoder)

    def load(self) -> None:

        from model.text import load_text_encoder

        device = self.device
        self._encoder = load_text_encoder(self.parameters.encoder, device)
        self._empty = self._encoder.encode([""])[0]

    def label(self, rows: list[Row]) -> list[Row]:
        prompts = [self._prompts(row) for row in rows]
        embedded = iter(self._encoder.encode([prompt for of_row in prompts for prompt in of_row.values()]))
        return [
            {
                "entries": [
                    _entry(DROPPED_CAPTION, "", self._empty),
                    *(_entry(task, prompt, next(embedded)) for task, prompt in of_row.items()),
                ]
            }
            for of_row in prompts
        ]

    def label_row(self, row: Row) -> Row:
        return self.label([row])[0]

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


def _entry(task: str, prompt: str, embedding: Any) -> Row:
    values = embedding.numpy().astype(np.float16)
    return {"task": task, "prompt": prompt, "tokens": values.shape[0], "embedding": values.ravel()}
