import pytest

from model.inputs import InputError
from model.prompts import COLORS, TASKS, build_prompt, draw_colors


def test_prompts_match_published_guide():
    assert build_prompt("text2image", "A dog.") == "[[text2image]] A dog."
    assert build_prompt("inpainting", " A dog.\n") == "[[image_inpainting]] A dog."
    assert build_prompt("edges", "") == "[[canny2image]]"
    assert (
        build_prompt("segmentation", "A dog and a cat.", ["dog", "cat"], ["#00FFFF", "#FF0000"])
        == "[[semanticmap2image]] <#00FFFF cyan mask: dog> <#FF0000 red mask: cat> A dog and a cat."
    )
    assert (
        build_prompt("identity", "She runs.", sources=["She sits.", "She reads."])
        == "[[faceid]] [[img0]] She runs. [[img1]] She sits. [[img2]] She reads."
    )
    assert (
        build_prompt("subject", "In snow.", names=["mug"], sources=["On a desk."])
        == "[[subject_driven]] <item: mug> [[img0]] In snow. [[img1]] On a desk."
    )


def test_class_is_named_once_for_all_its_boxes():
    names, colors = ["dog", "cat", "dog"], ["#00FFFF", "#FF0000", "#00FFFF"]
    assert build_prompt("boxes", "Pets.", names, colors) == (
        "[[boundingbox2image]] <#00FFFF cyan boundingbox: dog> <#FF0000 red boundingbox: cat> Pets."
    )


def test_every_task_has_its_own_token():
    starts = [build_prompt(name, "") for name in TASKS if name not in ("identity", "subject")]
    assert len(set(starts)) == len(starts)
    assert all(prompt.startswith("[[") for prompt in starts)
    assert [name for name, task in TASKS.items() if task.token is None] == ["upscaling"]


def test_colors_are_drawn_without_replacement_and_by_seed():
    names = [f"class {index}" for index in range(20)]
    drawn = draw_colors(names, "row")
    assert sorted(drawn.values()) == sorted(COLORS.values())
    assert drawn == draw_colors(names, "row")
    assert drawn != draw_colors(names, "another row")
    assert draw_colors(["dog", "dog"], "row").keys() == {"dog"}
    # A fixed point: what is stored in a dataset must not change with the machine.
    assert draw_colors(["dog", "cat"], "0") == {"dog": "#0000FF", "cat": "#800080"}


def test_wrong_prompt_parts_are_refused():
    with pytest.raises(InputError, match=r"unknown task 'dept' \(did you mean 'depth'\?\)"):
        build_prompt("dept", "")
    with pytest.raises(InputError, match="#123456"):
        build_prompt("boxes", "", ["dog"], ["#123456"])
    with pytest.raises(InputError, match="21 classes"):
        draw_colors([str(index) for index in range(21)], "row")
    with pytest.raises(InputError, match="at most 3"):
        build_prompt("identity", "", sources=["a"] * 4)
