"""Labelers with a network: batches give what single rows give, and the three steps may lie in three processes."""

import pickle

import numpy as np
import pytest
import torch
from skimage import data
from tiny_models import save_blip, save_depth_anything, save_t5, save_vae
from tiny_networks import (
    save_clip,
    save_dinov2,
    save_dpt,
    save_eomt,
    save_glpn,
    save_grounding_dino,
    save_llava,
    save_owlv2,
    save_sam2,
    save_sam3,
    save_segformer,
    save_siglip,
    save_vision_encoder_decoder,
    save_vitpose,
    save_yolos,
)

from labeling.declaration import declare
from labeling.networks.batches import pixel_scale
from labeling.registry import load_labeler
from model.inputs import InputError

# Group, how its network is built, and what its parameters are besides.
NETWORKS = [
    ("depth", save_depth_anything, {}),
    ("depth", save_dpt, {}),
    ("depth", save_glpn, {}),
    ("boxes", save_yolos, {"threshold": 0, "overlap": 1}),
    ("boxes", lambda folder: save_yolos(folder, shortest_edge=64, longest_edge=96), {"threshold": 0, "overlap": 1}),
    ("boxes", save_grounding_dino, {"threshold": 0, "overlap": 1, "names": ["cat", "wine glass"]}),
    ("boxes", save_grounding_dino, {"threshold": 0, "overlap": 1, "names_from": "caption"}),
    ("boxes", save_owlv2, {"threshold": 0, "overlap": 1, "names": ["cat", "wine glass"]}),
    ("boxes", save_owlv2, {"threshold": 0, "overlap": 1, "names_from": "objects"}),
    ("segmentation", save_eomt, {"threshold": 0}),
    ("segmentation", save_eomt, {"threshold": 0, "kind": "panoptic"}),
    ("segmentation", save_segformer, {}),
    ("segmentation", save_sam2, {"kind": "boxes"}),
    ("segmentation", save_sam3, {"kind": "words", "threshold": 0, "names": ["cat", "wine glass"]}),
    ("segmentation", save_sam3, {"kind": "words", "threshold": 0, "names_from": "objects"}),
    ("pose", save_vitpose, {}),
    ("faces", save_yolos, {"threshold": 0, "least_side": 4, "most": 2}),
    ("caption", save_blip, {"tokens": 6}),
    ("caption", save_vision_encoder_decoder, {"tokens": 6}),
    ("caption", save_llava, {"tokens": 6, "dtype": "fp32"}),
    ("objects", save_llava, {"tokens": 3, "dtype": "fp32", "temperature": 0.5}),
    ("embedding", save_clip, {}),
    ("embedding", save_siglip, {}),
    ("embedding", save_dinov2, {}),
    ("text", save_t5, {}),
    ("latents-96", save_vae, {}),
]
PARAMETER = {"text": "encoder", "latents-96": "codec"}  # that names the network; of others it is `model`


def rows():
    """Pictures of two shapes, two of each, one without people."""
    for number, name in enumerate(("astronaut", "coffee", "astronaut", "coffee")):
        picture = getattr(data, name)()[::2, ::2] // (1 + number // 2)
        height, width = picture.shape[:2]
        corners = (10.0, 10.0, width * 0.6, height * 0.9), (width * 0.4, 20.0, width * 0.9, height * 0.8)
        yield {
            "id": f"{name} {number}",
            "images.image": picture,
            "boxes.boxes": [dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)) for box in corners],
            "boxes.names": ["person", "cat" if number else "person"] if number != 3 else ["cup", "spoon"],
            "boxes.colors": ["#0000FF", "#00FF00"],
            "segmentation.names": ["cat"][: number % 2],
            "segmentation.colors": ["#00FFFF"][: number % 2],
            "caption.caption": "a dog and " * number + "the cat",
            "objects.names": ["cat", "wine glass", "sofa"][: 1 + number // 2],
        }


@pytest.fixture(params=NETWORKS, ids=lambda one: f"{one[0]}-{getattr(one[1], '__name__', '')}-{one[2].get('kind', '')}")
def make(request, tmp_path):
    group, build, parameters = request.param
    torch.manual_seed(0)
    build(tmp_path)
    return lambda: load_labeler(group, {PARAMETER.get(group, "model"): str(tmp_path), **parameters})


def equal(one, other, atol=0.0):
    """Whether results are the same, arrays up to `atol`."""
    if isinstance(one, np.ndarray):
        if one.dtype == np.int16:  # numbers of segments: where two are next to equal, the last bit decides
            return (one == other).mean() > 0.999
        if one.dtype == np.float16:
            atol = max(atol, 2e-3)
        return one.shape == other.shape and np.allclose(one.astype(float), other.astype(float), rtol=atol, atol=atol)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key], atol) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(equal(a, b, atol) for a, b in zip(one, other, strict=True))
    return one == pytest.approx(other, abs=atol, rel=atol) if isinstance(one, float) else one == other


def calls_of(labeler):
    """The sizes of the batches that the network is given from now on."""
    seen = []
    network = labeler._codec.vae if hasattr(labeler, "_codec") else getattr(labeler, "_network", None)
    network = labeler._encoder.model if network is None else network
    asked = labeler.name == "embedding" and hasattr(network, "get_image_features")
    name = "get_image_features" if asked else "forward"
    name = "generate" if labeler.name in ("caption", "objects") else name
    name = "encode" if hasattr(labeler, "_codec") else name
    computed = getattr(network, name)

    def counted(*args, **kwargs):
        seen.append(len(args[0] if args else next(iter(kwargs.values()))))
        return computed(*args, **kwargs)

    setattr(network, name, counted)
    return seen


