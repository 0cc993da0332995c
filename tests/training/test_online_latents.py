"""`latents: online`: pictures decoded, drawn and degraded when they are read, encoded where the model computes."""

from __future__ import annotations

import io
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from tiny_models import save_vae
from typer.testing import CliRunner

from labeling.dataset import Dataset, open_store, write_shard
from labeling.registry import load_labeler
from model.codecs import load_codec
from model.inputs import InputError
from model.inputs.yaml_files import to_yaml
from model.pictures import decode_picture
from pipelines.cli.app import app
from training.batch import Sample, StepBatch
from training.config import TrainingConfig, load_config
from training.dataloader import read_ahead
from training.device import DeviceBatches, encode_pictures
from training.metrics_logger import read_metrics
from training.plan.manifest import Manifest
from training.plan.mixture import build_manifest, with_encoders
from training.reader import PlanReader

OLD = Path(__file__).parents[1] / "compatibility"
TASKS = ["text2image", "edges", "segmentation", "deblurring"]
SOURCES = ("pictures", "views")


def _config(latents: str, folder: Path, codec: str = "dct", sources: tuple[str, ...] = SOURCES, **changes: Any) -> Any:
    served = {"pictures": ("dataset", TASKS), "views": ("views", ["views"])}
    mixture: dict[str, Any] = dict.fromkeys(served)  # those of the preset that are not wanted are taken out
    for name in sources:
        place, tasks = served[name]
        mixture[name] = {"dataset": str(folder / place), "tasks": tasks, "latents": latents}
    settings = {
        "size": 64,
        "steps": 4,
        "batch": 8,
        "log_every": 1,
        "mixture": mixture,
        "codec": codec if latents == "online" else None,
        "objective": {"min_views": 2, "max_views": 3, "caption_dropout": 0.3},
        "model": {"hidden_size": 24, "depth": 1, "num_heads": 2, "num_kv_heads": 2, "caption_channels": 384},
        "optimizer": {"warmup": 2, "schedule": "constant"},
        "checkpoints": {"every": 2, "first": False},
        "workers": {"count": 1, "threads": 1},
    }
    return load_config("debug", {**settings, **changes})


def _manifest(config: TrainingConfig) -> Manifest:
    return build_manifest(config.mixture, config.size, 4, config.text_encoder, config.codec)


def _samples(config: TrainingConfig, manifest: Manifest, codec: str = "dct", workers: int = 1) -> dict[int, Sample]:
    """Noise seed, which a sample is known by, → sample, of a few steps."""
    device = DeviceBatches(config, codec, "minilm", torch.device("cpu"))
    found: dict[int, Sample] = {}
    for rank in range(workers):
        batches = device.ready(read_ahead(PlanReader(manifest, config), rank, workers, range(6)))
        found |= {sample.noise_seed: sample for batch in batches for sample in chain.from_iterable(batch.packs)}
    return found


def _without_latents(folder: Path) -> None:
    for group in [path for name in ("dataset", "views") for path in (folder / name).glob("latents-*")]:
        shutil.rmtree(group)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("dataset", "views"):
        shutil.copytree(OLD / name, tmp_path / name)
    return tmp_path


def _encode_again(dataset: Dataset, group: str, codec: str) -> None:
    """Make a group of latents of pictures with another codec, as its labeler makes it."""
    labeler = load_labeler(group, {"codec": codec})
    labeler.load()
    declared = {"labeler": "latents", "version": 1, "parameters": {"codec": codec}, "weights": labeler.weights_digest()}
    dataset.declare(group, declared)
    columns: dict[str, list[str]] = {"images": ["id"]}
    for name in (*labeler.reads, "images.id"):
        columns.setdefault(name.split(".")[0], []).append(name.split(".")[1])
    for shard in dataset.shard_names:
        rows = []
        for row in dataset.join(shard, columns).to_pylist():
            if "images.image" in row:
                row["images.image"] = decode_picture(row["images.image"])
            rows.append({"id": row["images.id"], **labeler.label_row(row), "error": None})
        types = {"id": pa.string(), **{field.name: field.type for field in labeler.schema}, "error": pa.string()}
        table = pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()})
        write_shard(dataset.store, group, shard, table, dataset.footer("images", shard).row_groups, "recipe")


@pytest.mark.parametrize("kind", ["dct", "vae"])
def test_pictures_encoded_when_used_are_the_stored_ones(folder: Path, kind: str) -> None:
    codec, sources = kind, SOURCES
    if kind == "vae":
        save_vae(folder / "vae", scaling_factor=1.5)
        codec, sources = str(folder / "vae"), ("pictures",)
        for group in ("latents-64", "latents-64-edges", "latents-64-segmentation"):
            _encode_again(Dataset(folder / "dataset"), group, codec)
    stored = _config("stored", folder, sources=sources)
    counts, expected = _manifest(stored).counts(), _samples(stored, _manifest(stored), codec)
    _without_latents(folder)  # nothing of them is needed
    online = _config("online", folder, codec, sources)
    manifest = _manifest(online)
    assert manifest.counts() == counts
    assert manifest.sources["pictures"].declarations["latents-64"]["parameters"] == {"codec": codec}
    assert "latents-64" not in manifest.sources["pictures"].shards.content
    found = _samples(online, manifest, codec)
    assert {sample.task for sample in found.values()} == {*TASKS, *(("views",) if "views" in sources else ())}
    for samples in (found, _samples(online, manifest, codec, workers=2)):
        assert samples.keys() == expected.keys()
        for seed, sample in samples.items():
            known = expected[seed]
            assert (sample.task, dict(sample.pictures), sample.latents.dtype) == (known.task, {}, np.float16)
            np.testing.assert_array_equal(sample.sigmas, known.sigmas)
            np.testing.assert_array_equal(sample.latents, known.latents)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.long
