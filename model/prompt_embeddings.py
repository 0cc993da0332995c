"""Prompts as the transformer takes them: composed for their tasks, embedded or given as embeddings, and guided.

Symbols as in docs/model.md: B samples, L tokens of a prompt, Y their width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model.arguments import as_texts, check_flags, check_numbers, negative_prompts
from model.inputs import InputError, shown
from model.parts import check_text_encoder
from model.prompts import (
    COLORS,
    TASKS,
    as_words,
    build_prompt,
    class_phrases,
    draw_colors,
    find_task,
    find_token,
    reference_phrases,
)
from model.text import TextEncoder

_log = logging.getLogger(__name__)
_ARGUMENTS = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")


@dataclass(frozen=True)
class Embeddings:
    """embeds (B, L, Y); mask (B, L), 1 for tokens of the prompt, 0 for padding."""

    embeds: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.embeds)

    def repeat(self, copies: int) -> Embeddings:
        """Each prompt as often, next to itself."""
        return Embeddings(self.embeds.repeat_interleave(copies, 0), self.mask.repeat_interleave(copies, 0))

    def to(self, device: Any) -> Embeddings:
        """Move them to another device."""
        return Embeddings(self.embeds.to(device), self.mask.to(device))

    def after(self, first: Embeddings) -> Embeddings:
        """Both batches in one, `first` before this one, padded to the longer of them."""
        rows = [row for one in (first, self) for row in one.embeds]
        masks = [row for one in (first, self) for row in one.mask]
        return Embeddings(pad_sequence(rows, batch_first=True), pad_sequence(masks, batch_first=True))


class PromptMixin:
    """encode_prompt, and the prompts and embeddings of a call, for a pipeline with a text encoder or without one."""

    text_encoder: Any
    tokenizer: Any
    transformer: Any
    _execution_device: torch.device

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = "",
        *,
        task: str | Sequence[str] | None = None,
        names: Sequence[str] = (),
        colors: Sequence[str] | None = None,
        reference_prompts: Sequence[str] = (),
        do_classifier_free_guidance: bool = True,
        num_images_per_prompt: int = 1,
        device: torch.device | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Embeddings (B, L, Y) and masks (B, L) of prompts and of negative prompts, which a call takes instead of them.

        So the text encoder need not be in memory while the transformer is. task, names, colors, reference_prompts: what
        a call composes the prompt from; without a task the prompt begins with a token, as "[[depth2image]] a cat".
        Embeddings that are given are checked and repeated. The negative half is None without guidance.
        Raises InputError as a call does.
        """
        check_numbers({"num_images_per_prompt": num_images_per_prompt})
        check_flags({"do_classifier_free_guidance": do_classifier_free_guidance})
        check_text_encoder({"text_encoder": self.text_encoder, "transformer": self.transformer})
        prompts = None
        if prompt_embeds is not None and not is_empty(prompt):
            raise InputError("give prompt or prompt_embeds, not both")
        names, reference_prompts = as_words("names", names), as_words("reference_prompts", reference_prompts)
        colors = None if colors is None else as_words("colors", colors)
        if prompt_embeds is not None and (task is not None or names or colors or reference_prompts):
            raise InputError("prompt_embeds are of a whole prompt: leave out task, names, colors and reference_prompts")
        if prompt_embeds is None:
            captions = as_texts("prompt", "" if prompt is None and task is not None else prompt)
            prompts = self.compose(task, captions, names, colors, reference_prompts)
        positive, negative = self._embeddings(
            prompts,
            negative_prompt,
            (prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask),
            do_classifier_free_guidance,
            num_images_per_prompt,
        )
        positive = positive.to(device or self._execution_device)
        prompt_embeds, prompt_attention_mask = positive.embeds, positive.mask
        negative_prompt_embeds = negative_prompt_attention_mask = None
        if negative is not None:
            negative = negative.to(device or self._execution_device)
            negative_prompt_embeds, negative_prompt_attention_mask = negative.embeds, negative.mask
        return prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask

    def compose(
        self,
        task: str | Sequence[str] | None,
        captions: Sequence[str],
        names: Sequence[str],
        colors: Sequence[str] | None,
        references: Sequence[str],
    ) -> list[str]:
        """The whole prompt of each caption: tokens and classes of the tasks, then the caption."""
        if task is None:
            tokens = tuple(map(find_token, TASKS))
            bare = next((caption for caption in captions if not caption.startswith(tokens)), None)
            if bare is not None:
                raise InputError(f"prompt {shown(bare)}: name its task, or begin it with the token of one")
            if names or colors or references:
                raise InputError("names, colors and reference_prompts are put into a prompt by its task: name it")
            return list(captions)
        tasks = as_texts("task", task)
        color_of = class_colors(names, colors)
        check_words(tasks, names, references, len(references), colors)
        codes = [color_of[name] for name in names]
        return [_compose(tasks, caption, names, codes, references) for caption in captions]

    def _embeddings(
        self,
        prompts: Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None,
        given: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
        guided: bool,
        copies: int,
    ) -> tuple[Embeddings, Embeddings | None]:
        """Embed every sample, and what guidance leads away from; given: embeddings and masks instead of texts."""
        width = self.transformer.config.caption_channels if self.transformer is not None else None
        positive = as_embeddings(_ARGUMENTS[:2], given[:2], width)
        negative = as_embeddings(_ARGUMENTS[2:], given[2:], width)
        count = len(positive) if positive else len(prompts or ())
        if negative and not is_empty(negative_prompt):
            raise InputError("give negative_prompt or negative_prompt_embeds, not both")
        if negative and len(negative) not in (1, count):
            raise InputError(f"{len(negative)} negative_prompt_embeds for {count} prompts: give one, or one for each")
        if negative and len(negative) < count:
            negative = negative.repeat(count)
        negatives = [] if negative else negative_prompts(negative_prompt, count, 1)
        if not guided:
            if negative or any(negatives):
                _log.warning("a negative prompt has no effect without guidance: give a guidance_scale above 1")
            negatives = []
        texts = [*negatives, *(prompts or ())]
        if texts:
            encoded = self._encode_texts(texts)
            if negatives:
                negative = _padded(encoded[: len(negatives)])
            if positive is None:
                positive = _padded(encoded[len(negatives) :])
        assert positive is not None
        return positive.repeat(copies), negative.repeat(copies) if negative and guided else None

    def _encode_texts(self, texts: Sequence[str]) -> list[Tensor]:
        """(L, Y) of each text, without padding. Raises InputError without an encoder, and for what is not finite."""
        if self.text_encoder is None or self.tokenizer is None:
            missing = "text_encoder" if self.text_encoder is None else "tokenizer"
            raise InputError(
                f"this pipeline has no {missing}: give prompt_embeds and, for guidance, negative_prompt_embeds, which "
                "encode_prompt of a pipeline with one makes"
            )
        encoder = TextEncoder(self.text_encoder, self.tokenizer, device=self._execution_device)
        distinct = list(dict.fromkeys(texts))
        encoder.warn_of_cuts(distinct)
        encoded = dict(zip(distinct, encoder.encode(distinct), strict=True))
        for text, rows in encoded.items():
            if not len(rows):
                raise InputError(f"prompt {shown(text)}: the tokenizer makes no token of it; give a text")
            if not bool(torch.isfinite(rows).all()):
                raise InputError(
                    f"text encoder: numbers that are not finite for the prompt {shown(text)}; its weights or their "
                    f"precision ({self.text_encoder.dtype}) are at fault: try float32"
                )
        return [encoded[text] for text in texts]


