"""Noise levels and the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.batch import Sample, StepBatch
from training.config import ObjectiveConfig
from training.objective import draw_levels, draw_noise, flow_matching_loss


def _samples() -> list[Sample]:
    random = np.random.default_rng(0)
    samples = []
    for number, (frames, height, width) in enumerate([(1, 4, 4), (2, 4, 6), (6, 4, 4)]):
        sigmas, in_loss = draw_levels(number, frames, ObjectiveConfig(known_frame_share=0.5))
        samples.append(
            Sample(
                task=f"task{number}",
                latents=random.normal(size=(frames, 16, height, width)).astype(np.float16),
                text=random.normal(size=(3 + number, 8)).astype(np.float16),
                sigmas=sigmas,
                in_loss=in_loss,
                noise_seed=number,
            )
        )
    return samples


def test_frames_draw_independent_shifted_logit_normal_levels() -> None:
    drawn = [draw_levels(seed, 3, ObjectiveConfig(known_frame_share=0, shift=3)) for seed in range(3000)]
    assert all(in_loss.all() for _, in_loss in drawn)
    sigmas = np.concatenate([sigmas for sigmas, _ in drawn])
    assert 0 < sigmas.min() < 0.1
    assert 0.99 < sigmas.max() < 1
    assert all(len(set(levels)) == 3 for levels, _ in drawn)
    # The median of a logit-normal is 1/2, which the shift of 3 takes to 3/4.
    assert abs(np.median(sigmas) - 0.75) < 0.01
    unshifted = np.concatenate([draw_levels(seed, 3, ObjectiveConfig(shift=1))[0] for seed in range(3000)])
    assert abs(np.log(unshifted / (1 - unshifted)).std() - 1) < 0.03


@pytest.mark.parametrize("frames", [2, 6])
def test_known_frames_are_clean_and_out_of_the_loss(frames: int) -> None:
    drawn = [draw_levels(seed, frames, ObjectiveConfig(known_frame_share=0.7)) for seed in range(3000)]
    for sigmas, in_loss in drawn:
        assert ((sigmas > 0) == in_loss).all()
        assert in_loss.any()
    with_known = [in_loss for _, in_loss in drawn if not in_loss.all()]
    assert abs(len(with_known) / len(drawn) - 0.7) < 0.03
    share = np.mean(with_known, axis=0)
    assert np.abs(share - 0.5).max() < 0.04, "image and condition are known equally often"
    if frames == 2:
        assert all(in_loss.sum() == 1 for in_loss in with_known)
    else:
        assert {int(in_loss.sum()) for in_loss in with_known} == {1, 2, 3, 4, 5}


def test_single_frame_is_never_known() -> None:
    assert all(draw_levels(seed, 1, ObjectiveConfig(known_frame_share=1))[1].all() for seed in range(50))


def test_loss_is_the_squared_error_of_the_velocity() -> None:
    samples = _samples()
    inputs: dict[str, list[torch.Tensor]] = {}

    class Oracle(torch.nn.Module):
        def __init__(self, offset: float) -> None:
            super().__init__()
            self.offset = offset

        def forward(
            self, noisy: list[torch.Tensor], timesteps: list[torch.Tensor], text: list[torch.Tensor]
        ) -> list[torch.Tensor]:
            inputs.update(noisy=noisy, timesteps=timesteps, text=text)
            velocities = []
            for sample, _ in zip(samples, noisy, strict=True):
                clean = torch.from_numpy(sample.latents).float()
                velocities.append(draw_noise(sample.noise_seed, clean.shape) - clean + self.offset)
            return velocities

    loss, parts = flow_matching_loss(Oracle(0.0), samples)
    assert float(loss) == 0
    loss, parts = flow_matching_loss(Oracle(2.0), samples)
    counted = np.concatenate([sample.in_loss for sample in samples])
    assert not counted.all(), "a known frame is not in the loss"
    assert parts.tolist() == pytest.approx((4.0 * counted).tolist(), rel=1e-5)
    assert float(loss) == pytest.approx(4.0 * counted.sum(), rel=1e-5)
    for sample, noisy, timesteps in zip(samples, inputs["noisy"], inputs["timesteps"], strict=True):
        clean = torch.from_numpy(sample.latents).float()
        noise = draw_noise(sample.noise_seed, clean.shape)
        for frame, sigma in enumerate(sample.sigmas):
            torch.testing.assert_close(noisy[frame], (1 - sigma) * clean[frame] + sigma * noise[frame])
        torch.testing.assert_close(timesteps, torch.from_numpy(1000 * sample.sigmas))


def test_noise_depends_on_the_sample_only() -> None:
    assert torch.equal(draw_noise(5, (2, 16, 4, 4)), draw_noise(5, (2, 16, 4, 4)))
    assert not torch.equal(draw_noise(5, (2, 16, 4, 4)), draw_noise(6, (2, 16, 4, 4)))
    assert abs(float(draw_noise(5, (8, 16, 16, 16)).std()) - 1) < 0.02


def test_batch_survives_serialization() -> None:
    samples = _samples()
    batch = StepBatch(7, [samples[:1], samples[1:]], 9)
    back = StepBatch.from_bytes(batch.to_bytes())
    assert (back.step, back.frames_in_loss, [len(pack) for pack in back.packs]) == (7, 9, [1, 2])
    for sample, again in zip(samples, back.packs[0] + back.packs[1], strict=True):
        assert (again.task, again.noise_seed, again.tokens) == (sample.task, sample.noise_seed, sample.tokens)
        for name in ("latents", "text", "sigmas", "in_loss"):
            given, returned = getattr(sample, name), getattr(again, name)
            assert returned.dtype == given.dtype
            np.testing.assert_array_equal(returned, given)