def test_run_encodes_its_pictures_with_the_losses_of_stored_ones(folder: Path) -> None:
    """From the command line: whatever the number of workers, and where it goes on from a checkpoint."""
    workers = {"count": 2, "threads": 1, "pack_tokens": 100}
    losses = {}
    for latents, starts in (("stored", [{}]), ("online", [{"steps": 2, "workers": workers}, {}])):
        for changes in starts:
            if latents == "online":
                _without_latents(folder)
            config = _config(latents, folder, **changes)
            (folder / "run.yaml").write_text(to_yaml(config.model_dump(mode="json")))
            result = CliRunner().invoke(app, ["train", str(folder / "run.yaml"), "--run", str(folder / latents)])
            assert result.exit_code == 0, (result.output, result.exception)
        losses[latents] = [record["loss"] for record in read_metrics(open_store(folder / latents))]
    assert len(losses["stored"]) == 4
    assert losses["online"] == pytest.approx(losses["stored"], rel=1e-5)


def test_pictures_travel_between_processes(folder: Path) -> None:
    config = _config("online", folder)
    batch = PlanReader(_manifest(config), config).read(0, 0, 1)
    again = StepBatch.from_bytes(batch.to_bytes())
    device = DeviceBatches(config, "dct", "minilm", torch.device("cpu"))
    for one, other in zip(*(chain.from_iterable(device.encoded(each).packs) for each in (batch, again)), strict=True):
        np.testing.assert_array_equal(one.latents, other.latents)
    assert {len(sample.pictures) for pack in again.packs for sample in pack} >= {2}


def test_a_batch_on_a_device_is_always_of_one_number_of_pictures() -> None:
    """So that how it rounds does not depend on how many pictures there are."""
    codec, sizes = load_codec("dct"), []

    class Device:
        """What a GPU would be asked for."""

        device = torch.device("meta")

        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            sizes.append(tuple(pixels.shape))
            return codec.encode(pixels)

    random = np.random.default_rng(0)
    shapes = [(256, 256, 3)] * 5 + [(512, 512, 3), (192, 320, 3)]
    pictures = [random.integers(0, 256, shape, np.uint8) for shape in shapes]
    found = encode_pictures(Device(), pictures)  # type: ignore[arg-type]
    assert sizes == [(4, 3, 256, 256), (4, 3, 256, 256), (1, 3, 512, 512), (4, 3, 192, 320)]
    for latent, alone in zip(found, encode_pictures(codec, pictures), strict=True):
        torch.testing.assert_close(latent, alone, atol=2e-3, rtol=2e-3)


def test_what_cannot_be_encoded_is_one_line(folder: Path) -> None:
    with pytest.raises(InputError, match=r"mixture.pictures.latents is online: name the `codec`, as dct or a path"):
        _config("online", folder, codec="")
    with pytest.raises(InputError, match="no-such"):
        _manifest(_config("online", folder, codec=str(folder / "no-such")))
    config = _config("online", folder, sources=("pictures",))
    mixture = {"pictures": config.mixture["pictures"].model_copy(update={"tasks": {"hed": 1.0}})}
    with pytest.raises(InputError, match="no group 'hed', which hed needs; make it with `label`"):
        build_manifest(mixture, 64, 4, None, "dct")
    mixed = {**config.mixture, "views": _config("stored", folder).mixture["views"]}
    build_manifest(mixed, 64, 4, None, "dct")
    save_vae(folder / "vae")
    with pytest.raises(InputError, match="come from different weights; latents must be of one kind"):
        build_manifest(mixed, 64, 4, None, str(folder / "vae"))


def test_label_of_another_size_than_its_picture_is_named(folder: Path) -> None:
    config = _config("online", folder, sources=("pictures",))
    reader = PlanReader(_manifest(config), config)
    stream = next(stream for stream in reader.manifest.streams if stream.task == "edges")
    planned = next(one for one in reader.dealer.plan.step(0) if one.task == "edges")
    with pytest.raises(
        InputError, match=r"edges/\d+.parquet row \d: edges of .* for a picture of 9×9; label edges again"
    ):
        reader._pictures.condition(stream, planned, 9, 9)


def test_picture_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config("online", folder, sources=("pictures",))
    reader = PlanReader(_manifest(config), config)
    monkeypatch.setattr("model.pictures.decode_picture", lambda data: Image.open(io.BytesIO(data[:20])))
    with pytest.raises(InputError, match=r"images/\d+.parquet row \d: no picture can be read \(cannot identify image"):
        reader.read(0, 0, 1)


def test_run_goes_on_with_the_codec_that_it_began_with(folder: Path) -> None:
    """Which may be at another address: its weights are what counts."""
    for name, factor in (("vae", 1.5), ("moved", 1.5), ("changed", 2.5)):
        save_vae(folder / name, scaling_factor=factor)
    config = _config("online", folder, str(folder / "vae"))
    manifest = _manifest(config)
    moved = with_encoders(manifest, config.model_copy(update={"codec": str(folder / "moved")}))
    codecs = {source.declarations["latents-64"]["parameters"]["codec"] for source in moved.sources.values()}
    assert codecs == {str(folder / "moved")}
    with pytest.raises(InputError, match=r"^codec .*/changed: other weights than those of .*/vae, which the run"):
        with_encoders(manifest, config.model_copy(update={"codec": str(folder / "changed")}))
    assert "codec" not in config.fixed()
    assert all("latents" not in source for source in _config("stored", folder).fixed()["mixture"].values())