def as_embeddings(names: Sequence[str], given: Sequence[Tensor | None], width: int | None) -> Embeddings | None:
    """Embeddings and their mask as given, None without any; names: of both arguments; width: Y.

    Without a mask all tokens count. Raises InputError for other shapes, types, and numbers that are not finite.
    """
    embeds, mask = given
    if embeds is None:
        if mask is not None:
            raise InputError(f"{names[1]} without {names[0]}: give both, or the prompt as a text")
        return None
    if not isinstance(embeds, Tensor) or embeds.ndim != 3 or not embeds.is_floating_point() or not embeds.numel():
        kind = f"{embeds.dtype} {tuple(embeds.shape)}" if isinstance(embeds, Tensor) else type(embeds).__name__
        raise InputError(f"{names[0]}: {kind}; give a tensor of floats (samples, tokens, {width or 'width'})")
    if width is not None and embeds.shape[2] != width:
        raise InputError(f"{names[0]}: {embeds.shape[2]} wide, the transformer takes {width}; take its text encoder's")
    if not bool(torch.isfinite(embeds).all()):
        raise InputError(f"{names[0]}: not all numbers are finite")
    if mask is None:
        return Embeddings(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device))
    if not isinstance(mask, Tensor) or mask.shape != embeds.shape[:2]:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"{names[1]}: {shape}; give a tensor {tuple(embeds.shape[:2])}, 1 for tokens of the prompt")
    if not bool(((mask == 0) | (mask == 1)).all()) or not bool((mask != 0).any(1).all()):
        raise InputError(f"{names[1]}: give 1 for tokens of the prompt, at least one in each, and 0 for padding")
    return Embeddings(embeds, mask.bool())


