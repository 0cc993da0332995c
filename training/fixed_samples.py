"""Pictures that a run draws at every checkpoint: the same rows from the same noise, by the averaged weights.

F frames, C channels, h × w latent height and width, L prompt tokens, Y text width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from labeling.dataset import Store
from model.codecs import load_codec
from model.conditions import directions_of
from model.inputs import InputError
from model.pictures import encode_png
from model.prompts import DEGRADED, RAYS, find_task
from model.sampling import sample_frames
from training.batch import Sample, StepBatch
from training.config import TrainingConfig
from training.device import DeviceBatches
from training.objective import draw_noise
from training.plan.manifest import Manifest
from training.plan.planned_sample import PlannedSample
from training.reader import PlanReader
from training.sample_folders import FOLDER, INDEX, step_folder
from training.sample_names import SampleNames

if TYPE_CHECKING:
    from training.optimizer import MovingAverage

_SEARCHED = 64  # steps of the plan in which rows of every task are looked for


@dataclass(frozen=True)
class _Drawn:
    """A sample to draw, with its text; the empty one, (L, Y); and 1 for each frame that is generated."""

    sample: Sample
    empty: Any
    mask: tuple[int, ...]
    direction: str
    facts: dict[str, Any]


class FixedSamples:
    """Draws a few rows of every task. All workers draw all of them, since shards of a model compute together."""

    def __init__(self, manifest: Manifest, config: TrainingConfig, store: Store, writes: bool) -> None:
        """manifest: of validation, or of what is trained on where there is none; writes: whether this worker does."""
        self.manifest, self.config, self.store, self.writes = manifest, config, store, writes
        self._drawn: list[_Drawn] = []
        self._codec_name = ""

    def read(self, device: DeviceBatches) -> None:
        """Read what is drawn. Raises InputError for a shard that changed."""
        names = SampleNames(self.manifest, self.config)
        reader = PlanReader(self.manifest, self.config)
        self._codec_name = device.codec_name
        for planned in _choose(names, self.config.validation.pictures):
            both = [replace(planned, drop_caption=dropped) for dropped in (False, True)]
            none = np.zeros(planned.frames, np.float32), np.ones(planned.frames, bool)
            read = [reader.read_sample(each, *none) for each in both]
            facts = {**names.name(planned), "prompt": read[0].prompt or names.prompt(both[0])}
            sample, empty = device.encoded(StepBatch(0, [read], 1)).packs[0]
            for direction, mask in _directions(sample):
                self._drawn.append(_Drawn(sample, empty.text, mask, direction, facts))

    @torch.no_grad()
    def draw(self, step: int, model: nn.Module, average: MovingAverage, device: torch.device) -> None:
        """Write RUN/samples/step-…: the pictures, and last samples.json about them. Called by all workers together."""
        with average.applied():
            latents = [self._attempt(model, each, device) for each in self._drawn]
        if not self.writes:
            return
        codec = load_codec(self._codec_name, device)
        records: list[dict[str, Any]] = []
        for each, frames in zip(self._drawn, latents, strict=True):
            if isinstance(frames, str):
                records.append({**each.facts, "direction": each.direction, "note": frames})
                continue
            name = f"{each.sample.task}-{each.direction}-{each.facts['index']}"
            clean = torch.as_tensor(each.sample.latents).to(device).float()
            shown = [place for place in range(len(clean)) if not _is_rays(each.sample.task, place)]
            files: dict[str, list[str]] = {"inputs": [], "output": [], "truth": []}
            for place in shown:
                kinds = (("output", frames), ("truth", clean)) if each.mask[place] else (("inputs", clean),)
                for kind, source in kinds:
                    folder = "" if kind == "output" else "given/"  # what is given is the same at every step
                    file = f"{folder}{name}-{place}-{kind}.png"
                    where = f"{FOLDER}/{file}" if folder else f"{step_folder(step)}/{file}"
                    self.store.put(where, encode_png(_picture(codec, source[place])))
                    files[kind].append(file)
            records.append({**each.facts, "direction": each.direction, **files})
        self.store.put(f"{step_folder(step)}/{INDEX}", json.dumps(records, indent=1, ensure_ascii=False).encode())

    def _attempt(self, model: nn.Module, drawn: _Drawn, device: torch.device) -> Tensor | str:
        """As `_denoised`; of a row whose numbers are not finite, what is wrong: the training goes on."""
        try:
            return self._denoised(model, drawn, device)
        except InputError as error:
            return str(error)

    def _denoised(self, model: nn.Module, drawn: _Drawn, device: torch.device) -> Tensor:
        """(F, C, h, w) of all frames of a sample."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_image_seq_len=256, max_image_seq_len=4096, max_shift=1.15
        )
        sample, guidance = drawn.sample, self.config.validation.guidance
        clean = torch.as_tensor(sample.latents).to(device).float()[None]
        has_rays = find_task(sample.task).condition == RAYS
        images = range(0, len(drawn.mask), 2) if has_rays else range(len(drawn.mask))
        known = [place for place in images if not drawn.mask[place]]
        texts = [torch.as_tensor(text).to(device).float() for text in (drawn.empty, sample.text)]

        def transformer(latents: Tensor, levels: Tensor, *_: Any) -> Tensor:
            """Called with one sample, or with it twice: for the empty prompt and for its own."""
            own = texts if len(latents) == 2 else texts[1:]
            return torch.stack(model(list(latents), list(levels), own)).float()

        unused = torch.empty(0)
        return sample_frames(
            transformer,
            scheduler,
            draw_noise(sample.noise_seed, clean.shape[1:]).to(device)[None],
            clean[:, known] if known else None,
            drawn.mask,
            unused,
            unused,
            self.config.validation.denoise_steps,
            guidance,
            clean[:, 1::2] if has_rays else None,
        )[0]


def _choose(names: SampleNames, each: int) -> Iterator[PlannedSample]:
    """The first samples of every task in the plan that show different rows, in the order of the tasks."""
    counts = {task: min(each, count) for task, count in names.manifest.counts().items()}
    found: dict[str, dict[tuple[int, ...], PlannedSample]] = {task: {} for task in sorted(counts)}
    for step in range(_SEARCHED):
        for planned in names.plan.step(step):
            rows = found[planned.task]
            if len(rows) < each:
                rows.setdefault((planned.stream, planned.shard, planned.row_group, planned.row), planned)
        if all(len(rows) >= counts[task] for task, rows in found.items()):
            break
    for rows in found.values():
        yield from rows.values()


def _directions(sample: Sample) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(direction, 1 for each frame to generate): the image from all else, and the condition from images."""
    task, frames = find_task(sample.task), len(sample.latents)
    if task.condition == RAYS:
        yield "to_image", tuple(int(place > 0 and place % 2 == 0) for place in range(frames))
        return  # rays are no pictures
    yield "to_image", (1,) + (0,) * (frames - 1)
    if task.condition not in (None, DEGRADED) and "from_image" in directions_of(task.name):
        yield "from_image", (0, 1)


def _is_rays(task: str, place: int) -> bool:
    return find_task(task).condition == RAYS and place % 2 == 1


def _picture(codec: Any, latent: Tensor) -> Any:
    """(C, h, w) → (8h, 8w, 3) uint8."""
    pixels = codec.decode(latent[None].float())[0].clamp(-1, 1)
    return ((pixels.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
