import pytest

from model.frames import plan_frames
from model.inputs import InputError


@pytest.mark.parametrize(
    ("task", "pictures", "settings", "kinds", "mask"),
    [
        ("text2image", 0, {}, "image", "1"),
        ("depth", 1, {}, "image depth", "10"),
        ("depth", 1, {"known": "image"}, "image depth", "01"),
        ("deblurring", 1, {}, "image deblurring", "10"),
        ("depth", 0, {"denoise_mask": [1, 1]}, "image depth", "11"),
        ("editing", 1, {}, "image reference", "10"),
        ("identity", 3, {}, "image reference reference reference", "1000"),
        ("subject", 2, {}, "image reference reference", "100"),
        ("views", 1, {"cameras": 3}, "image rays image rays image rays", "001010"),
        ("views", 0, {"cameras": 2}, "image rays image rays", "1010"),
        ("views", 2, {}, "image rays image rays", "0101"),
        ("views", 1, {"denoise_mask": [0, 1, 1, 1]}, "image rays image rays", "0111"),
        ("edges depth", 2, {}, "image edges depth", "100"),
        ("edges depth", 1, {"known": "image"}, "image edges depth", "011"),
        ("edges depth", 2, {"denoise_mask": [0, 0, 1]}, "image edges depth", "001"),
    ],
)
def test_plan_frames_gives_kinds_and_mask(task, pictures, settings, kinds, mask):
    frames = plan_frames(task.split(), pictures, **settings)
    assert " ".join(frames.kinds) == kinds
    assert "".join(map(str, frames.mask)) == mask


@pytest.mark.parametrize(
    ("task", "pictures", "settings", "message"),
    [
        ("dept", 1, {}, "unknown task 'dept' (did you mean 'depth'?)"),
        ("depth", 1, {"denoise_mask": [1, 0, 0]}, "denoise_mask has 3 values; depth has 2 frames: image, depth"),
        ("depth", 1, {"denoise_mask": [2, 0]}, "denoise_mask [2, 0]: give 1"),
        ("depth", 2, {"denoise_mask": [0, 0]}, "leaves no frame to generate"),
        ("depth", 1, {"denoise_mask": [1, 0], "known": "image"}, "not both"),
        ("depth", 1, {"known": "picture"}, "known='picture': say 'image' or 'condition'"),
        ("depth", 2, {}, "2 images are more than the 1 known image frames of depth: image generated, depth known"),
        ("depth", 0, {}, "0 images are fewer than the 1 known"),
        ("text2image", 1, {}, "1 images are more than the 0 known"),
        ("text2image", 0, {"known": "image"}, "text2image has no label"),
        ("depth", 1, {"cameras": 2}, "depth has no cameras"),
        ("identity", 4, {}, "identity with 4 pictures to refer to: there may be 1 to 3"),
        ("editing", 0, {}, "editing with 0 pictures"),
        ("views", 1, {"cameras": 13}, "13 views: there may be 1 to 12"),
        ("views", 1, {"denoise_mask": [0, 0, 1, 0]}, "has known cameras: give azimuth"),
        ("views depth", 1, {}, "views cannot be combined"),
        ("depth depth", 1, {}, "depth cannot be combined"),
    ],
)
def test_conflicting_arguments_are_refused(task, pictures, settings, message):
    with pytest.raises(InputError) as error:
        plan_frames(task.split(), pictures, **settings)
    assert message in str(error.value)