def is_empty(prompt: Any) -> bool:
    """Whether a prompt says nothing, so that embeddings may stand for it."""
    return prompt is None or (isinstance(prompt, str) and not prompt)


def class_colors(names: Sequence[str], colors: Sequence[str] | None) -> dict[str, str]:
    """Class → "#RRGGBB". Raises InputError for colors that are not one for each name."""
    if "" in as_words("names", names):
        raise InputError(f"names {shown(names)}: a class has a name; give no empty ones")
    if colors is None:
        return draw_colors(names, " ".join(names))
    if len(as_words("colors", colors)) != len(names):
        raise InputError(f"{len(colors)} colors for {len(names)} names")
    given: dict[str, str] = {}
    for name, color in zip(names, colors, strict=True):
        code = color.upper()
        if code not in COLORS.values():
            raise InputError(f"{color!r} is not one of the model's colors: {', '.join(COLORS.values())}")
        if given.setdefault(name, code) != code:
            raise InputError(f"colors {shown(colors)}: {name!r} has two of them; a class has one color")
    if len(set(given.values())) < len(given):
        raise InputError(f"colors {shown(colors)}: two classes share one; give each its own")
    return given


def check_words(
    tasks: Sequence[str], names: Sequence[str], references: Any, pictures: int, colors: Sequence[str] | None = None
) -> list[str]:
    """The captions of the pictures referred to. Raises InputError for names, colors and captions that no task takes.

    pictures: how many the tasks refer to.
    """
    names, references = as_words("names", names), as_words("reference_prompts", references)
    colors = None if colors is None else as_words("colors", colors)
    known_tasks = [find_task(name) for name in tasks]
    title = " + ".join(tasks)
    if names and not any(task.phrase or task.name == "subject" for task in known_tasks):
        raise InputError(f"{title} names no classes; names belong to segmentation, boxes and subject")
    if colors and not any(task.phrase for task in known_tasks):
        raise InputError(f"{title} shows no classes in colors; colors belong to segmentation and boxes")
    if references and not any(task.references > 1 for task in known_tasks):
        those = " and ".join(task.name for task in TASKS.values() if task.references > 1)
        raise InputError(f"{title} refers to no captions; reference_prompts belong to {those}")
    if len(references) > pictures:
        raise InputError(f"{len(references)} reference_prompts for {pictures} pictures: give one for each at most")
    return references


def check_embedded(tasks: Sequence[str], names: Sequence[str], references: Sequence[str]) -> None:
    """Raise InputError for what belongs into a prompt that is given as embeddings; classes are read back by name."""
    if references or (names and not any(find_task(task).phrase for task in tasks)):
        word = "reference_prompts" if references else "names"
        raise InputError(f"{word} with prompt_embeds, which are of a whole prompt: give them to encode_prompt")


def _compose(
    tasks: Sequence[str], caption: str, names: Sequence[str], colors: Sequence[str], references: Sequence[str]
) -> str:
    """The prompt of these tasks: tokens and classes of each, then the caption. One that begins with a token stays.

    Raises InputError for one with the token of another task, and for classes and captions that it does not hold.
    """
    caption = caption.strip()
    if caption.startswith("[["):
        tokens = tuple(map(find_token, tasks))
        if not caption.startswith(tokens):
            raise InputError(
                f"prompt {shown(caption)}: it begins with [[, and not with {' or '.join(tokens)}; leave the token out, "
                "and the right one is put there"
            )
        phrases = [phrase for name in tasks for phrase in class_phrases(name, names, colors)]
        phrases += reference_phrases(["", *references])[1:]
        left_out = next((phrase for phrase in phrases if phrase not in caption), None)
        if left_out is not None:
            raise InputError(
                f"prompt {shown(caption)}: it begins with its token, so it stays as it is, and it lacks {left_out}; "
                "leave the token out, and all is put together"
            )
        return caption
    parts = [build_prompt(name, "", names, colors) for name in tasks[:-1]]
    return " ".join([*parts, build_prompt(tasks[-1], caption, names, colors, references)])


def _padded(rows: Sequence[Tensor]) -> Embeddings:
    embeds = pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return Embeddings(embeds, torch.arange(embeds.shape[1]) < lengths[:, None])
