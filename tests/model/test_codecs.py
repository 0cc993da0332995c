import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from skimage import data
from skimage.color import gray2rgb
from tiny_models import save_vae

from model.codecs import codec_digest, codec_name, load_autoencoder, load_codec
from model.codecs.block_transform import block_constants
from model.codecs.dct import MEAN, STD
from model.conditions import draw_mask
from model.inputs import InputError
from model.pictures import aspect_bucket, fit_picture

PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel")
PHOTOGRAPHS += ("hubble_deep_field", "moon", "retina", "rocket")


def photograph(name):
    if name == "motorcycle":
        return data.stereo_motorcycle()[0]
    picture = np.asarray(getattr(data, name)())
    return gray2rgb(picture) if picture.ndim == 2 else picture[..., :3]


def as_pixels(picture, size=256):
    width, height = aspect_bucket(picture.shape[1], picture.shape[0], size)
    return torch.from_numpy(fit_picture(picture, width, height)).permute(2, 0, 1)[None].float() / 127.5 - 1


def psnr(pixels, decoded):
    return float(-10 * torch.log10(((pixels - decoded.clamp(-1, 1)) ** 2).mean() / 4))


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    """A pipeline's folder with a tiny random autoencoder of the published shape under vae/."""
    folder = tmp_path_factory.mktemp("pipeline")
    save_vae(folder / "vae", scaling_factor=1.5305, shift_factor=0.0609)
    return folder


