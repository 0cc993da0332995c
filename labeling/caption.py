"""Captions: written by an image-to-text model, or put together from what other labels and the source say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from labeling import labeler
from labeling.labeler import Labeler, Row, RowError
from model.pictures import Picture

_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PLURALS = {"person": "people", "bus": "buses", "bench": "benches", "couch": "couches", "sheep": "sheep",
            "knife": "knives", "mouse": "mice", "skis": "skis", "scissors": "scissors", "wine glass": "wine glasses",
            "sandwich": "sandwiches", "toothbrush": "toothbrushes"}  # fmt: skip
_ASK = "Describe this picture in 100 to 150 words: what is in it, where, its colours, light and style."


class CaptionLabeler(Labeler):
    """What a picture shows, said without more than is known."""

    name = "caption"
    version = 1
    reads = ("images.image", "images.text", "boxes.boxes", "boxes.names", "pose.keypoints")
    schema = pa.schema([("caption", pa.string())])

    class Parameters(labeler.Parameters):
        """model: hub name or path of a transformers image-to-text model, "" to compose; tokens: most that it writes;
        prompt: what a model that takes instructions is asked."""

        model: str = ""
        tokens: int = Field(256, ge=1)
        prompt: str = _ASK

    parameters: Parameters

    def __init__(self, group: str, parameters: labeler.Parameters) -> None:
        super().__init__(group, parameters)
        self._network: Any = None
        self._processor: Any = None
        self._tokenizer: Any = None

    @property
    def model(self) -> str:
        return self.parameters.model or "composed"

    def weights_digest(self) -> str:
        if not self.parameters.model:
            return ""
        from model.weights import model_folder, weights_digest

        return weights_digest(model_folder(self.parameters.model, "captioner"))

    def load(self) -> None:
        if not self.parameters.model:
            return
        import torch
        from transformers import (
            AutoConfig,
            AutoImageProcessor,
            AutoModelForImageTextToText,
            AutoProcessor,
            AutoTokenizer,
            VisionEncoderDecoderModel,
        )

        from model.weights import model_folder

        folder = model_folder(self.parameters.model, "captioner")
        self._device = "cuda" if self.gpus and torch.cuda.is_available() else "cpu"
        if self._device == "cpu":
            torch.set_num_threads(1)
        kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        loader: Any = VisionEncoderDecoderModel if kind == "vision-encoder-decoder" else AutoModelForImageTextToText
        network = loader.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self._network = network.to(self._device).eval()
        if kind == "vision-encoder-decoder":
            self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        else:
            self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            self._tokenizer = self._processor.tokenizer

    def label_row(self, row: Row) -> Row:
        picture = row["images.image"]
        if picture is None:
            raise RowError("no images: images.image is missing")
        if self._network is not None:
            return {"caption": self._write(np.asarray(picture))}
        return {"caption": compose(np.asarray(picture), row)}

    def _write(self, picture: Picture) -> str:
        import torch
        from PIL import Image

        image = Image.fromarray(picture)
        if getattr(self._tokenizer, "chat_template", None):
            ask = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self.parameters.prompt}]}]
            text = self._processor.apply_chat_template(ask, add_generation_prompt=True)
            inputs = self._processor(images=image, text=text, return_tensors="pt")
        else:
            inputs = self._processor(images=image, return_tensors="pt")
        with torch.no_grad():
            written = self._network.generate(
                **inputs.to(self._device), max_new_tokens=self.parameters.tokens, do_sample=False
            )
        asked = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        caption = self._tokenizer.decode(written[0, asked:], skip_special_tokens=True)
        return " ".join(caption.split())


def compose(picture: Picture, row: Row) -> str:
    """Sentences from the source's text, detected objects and where they are, poses, and the light of the picture."""
    sentences = []
    if row["images.text"]:
        text = " ".join(row["images.text"].split())
        sentences.append(text if text.endswith((".", "!", "?")) else f"{text}.")
    height, width = picture.shape[:2]
    boxes, names = row["boxes.boxes"] or [], row["boxes.names"] or []
    kinds = list(dict.fromkeys(names))
    if kinds:
        amounts = [_amount(names.count(kind), kind) for kind in kinds]
        sentences.append(f"The picture shows {_listed(amounts)}.")
        single = [(kind, boxes[names.index(kind)]) for kind in kinds if names.count(kind) == 1]
        sentences += [f"The {kind} {_place(box, width, height)}." for kind, box in single[:3]]
    raised = sum(_arms_raised(person) for person in row["pose.keypoints"] or [])
    if raised:
        sentences.append(f"{_COUNTS[min(raised, 9)].capitalize()} {'person has' if raised == 1 else 'people have'} "
                         f"{'an arm' if raised == 1 else 'arms'} raised.")  # fmt: skip
    sentences.append(_light(picture))
    return " ".join(sentences)


def _amount(count: int, name: str) -> str:
    if count == 1:
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}" if name not in ("skis", "scissors") else name
    many = _COUNTS[count] if count < len(_COUNTS) else str(count)
    return f"{many} {_PLURALS.get(name, f'{name}s')}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _place(box: dict[str, float], width: int, height: int) -> str:
    """Where a box lies and how large it is."""
    area = (box["x1"] - box["x0"]) * (box["y1"] - box["y0"]) / (width * height)
    if area > 0.6:
        return "fills most of it"
    centre = (box["x0"] + box["x1"]) / 2 / width
    side = "on the left" if centre < 0.38 else "on the right" if centre > 0.62 else "in the middle"
    return f"is small, {side}" if area < 0.03 else f"is {side}"


def _arms_raised(person: list[dict[str, float]]) -> bool:
    """Whether a wrist that is seen lies above the eyes (mediapipe's 33 points or COCO's 17)."""
    eyes, wrists = ((2, 5), (15, 16)) if len(person) == 33 else ((1, 2), (9, 10))
    seen = [person[index] for index in (*eyes, *wrists) if person[index]["score"] > 0.6]
    tops = [person[index]["y"] for index in eyes if person[index] in seen]
    return bool(tops) and any(person[index] in seen and person[index]["y"] < min(tops) for index in wrists)


def _light(picture: Picture) -> str:
    """Brightness and colour, from the pixels."""
    levels = picture.reshape(-1, 3).astype(np.float32)
    spread = float((levels.max(1) - levels.min(1)).mean())
    gray = float(levels.mean())
    tone = "dark" if gray < 70 else "bright" if gray > 180 else "evenly lit"
    if spread < 6:
        return f"It is black and white, and {tone}."
    red, _, blue = levels.mean(0)
    warm = "warm" if red - blue > 18 else "cool" if blue - red > 12 else "neutral"
    return f"It is {tone}, in {warm} colours."
