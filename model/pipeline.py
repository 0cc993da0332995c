"""Every task of OneDiffusion in one call, for anyone who knows diffusers.

Symbols as in docs/model.md: B samples, F frames, V views, h × w latents; H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from model.arguments import (
    OUTPUT_TYPES,
    check_callback,
    check_changed,
    check_choice,
    check_default_size,
    check_finite,
    check_flags,
    check_noise,
    check_numbers,
    enough_memory,
    latent_shape,
)
from model.cameras import camera_latents, default_intrinsics, recover_cameras
from model.codecs import ImageCodec
from model.codecs.autoencoder_dct import AutoencoderDCT
from model.frames import Frames, Known
from model.inputs import InputError, one_line
from model.lora import LoraMixin
from model.outputs import OneDiffusionOutput, read_pictures
from model.parts import check_is_part, check_parts
from model.pictures import Picture, fit_picture
from model.pipeline_folder import part_at_fault, resolve_pipeline
from model.prompt_embeddings import Embeddings, PromptMixin
from model.prompts import RAYS
from model.request import Request, check_request
from model.sampling import ConditionTimestep, sample_frames
from model.saving import refuse_adapters, save_whole
from model.transformer import NextDiT
from model.weights import check_loaded

# model_index.json names the module of each part as it was when the folder was written: by an older version of this
# project, or by the released code. So these parts are recognized by the names of their classes.
_OWN_PARTS = {part.__name__: part.__module__ for part in (NextDiT, AutoencoderDCT)}

Pictures = Sequence[Any]  # each a PIL image, (H, W, 3) array or (3, H, W) tensor
StepCallback = Callable[[DiffusionPipeline, int, Tensor, dict[str, Any]], dict[str, Any]]


class OneDiffusionPipeline(PromptMixin, LoraMixin, DiffusionPipeline):
    """The transformer with its image codec, text encoder and scheduler.

    `from_pretrained` takes a folder or hub name in the released layout; `save_pretrained` writes one.
    """

    _optional_components = ["text_encoder", "tokenizer"]
    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        transformer: NextDiT,
        vae: AutoencoderKL | AutoencoderDCT,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        default_size: int = 512,
    ) -> None:
        """default_size: pictures are sampled around default_size² pixels where no height and width are given.

        Raises InputError for a default_size that does not divide by 16.
        """
        super().__init__()
        parts = {
            "transformer": transformer,
            "vae": vae,
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
            "scheduler": scheduler,
        }
        for name, part in parts.items():
            check_is_part(name, part)
        check_default_size(default_size)
        self.register_modules(**parts)
        self.register_to_config(default_size=default_size)
        self._interrupt = False
        self._guidance_scale = 1.0
        self._num_timesteps = 0

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> OneDiffusionPipeline:
        """A pipeline in a folder, or of a hub name, whose safetensors are downloaded once.

        Of the hub: revision, cache_dir, token, local_files_only, force_download; of what is loaded: variant,
        torch_dtype (one, or by part), device_map, quantization_config; parts of the pipeline, and default_size.
        Weights keep the types they are stored in unless torch_dtype says otherwise.
        Raises InputError for what is not there or damaged, naming the file, and for arguments without effect.
        """
        name = str(pretrained_model_name_or_path)
        parts, options = cls._get_signature_keys(cls)
        folder, arguments = resolve_pipeline(cls.__name__, name, kwargs, [*parts, *options])
        try:
            pipeline = super().from_pretrained(str(folder), **arguments)
        except InputError:
            raise
        except Exception as error:  # diffusers and transformers raise nearly anything for what a folder holds
            part, error = part_at_fault(folder, cls.load_config(str(folder)), kwargs) or ("", error)
            where = f"{folder / part}" if part else name
            raise InputError(f"{where}: nothing that can be loaded ({one_line(error, 300)})") from error
        for part, model in pipeline.components.items():
            # Quantized weights are stored under names of torchao.
            quantized = getattr(model, "hf_quantizer", None)
            if isinstance(model, nn.Module) and part not in kwargs and not quantized:
                check_loaded(model, folder / part, kwargs.get("variant"))
        return pipeline

    def save_pretrained(
        self,
        save_directory: Any,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the pipeline as a folder that `from_pretrained` reads, over an older one too.

        variant: as "fp16", a second set of weights in one folder; max_shard_size: as "5GB", of each file of weights.
        Weights are safetensors, whatever safe_serialization says. Raises InputError for a path that is a file, and
        while adapters are loaded.
        """
        refuse_adapters(self.transformer)
        save_whole(
            super().save_pretrained,
            save_directory,
            safe_serialization,
            variant,
            max_shard_size=max_shard_size,
            **kwargs,
        )

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """The configuration as diffusers reads it, with the present modules of the parts that this project defines."""
        config = super().load_config(*args, **kwargs)
        index = config[0] if isinstance(config, tuple) else config
        for name, part in index.items():
            class_name = part[-1] if isinstance(part, list | tuple) and part else None
            if name == "transformer" and class_name:
                class_name = "NextDiT"
            if isinstance(class_name, str) and class_name in _OWN_PARTS:
                index[name] = [_OWN_PARTS[class_name], class_name]
        return config

    @property
    def interrupt(self) -> bool:
        """Whether the call ends after this step; a callback may set `_interrupt`."""
        return self._interrupt

    @property
    def guidance_scale(self) -> float:
        """The guidance of the call; a callback may set `_guidance_scale` for the steps that follow."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the call is guided."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """How many steps the call has."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        task: str | Sequence[str],
        images: Pictures | Sequence[Pictures] | Any | None = None,
        prompt: str | Sequence[str] | None = "",
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
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
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
        a sequence is a batch over the same images, or over `images` if that is a sequence of sequences, or of single
        pictures for a task that takes one.
        negative_prompt: what guidance leads away from, for all prompts or one for each; None is the empty one.
        names: classes of segmentation and boxes, or the item of subject; colors: "#RRGGBB" for each of them,
        drawn from the names otherwise. reference_prompts: captions of the pictures that identity and subject refer to.
        azimuth, elevation, distance (degrees, V each), or c2w (V, 4, 4) OpenGL camera-to-world: the cameras of views;
        intrinsics (V, 3, 3) of the frames, width 1. normalize_cameras: as in training; by default for c2w only.
        height, width: of every frame, by default the aspect of the first image around `default_size`²; views are
        square by default, as those that the published model learned from.
        num_inference_steps, guidance_scale: by default those of the task. condition_timestep: see sample_frames.
        latents: noise (B, F, 16, h, w) to begin with, instead of what `generator` draws: one for all samples, or a list
        with one for each. num_images_per_prompt: samples of each prompt, one after another.
        prompt_embeds (B, L, Y) with prompt_attention_mask (B, L), and the same for negative_prompt: instead of texts,
        as `encode_prompt` gives them; of any lengths.
        output_type: "pil", "np" (H, W, 3) in 0…1, "pt" or "latent". return_dict: False for a tuple, images first.
        Raises InputError for what does not go together, before anything is computed, and for numbers that are not
        finite, saying where they came up.
        """
        check_parts(self.components)
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
        check_flags({"normalize_cameras": normalize_cameras, "return_dict": return_dict})
        check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        request = check_request(
            task,
            images,
            prompt,
            prompt_embeds,
            known,
            denoise_mask,
            names,
            colors,
            reference_prompts,
            (azimuth, elevation, distance, c2w, intrinsics, normalize_cameras),
        )
        prompts = None
        if request.captions is not None:
            prompts = self.compose(request.tasks, request.captions, names, colors, request.references)
        width, height = request.size(width, height, self.config.default_size)
        shape = (
            request.prompts * num_images_per_prompt,
            len(request.frames.mask),
            *latent_shape(width, height),
        )
        check_noise(shape, generator, latents)
        self._guidance_scale = request.default_guidance if guidance_scale is None else float(guidance_scale)
        self._num_timesteps = request.default_steps if num_inference_steps is None else num_inference_steps
        with enough_memory(shape):
            text, negative = self._embeddings(
                prompts,
                negative_prompt,
                (prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask),
                self.do_classifier_free_guidance,
                num_images_per_prompt,
            )
            text = text if negative is None else text.after(negative)
            noise = self._noise(shape, generator, latents)
            clean, rays = self._known(request, noise, width, height)
            after_step = self._after_step(callback_on_step_end, callback_on_step_end_tensor_inputs)
            result = self._sample(noise, clean, rays, request.frames, text, condition_timestep, after_step)
            output = OneDiffusionOutput(latents=result, **self._read(result, request, output_type))
        self.maybe_free_model_hooks()
        return output if return_dict else output.images_first()

    def _known(self, request: Request, noise: Tensor, width: int, height: int) -> tuple[Tensor, Tensor | None]:
        """Latents (B, K, 16, h, w) of the known pictures, and (B, V, 16, h, w) of all cameras, known or not, if any."""
        samples = len(noise)
        clean = torch.stack([self._encode(per_prompt, width, height) for per_prompt in request.pictures])
        clean = clean.repeat_interleave(samples // len(request.pictures), 0).to(noise)
        if not request.has_rays:
            return clean, None
        rays = noise.new_zeros(request.frames.kinds.count(RAYS), *noise.shape[2:])
        if request.cameras is not None:
            c2w, normalize = request.cameras
            size = (noise.shape[-2], noise.shape[-1])
            intrinsics = default_intrinsics(len(c2w), size) if request.intrinsics is None else request.intrinsics
            rays = camera_latents(c2w, intrinsics, size, normalize=normalize).to(noise)
        return clean, rays[None].expand(samples, *rays.shape)

    def _sample(
        self,
        noise: Tensor,
        clean: Tensor,
        rays: Tensor | None,
        frames: Frames,
        text: Embeddings,
        condition_timestep: ConditionTimestep,
        after_step: Callable[[int, Tensor, Tensor], Tensor | None] | None,
    ) -> Tensor:
        """Latents (B, F, 16, h, w) after the steps, which a bar shows."""
        with self.progress_bar(total=self._num_timesteps) as bar:
            return sample_frames(
                self.transformer,
                self.scheduler,
                noise,
                clean,
                frames.mask,
                text.embeds.to(noise),
                text.mask.to(noise.device),
                self._num_timesteps,
                self._guidance_scale,
                rays,
                condition_timestep,
                lambda step, steps: bar.update(),
                after_step,
                lambda: self._guidance_scale,
            )

    def _encode(self, pictures: Sequence[Picture], width: int, height: int) -> Tensor:
        """(K, 16, h, w) latents of known pictures."""
        device = self._execution_device
        codec = ImageCodec(self.vae, device=device)
        latents = []
        for picture in pictures:
            pixels = torch.from_numpy(fit_picture(picture, width, height)).permute(2, 0, 1)[None]
            latents.append(codec.encode(pixels.to(device).float() / 127.5 - 1)[0])
            check_finite("latents of a known picture", latents[-1], self.vae.dtype)
        return torch.stack(latents) if latents else torch.zeros(0, *latent_shape(width, height), device=device)

    def _noise(self, shape: tuple[int, ...], generator: Any, latents: Tensor | None) -> Tensor:
        """The latents to begin with, of this shape: those given, or new noise."""
        if latents is None:
            generator = list(generator) if isinstance(generator, tuple) else generator
            return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.transformer.dtype)
        return latents.to(self._execution_device, self.transformer.dtype)

    def _after_step(
        self, callback: StepCallback | None, inputs: Sequence[str]
    ) -> Callable[[int, Tensor, Tensor], Tensor | None] | None:
        """A callback in the form of diffusers as the `after_step` of sample_frames."""
        self._interrupt = False
        if callback is None:
            return None
        inputs = getattr(callback, "tensor_inputs", inputs)

        def after(index: int, timestep: Tensor, latents: Tensor) -> Tensor | None:
            changed = callback(self, index, timestep, {"latents": latents} if inputs else {})
            new = check_changed(changed, latents)
            return None if self._interrupt else new

        return after

    def _read(self, latents: Tensor, request: Request, form: str) -> dict[str, Any]:
        """What was generated in the form that is asked for, and what can be read from it."""
        frames = request.frames
        places = [place for place in frames.generated if frames.kinds[place] != RAYS]
        fields: dict[str, Any] = {}
        if places and form == "latent":
            fields["images"] = latents[:, places].flatten(0, 1)
        elif places:
            codec = ImageCodec(self.vae, device=self._execution_device)
            pixels = [codec.decode(sample[places].to(self._execution_device)) for sample in latents]
            for sample in pixels:
                check_finite("decoded pictures", sample, self.vae.dtype)
            fields = read_pictures(pixels, [frames.kinds[place] for place in places], request.colors, form)
        if any(frames.kinds[place] == RAYS for place in frames.generated):
            rays = [sample[1::2].float().cpu() for sample in latents]
            fields["cameras"] = [recover_cameras(one, request.intrinsics) for one in rays]
        return fields
