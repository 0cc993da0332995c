"""Configurations: presets, inheritance, overrides, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from labeling.dataset.digests import digest_json
from model.inputs import InputError
from training.config import PRESETS, load_config, parse_config, presets


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_and_says_its_command_time_and_result(name: str) -> None:
    config = load_config(name)
    comment = (PRESETS / f"{name}.yaml").read_text().split("name:")[0]
    assert config.name == name
    assert f"onediffusion train {name}" in comment
    assert "Time:" in comment
    assert "Result:" in comment


def test_presets_repeat_nothing_of_their_base() -> None:
    for name in presets():
        values = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
        base = values.pop("base", None)
        if base:
            inherited = load_config(base).model_dump(mode="json")
            repeated = [key for key, value in values.items() if inherited.get(key) == value]
            assert not repeated, f"{name} repeats {repeated} of {base}"


def test_stage2_preset_matches_the_paper() -> None:
    config = load_config("stage2")
    assert config.optimizer.learning_rate == 5e-4
    assert config.objective.known_frame_share == 0
    assert (config.model.hidden_size, config.model.depth, config.model.caption_channels) == (3840, 16, 2048)
    assert config.mixture["pictures"].size == 512
    assert config.size == 256
    assert set(config.mixture) == {"pictures", "labeled", "views"}


def test_base_file_is_inherited_and_overrides_come_last(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("base: debug\nsteps: 7\nmixture: {views: null}\n")
    (tmp_path / "second.yaml").write_text("base: first.yaml\noptimizer: {warmup: 3}\n")
    config = load_config(tmp_path / "second.yaml", ["steps=9", "mixture.pictures.tasks={edges: 2}"])
    assert (config.steps, config.optimizer.warmup, list(config.mixture)) == (9, 3, ["pictures"])
    assert config.mixture["pictures"].tasks == {"edges": 2}
    assert config.optimizer.learning_rate == load_config("debug").optimizer.learning_rate


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimiser.warmup=3", "no key 'optimiser' (did you mean 'optimizer'?)"),
        ("optimizer.warmups=3", "no key 'optimizer.warmups' (did you mean 'warmup'?)"),
        ("mixture.pictures.datset=x", "no key 'mixture.pictures.datset' (did you mean 'dataset'?)"),
        ("workers.counts=2", "no key 'workers.counts' (did you mean 'count'?)"),
        ("steps=-1", "steps: Input should be greater than 0, got -1"),
        ("workers.count=.inf", "debug: workers.count: Input should be a finite number"),
        ("mixture.new.tasks=[edges]", "key 'mixture.new.dataset' is missing"),
        ("batch=1", "batch 1 leaves some of the 2 workers without a sample"),
        ("objective.min_views=40", "min_views 40 is more than max_views 3"),
        ("steps", "write section.key=value"),
    ],
)
def test_wrong_override_is_named_in_one_line(override: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config("debug", [override])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"debg: no such configuration file \(did you mean 'debug'\?\)"):
        load_config("debg")
    (tmp_path / "loop.yaml").write_text("base: loop.yaml\n")
    with pytest.raises(InputError, match="its own base"):
        load_config(tmp_path / "loop.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match="not YAML"):
        load_config(tmp_path / "bad.yaml")


def test_fixed_leaves_out_what_a_resumed_run_may_change() -> None:
    debug = load_config("debug")
    assert load_config("debug", ["workers.count=1", "log_every=3", "checkpoints.every=9"]).fixed() == debug.fixed()
    assert load_config("debug", ["seed=1"]).fixed() != debug.fixed()
    # The schedule ends at the last step, so that is part of the numbers, unless the rate is constant.
    assert load_config("debug", ["steps=5"]).fixed() != debug.fixed()
    constant = ["optimizer.schedule=constant"]
    assert load_config("debug", [*constant, "steps=5"]).fixed() == load_config("debug", constant).fixed()


def test_old_key_of_validation_is_read(tmp_path: Path) -> None:
    present = load_config("debug", ["validation.share=0.25", "validation.samples=12"])
    (tmp_path / "old.yaml").write_text("base: debug\nheld_out: {share: 0.25, samples: 12}\n")
    assert load_config(tmp_path / "old.yaml", ["name=debug"]) == present
    assert load_config(tmp_path / "old.yaml", ["validation.share=0.5"]).validation.samples == 12
    assert load_config("debug", ["held_out.share=0.25", "held_out.samples=12"]) == present
    stored = present.model_dump(mode="json")  # config.yaml of a run
    stored["held_out"] = stored.pop("validation")
    assert parse_config(stored, "config.yaml").fixed() == present.fixed()


def test_digest_is_the_one_that_dashboards_have_stored() -> None:
    config = load_config("debug")
    values = config.fixed()
    values["held_out"] = values.pop("validation")  # what the key was called then
    assert config.digest() == digest_json(values)
    assert load_config("debug", ["seed=1"]).digest() != config.digest()


def test_settings_apply_in_order(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("{base: debug, mixture: {views: {dataset: old, tasks: [views]}}}")
    settings = ["mixture.views=null", "mixture.views.dataset=new", "mixture.views.tasks=[views]", "steps=7", "steps=8"]
    config = load_config(file, settings)
    assert config.steps == 8
    assert config.mixture["views"].dataset == "new"
    with pytest.raises(InputError, match=r"mixture\.views\.tasks"):
        load_config(file, settings[:2])


@pytest.mark.parametrize("name", ["../../etc", "/etc", "a/b", "", ".hidden", "a\nb"])
def test_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="name: a run's folder is named by it"):
        load_config("debug", {"name": name})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["step_tokens=1000000000000000"], "step_tokens 1000000000000000: from "),
        (["step_tokens=10"], "step_tokens 10: from "),
        ({"step_tokens": 2**20, "batch": 7}, "batch 7 and step_tokens 1048576, which is "),
        (["batch=100000000"], "batch"),
        (["reader.lanes=1000000000"], "reader.lanes"),
        (["mixture.pictures.tasks={}"], "mixture.pictures.tasks"),
        (["mixture.pictures.size=8"], "mixture.pictures.size"),
        (["mixture.pictures.tasks={text2image: 1, edges: 1.0e-9}"], "mixture.pictures.tasks.edges: weight 1e-09 of"),
    ],
)
def test_sizes_that_cannot_be_are_one_line(settings: Any, expected: str) -> None:
    with pytest.raises(InputError) as error:
        load_config("stage1-256", settings)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_batch_and_tokens_of_a_step_take_the_place_of_each_other() -> None:
    assert load_config("stage1-256", ["step_tokens=1048576", "batch=512"]).batch == 512
    assert load_config("stage1-256", ["batch=512", "step_tokens=1048576"]).batch == 4096
    assert load_config("stage1-256", ["batch=512", "step_tokens=1048576"]).step_tokens == 1048576
