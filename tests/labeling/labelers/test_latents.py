import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from skimage import data

from labeling.declaration import declare
from labeling.labeler import RowError
from labeling.registry import load_labeler
from labeling.run import label_rows, label_table
from model.codecs import load_codec
from model.conditions import condition_picture
from model.inputs import InputError
from model.pictures import aspect_bucket, encode_png, fit_picture


def make(group, **parameters):
    labeler = load_labeler(group, parameters)
    labeler.load()
    return labeler


def decoded(result):
    shape = (1, 16, result["latent_height"], result["latent_width"])
    latent = torch.from_numpy(np.asarray(result["latent"], np.float32).reshape(shape))
    return load_codec("dct").decode(latent)[0].permute(1, 2, 0).numpy()


@pytest.fixture
def row():
    picture = data.chelsea()
    height, width = picture.shape[:2]
    depth = np.linspace(1, 65535, width).astype(np.uint16)[None].repeat(height, 0)
    return {"id": "cat", "images.image": picture, "images.width": width, "images.height": height,
            "depth.depth": encode_png(depth)}  # fmt: skip


def test_latent_is_that_of_the_fitted_image(row):
    result = make("latents-256").label_row(row)
    width, height = aspect_bucket(row["images.width"], row["images.height"], 256)
    assert (result["latent_height"], result["latent_width"]) == (height // 8, width // 8)
    fitted = fit_picture(row["images.image"], width, height) / 127.5 - 1
    assert np.square(decoded(result) - fitted).mean() < 4 * 10**-3.3  # 33 dB


def test_label_has_the_latent_of_its_drawing_in_the_same_bucket(row):
    labeler = make("latents-96-depth")
    assert set(labeler.reads) == {"depth.depth", "images.width", "images.height"}
    result, picture = labeler.label_row(row), make("latents-96").label_row(row)
    assert (result["latent_height"], result["latent_width"]) == (picture["latent_height"], picture["latent_width"])
    drawn = condition_picture("depth", row, row["images.width"], row["images.height"])
    width, height = aspect_bucket(row["images.width"], row["images.height"], 96)
    assert np.abs(decoded(result) - (fit_picture(drawn, width, height) / 127.5 - 1)).mean() < 0.02


def test_results_do_not_depend_on_batch(row):
    other = {**row, "id": "astronaut", "images.image": data.astronaut()}
    labeler = make("latents-128")
    alone = label_table(labeler, [row], sets=False)
    together = label_table(labeler, [other, row], sets=False)
    assert alone.slice(0, 1).to_pylist() == together.slice(1, 1).to_pylist()
    assert together["model"].to_pylist() == ["dct", "dct"]


def test_missing_columns_are_an_error_of_their_row(row):
    labeler = make("latents-96-depth")
    results = label_rows(labeler, [{**row, "depth.depth": None}, row])
    assert results[0]["error"] == "no depth: depth.depth is missing"
    assert results[1]["error"] is None
    with pytest.raises(RowError, match="no images"):
        make("latents-96").label_row({**row, "images.image": None})


def test_views_of_a_set_are_encoded_one_by_one(row):
    views = {key: [value, value] for key, value in row.items() if key != "id"}
    table = label_table(make("latents-96"), [{"id": "set", **views}], sets=True)
    first, second = table["latent"][0].as_py()
    assert first == second
    assert first == label_table(make("latents-96"), [row], sets=False)["latent"][0].as_py()


def test_autoencoder_changes_the_recipe_and_its_path_is_stored_nowhere(row, tmp_path):
    torch.manual_seed(0)
    levels = {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "latent_channels": 16}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    AutoencoderKL(**levels, **blocks).save_pretrained(tmp_path / "vae")
    labeler = make("latents-96", codec=str(tmp_path))
    assert declare(labeler)["weights"] == load_codec(str(tmp_path)).digest != declare(make("latents-96"))["weights"]
    table = label_table(labeler, [row], sets=False)
    assert table["model"].to_pylist()[0].startswith("AutoencoderKL ")
    assert table["latent"].combine_chunks().value_lengths().to_pylist() == [16 * 128 * 80 // 64]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("latents", "says no size"),
        ("latents-depth", "says no size"),
        ("latents-250", "take 256"),
        ("latents-256-dept", "did you mean 'depth'"),
        ("latents-256-tags", "there are boxes"),
    ],
)
def test_group_names_are_checked(group, message):
    with pytest.raises(InputError, match=message):
        load_labeler(group, {})