def test_batches_give_what_single_rows_give(make):
    labeler = make()
    labeler.load()
    inputs = [labeler.prepare(row).inputs for row in rows()]
    calls = calls_of(labeler)
    single = [labeler.infer([one])[0] for one in inputs]
    assert len(calls) >= len([one for one in inputs if one is not None])
    calls.clear()
    one_by_one = labeler.infer(inputs)
    assert equal(single, one_by_one)  # on a CPU not a bit depends on the batch
    if labeler.name == "text":
        return  # tests/model/test_text.py pads a batch
    calls.clear()
    labeler.device = "cpu:0"  # which is not named "cpu", and so computes in batches as a GPU does
    together = labeler.infer(inputs)
    assert max(calls) >= 2 and len(calls) < len(inputs)
    assert equal(single, together, atol=1e-5)


def test_three_steps_in_processes_of_their_own_give_the_same_columns(make):
    given = list(rows())
    whole = make()
    whole.load()
    before = pickle.loads(pickle.dumps(make()))  # as it travels to a process
    before.load_processor()
    network = pickle.loads(pickle.dumps(make()))
    network.load()
    assert before.has_network and all(
        getattr(before, name, None) is None for name in ("_network", "_encoder", "_codec")
    )  # no weights where there is nothing to compute
    prepared = [pickle.loads(pickle.dumps(before.prepare(row))) for row in given]
    for one in prepared:
        for array in vars(one).get("inputs") or {} if isinstance(one.inputs, dict) else ():
            one.inputs[array].setflags(write=False)  # as arrays are that come from shared memory
    outputs = pickle.loads(pickle.dumps(network.infer([one.inputs for one in prepared])))
    columns = [before.finish(output, one.context) for output, one in zip(outputs, prepared, strict=True)]
    assert equal(columns, whole.label(given))
    assert before.model == whole.model == network.model


def test_default_type_of_numbers_leaves_the_recipe_as_it_was(make):
    labeler = make()
    declared = declare(labeler)
    if labeler.parameters.model_dump().get("dtype") == type(labeler.parameters).model_fields["dtype"].default:
        assert "dtype" not in declared["parameters"]
    again = type(labeler)(labeler.group, labeler.parameters.model_copy(update={"dtype": "bf16"}))
    assert declare(again)["parameters"]["dtype"] == "bf16"
    again.load()
    first = again.label([next(iter(rows()))])[0]
    assert first.keys() == set(again.schema.names)


def test_pixels_travel_as_bytes_where_the_device_can_scale_them(tmp_path):
    (row, *_) = rows()
    for build in (save_depth_anything, save_dpt, save_glpn):
        (tmp_path / build.__name__).mkdir()
        build(tmp_path / build.__name__)
        labeler = load_labeler("depth", {"model": str(tmp_path / build.__name__)})
        labeler.load_processor()
        assert labeler.prepare(row).inputs["pixel_values"].dtype == np.uint8
    labeler._processor.resample = 0
    labeler._scale = None  # as of a processor that scales before it resizes
    assert labeler.prepare(row).inputs["pixel_values"].dtype == np.float32


class Fused:
    """A processor with the arithmetic of torchvision's, which is not installed beside every torch."""

    do_rescale, rescale_factor = True, 1 / 255
    image_mean, image_std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

    def __init__(self, do_normalize=True, pads=False):
        self.do_normalize, self.pads = do_normalize, pads

    def __call__(self, picture, do_rescale=True, do_normalize=True):
        pixels = torch.from_numpy(picture[:48:2, :40:2].copy()).permute(2, 0, 1)[None]
        if do_rescale and do_normalize and self.do_normalize:
            mean, std = (torch.tensor(one) * (1.0 / self.rescale_factor) for one in (self.image_mean, self.image_std))
            pixels = pixels.float().sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
        elif do_rescale:
            pixels = pixels * self.rescale_factor
        return {"pixel_values": (torch.nn.functional.pad(pixels, (0, 3)) if self.pads else pixels).numpy()}


def test_scale_of_either_kind_of_processor_is_repeated_bit_for_bit():
    for processor in (Fused(), Fused(do_normalize=False)):
        scale = pixel_scale(processor, processor)
        picture = data.astronaut()
        levels = torch.from_numpy(processor(picture, do_rescale=False, do_normalize=False)["pixel_values"])
        assert scale.fused or not processor.do_normalize
        np.testing.assert_array_equal(scale(levels).numpy(), processor(picture)["pixel_values"])
    padded = Fused(pads=True)  # with zeros after it has scaled: as levels these would be black
    assert pixel_scale(padded, padded) is None


def test_type_of_numbers_needs_a_network():
    for group, message in (
        ("depth", "dtype bf16 is for a model that is named; set model too"),
        ("latents-96", "dtype bf16 is for an autoencoder"),
    ):
        with pytest.raises(InputError, match=message):
            load_labeler(group, {"dtype": "bf16"})
    with pytest.raises(InputError, match="dtype"):
        load_labeler("depth", {"dtype": "int4"})
    assert not any(load_labeler(group, {}).has_network for group in ("depth", "boxes", "pose", "latents-96"))
