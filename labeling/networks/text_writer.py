"""Labelers whose labels a model writes as text: one of transformers in batches, of vLLM, or behind an endpoint."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, field_validator, model_validator

from labeling.labeler import AddedLater, LanguageModel, Prepared, Row, RowError, required
from labeling.networks.batches import Inputs, as_inputs, in_batches
from labeling.networks.endpoint import Answer, Endpoint, address_problem, check_key, key_problem
from labeling.networks.pretrained import TORCH_TYPES, Dtype, PretrainedLabeler
from model.inputs import one_line
from model.pictures import Picture
from model.weights import weights_digest

_KEY = "OPENAI_API_KEY"
_JPEG_QUALITY = 90


class EndpointError(Exception):
    """An endpoint does not work, so that the row is not to blame: a job with many such rows stops the labeler."""


class WriterLabeler(PretrainedLabeler):
    """A labeler that asks a model to write something about a picture.

    What it needs of a subclass: `columns_of`, and a parameter `prompt`.
    """

    role = "captioner"

    class Parameters(PretrainedLabeler.Parameters):
        """model: hub name or path of a transformers image-to-text model, or what an endpoint calls its model; dtype:
        what it computes in, as it is stored by default, since a captioner may be large; tokens: most that it writes;
        prompt: what a model that takes instructions is asked; temperature: of the draw of each token, 0 for the most
        likely one; top_p: share of the likely tokens that are drawn from.

        engine: what computes the model where no endpoint does; vLLM in actors of `ray.data.llm`, whose engine takes
        what is in `extra`.

        endpoint: base address of an OpenAI-compatible API ("http://HOST:8000/v1"), "" to compute here; key: name of
        the environment variable that holds its key; retries: tries after the first; patience: seconds for a row with
        all its tries; side: pixels of the longer side of the picture that is sent, to vLLM too; extra: further fields
        of a request, null to leave one out."""

        dtype: Annotated[Dtype, AddedLater()] = "auto"
        tokens: int = Field(256, ge=1)
        prompt: str
        temperature: Annotated[float, AddedLater()] = Field(0.0, ge=0, le=2)
        top_p: Annotated[float, AddedLater()] = Field(1.0, gt=0, le=1)
        engine: Annotated[Literal["transformers", "vllm"], AddedLater()] = "transformers"
        endpoint: Annotated[str, AddedLater()] = ""
        key: Annotated[str, AddedLater()] = _KEY
        retries: Annotated[int, AddedLater()] = Field(5, ge=0, le=20)
        patience: Annotated[float, AddedLater()] = Field(120.0, gt=0, le=600)
        side: Annotated[int, AddedLater()] = Field(1024, ge=64)
        extra: Annotated[dict[str, Any], AddedLater()] = {}

        @field_validator("key")
        @classmethod
        def _names_a_variable(cls, key: str) -> str:
            if problem := key_problem(key):
                raise ValueError(problem)
            return key

        @field_validator("endpoint")
        @classmethod
        def _holds_no_secret(cls, endpoint: str) -> str:
            if endpoint and (problem := address_problem(endpoint)):
                raise ValueError(problem)
            return endpoint

        @model_validator(mode="after")
        def _endpoint_of_a_model(self) -> Self:
            if self.endpoint and not self.model:
                raise ValueError("an endpoint needs to be told which of its models to use; set model too")
            if self.engine == "vllm" and (self.endpoint or not self.model):
                raise ValueError("engine vllm computes the model that is named, and no endpoint; set model alone")
            return self

    parameters: Parameters

    def __init__(self, group: str, parameters: BaseModel) -> None:
        super().__init__(group, parameters)
        self._tokenizer: Any = None

    def columns_of(self, text: str) -> Row:
        """The columns of a row for which the model wrote `text`, which is one line and not empty."""
        raise NotImplementedError

    @property
    def uses_device(self) -> bool:
        return self.has_network and not self._is_asked

    @property
    def _is_asked(self) -> bool:
        """Whether the model is computed elsewhere, and sent requests."""
        return bool(self.parameters.endpoint) or self.parameters.engine == "vllm"

    @property
    def language_model(self) -> LanguageModel | None:
        own = self.parameters
        if own.engine != "vllm":
            return None
        dtypes = {} if own.dtype == "auto" else {"dtype": TORCH_TYPES[own.dtype]}
        limits = {"limit_mm_per_prompt": {"image": 1}}
        folder = Path(own.model)
        source = str(folder.resolve()) if folder.exists() else own.model
        return LanguageModel(source, {**limits, **dtypes, **own.extra})

    @property
    def written_by(self) -> str:
        """What writes, as rows name their model; "" where none is named."""
        if self.parameters.endpoint:
            # Some servers call a model by its path, which is another one on another machine.
            name = self.parameters.model
            return f"{Path(name).name if name.startswith('/') else name} behind an endpoint"
        if self.parameters.engine == "vllm":
            folder = self.model_folder()
            named = json.loads((folder / "config.json").read_text()).get("architectures") or ["model"]
            return f"{named[0]} {weights_digest(folder)[:8]} in vLLM"
        return self._network_label

    def weights_digest(self) -> str:
        return "" if self.parameters.endpoint else super().weights_digest()

    def load_processor(self) -> None:
        if self.parameters.endpoint:
            check_key(self.parameters.key, _KEY, f"{self.group}.key")
        elif not self._is_asked:
            super().load_processor()

    def load(self) -> None:
        if self._is_asked:
            self.load_processor()
        else:
            super().load()

    def loader(self) -> Any:
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText

    def processor_of(self, folder: Path) -> Any:
        from transformers import AutoProcessor, AutoTokenizer

        # A pair of encoder and decoder has an image processor and a tokenizer, and no processor of both.
        if self._config.model_type == "vision-encoder-decoder":
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            return super().processor_of(folder)
        processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self._tokenizer = processor.tokenizer
        return processor

    def process(self, picture: Picture, **settings: Any) -> Inputs:
        from PIL import Image

        image = Image.fromarray(picture)
        if getattr(self._processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": self.parameters.prompt}]
            messages = [{"role": "user", "content": content}]
            settings["text"] = self._processor.apply_chat_template(messages, add_generation_prompt=True)
        return as_inputs(self._processor(images=image, return_tensors="pt", **settings))

    def prepare(self, row: Row) -> Prepared:
        required(row, "images.image")
        picture = np.asarray(row["images.image"])
        if self._is_asked:
            return Prepared(self._request(picture, row["id"]))
        return Prepared((self.pixels_of(picture), seed_of(row["id"])))

    def infer(self, inputs: list[Any]) -> list[Any]:
        own = self.parameters
        if own.endpoint:
            return Endpoint(own.endpoint, own.key, own.retries, own.patience).ask(inputs)
        return in_batches(
            [given for given, _ in inputs],
            self.device,
            lambda batch, _counts, seeds: self._write(batch, seeds),
            [seed for _, seed in inputs],
        )

    def finish(self, output: Any, context: Any) -> Row:
        if isinstance(output, Answer):
            if output.error:
                raise (RowError if output.is_row else EndpointError)(output.error)
            text = output.text
        else:
            text = self._tokenizer.decode(output, skip_special_tokens=True)
        if not (text := one_line(text)):
            raise RowError("the model wrote nothing")
        return self.columns_of(text)

    def _request(self, picture: Picture, identity: str) -> dict[str, Any]:
        own = self.parameters
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_jpeg(picture, own.side)}"}},
            {"type": "text", "text": own.prompt},
        ]
        body: dict[str, Any] = {
            "model": own.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": own.tokens,
            "temperature": own.temperature,
        }
        if own.temperature:
            body |= {"top_p": own.top_p, "seed": seed_of(identity)}
        more = own.extra if own.endpoint else {}
        return {key: value for key, value in {**body, **more}.items() if value is not None}

    def _write(self, batch: dict[str, Any], seeds: Sequence[int]) -> list[NDArray[np.int32]]:
        """The tokens of each row, without the question."""
        import torch

        sampling = {}
        if self.parameters.temperature:
            sampling["logits_processor"] = [_draw(seeds, self.parameters.temperature, self.parameters.top_p)]
        tokens = self._network.generate(
            **self.prepared(batch), max_new_tokens=self.parameters.tokens, do_sample=False, num_beams=1, **sampling
        )
        question = batch.get("input_ids")
        if question is not None and torch.equal(tokens[:, : question.shape[1]], question):  # most models repeat it
            tokens = tokens[:, question.shape[1] :]
        return list(tokens.to(torch.int32).cpu().numpy())


def seed_of(identity: str) -> int:
    """What the draws of a row are seeded by: its id, so that they depend on no other row."""
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=4).digest(), "big") >> 1


def _draw(seeds: Sequence[int], temperature: float, top_p: float) -> Any:
    """A logits processor after which the largest score is a draw from the distribution, of each row by its own seed.

    The largest of the scores with Gumbel noise is distributed as a draw from their softmax (Maddison, Tarlow & Minka,
    2014, A* Sampling); transformers' own draws take one generator for all rows of a batch.
    """
    import torch
    from transformers import LogitsProcessor, TopPLogitsWarper

    class Draw(LogitsProcessor):
        def __init__(self) -> None:
            self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            self.nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores = scores.float() / temperature
            if self.nucleus is not None:
                scores = self.nucleus(input_ids, scores)
            noise = torch.stack(
                [torch.empty(scores.shape[-1]).exponential_(generator=one).log() for one in self.generators]
            )
            return scores - noise.to(scores.device)

    return Draw()


def _jpeg(picture: Picture, side: int) -> str:
    """A picture as JPEG in base64, its longer side at most so many pixels."""
    import cv2
    import simplejpeg

    scale = side / max(picture.shape[:2])
    if scale < 1:
        size = tuple(max(1, round(length * scale)) for length in picture.shape[1::-1])
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), _JPEG_QUALITY, "RGB", "420")
    return base64.b64encode(encoded).decode()
