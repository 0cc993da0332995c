"""Every task of OneDiffusion in one call, for anyone who knows diffusers.

Symbols as in docs/model.md: B samples, F frames, V views, h × w latents; H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from model.arguments import (
    OUTPUT_TYPES,
    as_cameras,
    as_texts,
    check_choice,
    check_numbers,
    check_size,
    negative_prompts,
)
from model.cameras import camera_latents, recover_cameras
from model.codecs import ImageCodec
from model.codecs.autoencoder_dct import AutoencoderDCT
from model.constants import LATENT_CHANNELS, LATENT_FACTOR, SIZE_STEP
from model.frames import Frames, Known, plan_frames
from model.inputs import InputError
from model.lora import LoraMixin
from model.outputs import OneDiffusionOutput, read_pictures
from model.pictures import Picture, as_picture, aspect_bucket, fit_picture
from model.prompts import RAYS, build_prompt, draw_colors, find_task
from model.sampling import ConditionTimestep, sample_frames
from model.text import TextEncoder
from model.transformer import NextDiT
from model.weights import pipeline_folder

# model_index.json names the module of each part as it was when the folder was written: by an older version of this
# project, or by the released code. So these parts are recognized by the names of their classes.
_OWN_PARTS = {part.__name__: part.__module__ for part in (NextDiT, AutoencoderDCT)}

Pictures = Sequence[Any]  # each a PIL image, (H, W, 3) array or (3, H, W) tensor
StepCallback = Callable[[DiffusionPipeline, int, Tensor, dict[str, Any]], dict[str, Any]]


class OneDiffusionPipeline(LoraMixin, DiffusionPipeline):
    """The transformer with its image codec, text encoder and scheduler.

    `from_pretrained` takes a folder or hub name in the released layout; `save_pretrained` writes one.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        default_size: int = 512,
    ) -> None:
        """default_size: pictures are sampled around default_size² pixels where no height and width are given."""
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        self.register_to_config(default_size=default_size)
        self._interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> OneDiffusionPipeline:
        """A pipeline in a folder, or of a hub name, whose safetensors are downloaded once. Raises InputError."""
        folder = pipeline_folder(str(pretrained_model_name_or_path))
        return super().from_pretrained(str(folder), **{"use_safetensors": True, **kwargs})

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """The configuration as diffusers reads it, with the present modules of the parts that this project defines."""
        config = super().load_config(*args, **kwargs)
        index = config[0] if isinstance(config, tuple) else config
        for name, part in index.items():
            class_name = "NextDiT" if name == "transformer" else part[-1] if isinstance(part, list | tuple) else None
            if class_name in _OWN_PARTS:
                index[name] = [_OWN_PARTS[class_name], class_name]
        return config

    @property
    def interrupt(self) -> bool:
        """Whether the call ends after this step; a callback may set `_interrupt`."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        task: str | Sequence[str],
        images: Pictures | Sequence[Pictures] | Any | None = None,
        prompt: str | Sequence[str] = "",
        known: Known | None = None,
        *,
        denoise_mask: Sequence[int] | None = None,
        negative_prompt: str | Sequence[str] | None = "",
        names: Sequence[str] = (),
        colors: Sequence[str] | None = None,
        reference_prompts: Sequence[str] = (),
        azimuth: Sequence[float] | None = None,
        elevation: Sequence[float] | None = None,
        distance: Sequence[float] | None = None,
        c2w: Tensor | None = None,
        intrinsics: Tensor | None = None,
        normalize_cameras: bool | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        condition_timestep: ConditionTimestep = "last",
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> OneDiffusionOutput | tuple[Any, ...]:
        """Sample one task, or several conditions of one image: generate the frames that are not known.

        task: a name of model.prompts.TASKS. images: the pictures of the known frames, in frame order, each cropped
        about its center to the size; known: what they are, the "condition" (default) or the "image"; denoise_mask: 1
        for each frame to generate, instead of `known`, for any other combination.
        prompt: the caption (for editing the instruction), to which the task's token is added unless it begins with one;
        a sequence is a batch over the same images, or over `images` if that is a sequence of sequences.
        negative_prompt: what guidance leads away from, for all prompts or one for each; None is the empty one.
        names: classes of segmentation and boxes, or the item of subject; colors: "#RRGGBB" for each of them,
        drawn from the names otherwise. reference_prompts: captions of the pictures that identity and subject refer to.
        azimuth, elevation, distance (degrees, V each), or c2w (V, 4, 4) OpenGL camera-to-world: the cameras of views;
        intrinsics (V, 3, 3) with image width 1. normalize_cameras: as in training; by default for c2w only.
        height, width: of every frame, by default the aspect of the first image around `default_size`².
        num_inference_steps, guidance_scale: by default those of the task. condition_timestep: see sample_frames.
        latents: noise (B, F, 16, h, w) to begin with. output_type: "pil", "np" (H, W, 3) in 0…1, "pt" or "latent".
        Raises InputError for what does not go together.
        """
        tasks, captions = as_texts("task", task), as_texts("prompt", prompt)
        check_choice("output_type", output_type, OUTPUT_TYPES)
        check_choice("condition_timestep", condition_timestep, get_args(ConditionTimestep))
        check_numbers(
            {
                "num_inference_steps": num_inference_steps,
                "num_images_per_prompt": num_images_per_prompt,
                "height": height,
                "width": width,
                "guidance_scale": guidance_scale,
            }
        )
        negatives = negative_prompts(negative_prompt, len(captions), num_images_per_prompt)
        known_pictures = _pictures(images, len(captions))
        cameras = as_cameras(azimuth, elevation, distance, c2w, intrinsics, normalize_cameras)
        views = 0 if cameras is None else len(cameras[0])
        frames = plan_frames(tasks, len(known_pictures[0]), known, denoise_mask, views)
        class_colors = _colors(names, colors)
        prompts = [
            _prompt(tasks, caption, names, list(class_colors.values()), reference_prompts)
            for caption in captions
            for _ in range(num_images_per_prompt)
        ]
        width, height = self._size(known_pictures[0], frames, width, height)
        guidance = find_task(tasks[0]).guidance if guidance_scale is None else guidance_scale
        embeds, mask = self._embed(prompts, negatives if guidance > 1 else [])
        shape = (len(prompts), len(frames.mask), *_latent_shape(width, height))
        noise = self._noise(shape, generator, latents)
        clean = torch.stack([self._encode(per_sample, width, height) for per_sample in known_pictures])
        clean = clean.repeat_interleave(len(prompts) // len(known_pictures), 0).to(noise)
        rays = None
        if RAYS in frames.kinds:
            rays = noise.new_zeros(len(frames.kinds) // 2, *shape[2:])
            if cameras is not None:
                rays = camera_latents(*cameras[:2], shape[-1], normalize=cameras[2]).to(noise)
        steps = max(find_task(name).steps for name in tasks) if num_inference_steps is None else num_inference_steps
        with self.progress_bar(total=steps) as bar:
            result = sample_frames(
                self.transformer,
                self.scheduler,
                noise,
                clean,
                frames.mask,
                embeds.to(noise),
                mask.to(noise.device),
                steps,
                guidance,
                None if rays is None else rays[None].expand(len(prompts), *rays.shape),
                condition_timestep,
                lambda step, steps: bar.update(),
                self._after_step(callback_on_step_end, callback_on_step_end_tensor_inputs),
            )
        fields = {} if output_type == "latent" else self._read(result, frames, class_colors, intrinsics, output_type)
        self.maybe_free_model_hooks()
        output = OneDiffusionOutput(latents=result, **fields)
        return output if return_dict else output.to_tuple()

    def _size(
        self, pictures: Sequence[Picture], frames: Frames, width: int | None, height: int | None
    ) -> tuple[int, int]:
        """(width, height) of every frame in pixels. Raises InputError for sizes that do not serve."""
        size = self.config.default_size // SIZE_STEP * SIZE_STEP
        if width is None or height is None:
            if width or height:
                raise InputError("give height and width, or neither")
            if RAYS in frames.kinds or not pictures:
                width = height = size
            else:
                width, height = aspect_bucket(pictures[0].shape[1], pictures[0].shape[0], size)
        check_size(width, height)
        if RAYS in frames.kinds and width != height:
            raise InputError(f"views must be square to have cameras, not {width} × {height}")
        return width, height

    def _embed(self, prompts: Sequence[str], negatives: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Padded embeddings (B or 2B, L, Y) and their mask, those of the negative prompts, if any, first."""
        encoder = TextEncoder(self.text_encoder, self.tokenizer, device=self._execution_device)
        texts = [*negatives, *prompts]
        distinct = list(dict.fromkeys(texts))
        encoded = dict(zip(distinct, encoder.encode(distinct), strict=True))
        rows = [encoded[text] for text in texts]
        embeds = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(embeds.shape[1]) < lengths[:, None]
        return embeds.to(self._execution_device), mask.to(self._execution_device)

    def _encode(self, pictures: Sequence[Picture], width: int, height: int) -> Tensor:
        """(K, 16, h, w) latents of known pictures."""
        device = self._execution_device
        codec = ImageCodec(self.vae, device=device)
        latents = []
        for picture in pictures:
            pixels = torch.from_numpy(fit_picture(picture, width, height)).permute(2, 0, 1)[None]
            latents.append(codec.encode(pixels.to(device).float() / 127.5 - 1)[0])
        return torch.stack(latents) if latents else torch.zeros(0, *_latent_shape(width, height), device=device)

    def _noise(self, shape: tuple[int, ...], generator: Any, latents: Tensor | None) -> Tensor:
        """The latents to begin with, of this shape: those given, or new noise. Raises InputError where they differ."""
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise InputError(f"{len(generator)} generators for {shape[0]} samples")
        if latents is None:
            return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.transformer.dtype)
        if tuple(latents.shape) != shape:
            raise InputError(f"latents of shape {tuple(latents.shape)}: they must be {shape}")
        return latents.to(self._execution_device, self.transformer.dtype)

    def _after_step(
        self, callback: StepCallback | None, inputs: Sequence[str]
    ) -> Callable[[int, Tensor, Tensor], Tensor | None] | None:
        """A callback in the form of diffusers as the `after_step` of sample_frames."""
        unknown = set(inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise InputError(
                f"callback_on_step_end_tensor_inputs {sorted(unknown)}: there is {self._callback_tensor_inputs}"
            )
        self._interrupt = False
        if callback is None:
            return None

        def after(index: int, timestep: Tensor, latents: Tensor) -> Tensor | None:
            changed = callback(self, index, timestep, {"latents": latents} if inputs else {})
            if self._interrupt:
                return None
            return (changed or {}).get("latents", latents)

        return after

    def _read(
        self, latents: Tensor, frames: Frames, colors: dict[str, str], intrinsics: Tensor | None, form: str
    ) -> dict[str, Any]:
        """Pictures of the frames generated, and what can be read from them."""
        codec = ImageCodec(self.vae, device=self._execution_device)
        places = [place for place in frames.generated if frames.kinds[place] != RAYS]
        pixels = [codec.decode(sample[places].to(self._execution_device)) for sample in latents] if places else []
        fields = read_pictures(pixels, [frames.kinds[place] for place in places], colors, form)
        if any(frames.kinds[place] == RAYS for place in frames.generated):
            fields["cameras"] = [recover_cameras(sample[1::2].float().cpu(), intrinsics) for sample in latents]
        return fields


def _latent_shape(width: int, height: int) -> tuple[int, int, int]:
    """(C, h, w) of a frame of so many pixels."""
    return LATENT_CHANNELS, height // LATENT_FACTOR, width // LATENT_FACTOR


def _pictures(images: Any, samples: int) -> list[list[Picture]]:
    """The known pictures of each sample, or one list for all. Raises InputError for batches of other lengths."""
    if images is None:
        return [[]]
    if not isinstance(images, (list, tuple)):
        images = [images]
    if not any(isinstance(one, (list, tuple)) for one in images):
        return [[as_picture(one) for one in images]]
    if len(images) != samples or len({len(one) for one in images}) > 1:
        raise InputError(f"{len(images)} sequences of images for {samples} prompts: give one each, of the same length")
    return [[as_picture(one) for one in per_sample] for per_sample in images]


def _prompt(
    tasks: Sequence[str], caption: str, names: Sequence[str], colors: Sequence[str], references: Sequence[str]
) -> str:
    """The prompt of these tasks: tokens and classes of each, then the caption. One that begins with a token stays."""
    if caption.startswith("[["):
        return caption
    parts = [build_prompt(name, "", names, colors) for name in tasks[:-1]]
    return " ".join([*parts, build_prompt(tasks[-1], caption, names, colors, references)])


def _colors(names: Sequence[str], colors: Sequence[str] | None) -> dict[str, str]:
    """Class → "#RRGGBB"."""
    if colors is None:
        return draw_colors(names, " ".join(names))
    if len(colors) != len(names):
        raise InputError(f"{len(colors)} colors for {len(names)} names")
    return dict(zip(names, (color.upper() for color in colors), strict=True))