@pytest.mark.parametrize(
    ("name", "size", "least", "most"),
    [
        ("astronaut", 256, 25.6, 28.5),
        ("astronaut", 512, 28.4, 28.6),  # not resized: what the codec alone does
        ("chelsea", 256, 33.5, 35.0),
        ("chelsea", 512, 36.5, 38.0),
    ],
)
def test_dct_psnr_on_photographs(name, size, least, most):
    codec, pixels = load_codec("dct"), as_pixels(photograph(name), size)
    latents = codec.encode(pixels)
    assert latents.shape == (1, 16, pixels.shape[2] // 8, pixels.shape[3] // 8)
    assert least <= psnr(pixels, codec.decode(latents)) <= most


def test_dct_latents_survive_decode_and_encode():
    codec = load_codec("dct")
    latents = torch.randn(2, 16, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codec.encode(codec.decode(latents)), latents, atol=2e-5, rtol=0)
    # Pictures that the sixteen coefficients span come back whole: flat colors and slow luma.
    flat = torch.tensor([0.2, -0.7, 0.5]).view(1, 3, 1, 1).expand(1, 3, 16, 24)
    torch.testing.assert_close(codec.decode(codec.encode(flat)), flat, atol=2e-6, rtol=0)


def test_dct_is_the_same_with_and_without_diffusers():
    codec, autoencoder = load_codec("dct"), load_autoencoder("dct")
    pixels = as_pixels(photograph("chelsea"), 128)
    latents = codec.encode(pixels)
    assert torch.equal(latents, autoencoder.encode(pixels).latent_dist.mode())
    assert torch.equal(codec.decode(latents), autoencoder.decode(latents).sample)
    code = "import sys; from model.codecs import load_codec; load_codec('dct'); sys.exit('diffusers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


def test_dct_constants_are_the_statistics_of_photographs():
    codec, constants, blocks = load_codec("dct"), block_constants(), []
    for name in (*PHOTOGRAPHS, "motorcycle"):
        latents = codec.encode(as_pixels(photograph(name)))
        blocks.append((latents * constants["std"] + constants["mean"])[0].flatten(1))
    values = torch.cat(blocks, dim=1)
    chroma = [11, 12, 14, 15]  # gradients, floored at the least of luma's
    other = [index for index in range(16) if index not in chroma]
    std, mean = torch.tensor(STD), torch.tensor(MEAN)
    torch.testing.assert_close(values.std(1)[other], std[other], atol=6e-3, rtol=0)
    assert (std[chroma] == std[:10].min()).all()
    assert (values.std(1)[chroma] < std[chroma]).all()
    assert (values.mean(1) - mean).abs().max() < 2e-2


def test_dct_latents_of_labels_stay_near_those_of_photographs():
    codec, astronaut = load_codec("dct"), photograph("astronaut")
    edges = as_pixels(gray2rgb(cv2.Canny(astronaut, 100, 200)))
    regions = (astronaut.mean(axis=2) > 128).astype(np.uint8) + 1
    masks = as_pixels(draw_mask(regions, ["#FF0000", "#0000FF"]))
    black = codec.encode(torch.full((1, 3, 64, 64), -1.0))
    white = codec.encode(torch.full((1, 3, 64, 64), 1.0))
    assert codec.encode(edges).abs().max() < 14
    assert codec.encode(masks).abs().max() < 24
    assert max(black.abs().max(), white.abs().max()) < 3.5


def test_load_codec_gives_dct_which_checks_sizes():
    codec = load_codec("dct")
    assert codec.name == "dct"
    assert codec.digest == codec_digest("dct") != ""
    with pytest.raises(InputError, match="20×16"):
        codec.encode(torch.zeros(1, 3, 16, 20))


def test_pipeline_exported_with_dct_names_it(tmp_path):
    load_autoencoder("dct").save_pretrained(tmp_path / "vae")
    codec = load_codec(str(tmp_path))
    assert (codec.name, codec.digest) == ("dct", codec_digest("dct")) == ("dct", codec_digest(str(tmp_path)))
    assert codec_name(str(tmp_path)) == "dct"


def test_vae_scales_the_mode_and_does_not_shift(vae_folder):
    codec = load_codec(str(vae_folder))
    direct = AutoencoderKL.from_pretrained(vae_folder / "vae").eval()
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = codec.encode(pixels)
    with torch.no_grad():
        torch.testing.assert_close(latents, direct.encode(pixels).latent_dist.mode() * 1.5305)
        torch.testing.assert_close(codec.decode(latents), direct.decode(latents / 1.5305).sample)
    assert latents.shape == (1, 16, 4, 6)
    assert torch.equal(latents, codec.encode(pixels))
    with pytest.raises(InputError, match="20×16"):
        codec.encode(torch.zeros(1, 3, 16, 20))


def test_vae_digest_follows_weights_and_configuration_not_the_path(vae_folder, tmp_path):
    assert codec_digest(str(vae_folder)) == codec_digest(str(vae_folder / "vae")) == load_codec(str(vae_folder)).digest
    assert str(vae_folder) not in load_codec(str(vae_folder)).name
    save_vae(tmp_path / "same", scaling_factor=1.5305, shift_factor=0.0609)
    assert codec_digest(str(tmp_path / "same")) == codec_digest(str(vae_folder))
    config = json.loads((tmp_path / "same" / "config.json").read_text())
    (tmp_path / "same" / "config.json").write_text(json.dumps({**config, "scaling_factor": 1.0}))
    assert codec_digest(str(tmp_path / "same")) != codec_digest(str(vae_folder))


def test_unfit_autoencoders_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load_codec(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither config.json nor vae/config.json"):
        load_codec(str(tmp_path / "empty"))
    save_vae(tmp_path / "shallow", levels=3)
    with pytest.raises(InputError, match="16 channels at 1/4 of the side"):
        load_codec(str(tmp_path / "shallow"))
    save_vae(tmp_path / "pickled")
    weights = tmp_path / "pickled" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match="no weights in safetensors"):
        load_codec(str(tmp_path / "pickled"))


def test_hub_name_falls_back_to_cache_offline(vae_folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="owner/model: no such folder, and the hub does not give it"):
        load_codec("owner/model")
    cached = tmp_path / "models--owner--model"
    commit = "0" * 40
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "snapshots" / commit / "vae").symlink_to(vae_folder / "vae")
    assert load_codec("owner/model").digest == codec_digest(str(vae_folder))
