"""What a step of a run was computed from, as a page of pictures: the plan and the datasets tell it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from labeling.dataset import open_store
from model.constants import RAY_SCALE
from model.inputs import InputError
from model.pictures import Picture
from model.prompts import RAYS, find_task
from pipelines.reports.overlays import Drawing, Inliner, thumbnail
from pipelines.reports.page import fill_template, written_now
from training.anomalies import read_skipped
from training.run import encoders, read_run

if TYPE_CHECKING:
    from torch import Tensor

    from model.codecs import ImageCodec
    from training.batch import Sample

CHARACTERS, MAX_SAMPLES, SIDE = 8_000_000, 64, 128
_PAGE = "replay.html"


def replay(uri: str, step: int) -> str:
    """Write RUN/replay/step-….html, and return its address.

    step: counted from 1, as metrics and messages name it. Raises InputError for a run without a manifest, for a step
    that it does not have, and for shards that are not what the run began with.
    """
    from model.codecs import load_codec
    from training.objective import draw_noise
    from training.reader import PlanReader
    from training.sample_names import SampleNames

    store = open_store(uri)
    config, manifest = read_run(uri)
    if not 1 <= step <= config.steps:
        raise InputError(f"{uri}: has the steps 1 to {config.steps}, so no step {step}")
    record = next((one for one in read_skipped(store) if one.get("step") == step), {})
    losses = {int(sample["index"]): sample["loss"] for sample in record.get("samples", ())}
    codec_name, _ = encoders(manifest, config)
    codec, names = load_codec(codec_name), SampleNames(manifest, config)
    reader, inline = PlanReader(manifest, config, codec_name), Inliner(CHARACTERS)
    places = sorted(range(config.batch), key=lambda place: (step - 1) * config.batch + place not in losses)
    shown: list[dict[str, Any]] = []
    for planned, sigmas, in_loss in names.plan.draw(step - 1, places[:MAX_SAMPLES]):
        if inline.full:
            break
        sample = reader.read_sample(planned, sigmas, in_loss)
        noise = draw_noise(sample.noise_seed, sample.latents.shape)
        facts = names.name(planned)
        shown.append(
            {
                **facts,
                "loss": losses.get(planned.index),
                "dropped": planned.drop_caption,
                "prompt": sample.prompt or names.prompt(planned),
                "frames": [_frame(sample, place, noise[place], codec, inline) for place in range(len(sigmas))],
            }
        )
    page = fill_template(
        _PAGE,
        title=f"Step {step} of {config.name}",
        uri=store.uri,
        written=written_now(),
        batch=config.batch,
        reason=record.get("reason", ""),
        samples=shown,
        left_out=config.batch - len(shown),
    )
    name = f"replay/step-{step:06d}.html"
    store.put(name, page.encode())
    return f"{store.uri}/{name}"


def _frame(sample: Sample, place: int, noise: Tensor, codec: ImageCodec, inline: Inliner) -> list[Drawing]:
    """A frame clean, and as the model saw it. noise: (C, h, w)."""
    import torch

    sigma, counts = float(sample.sigmas[place]), bool(sample.in_loss[place])
    clean = torch.as_tensor(sample.latents[place]).float()
    noisy = (1 - sigma) * clean + sigma * noise
    is_rays = find_task(sample.task).condition == RAYS and place % 2 == 1
    what = "rays" if is_rays else f"frame {place}"
    state = f"σ {sigma:.2f}" if counts else "known, not in the loss"
    drawings = []
    for title, latent in ((what, clean), (state, noisy)):
        if not bool(torch.isfinite(latent).all()):
            drawings.append(Drawing(title, note="its latent holds numbers that are not finite"))
            continue
        picture = thumbnail(_directions(latent) if is_rays else _decoded(codec, latent), SIDE)
        height, width = picture.shape[:2]
        alt = f"{title} of sample {sample.index}"
        drawings.append(Drawing(title, inline(picture, sharp=True), alt, width, height))
    return drawings


def _decoded(codec: ImageCodec, latent: Tensor) -> Picture:
    """(C, h, w) → (8h, 8w, 3)."""
    pixels = codec.decode(latent[None])[0].clamp(-1, 1).permute(1, 2, 0)
    return np.asarray(((pixels + 1) * 127.5).round().numpy(), np.uint8)


def _directions(latent: Tensor) -> Picture:
    """Rays (C, h, w) as (8h, 8w, 3): the directions as colors."""
    colors = ((latent[:3] / RAY_SCALE + 1) * 127.5).clamp(0, 255).round().permute(1, 2, 0).numpy()
    return np.asarray(colors, np.uint8).repeat(8, 0).repeat(8, 1)
