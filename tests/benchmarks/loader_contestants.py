"""One contestant of bench_loader.py in a process of its own: one pass over its rows, what it delivered, and how fast.

    python loader_contestants.py NAME rows|pictures FOLDER [--s3 s3://bucket/prefix] [--batch 32]

What is timed is from the first batch to the last; the time to the first is given apart. The consumer touches every page
that it is given, and checks that every row came as often as it should have.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from loader_data import SHAPE, TASK, Rows, number_of

WORKERS = 2  # processes of the peers
SHUFFLE_BUFFER = 500  # of webdataset
Batch = list[tuple[Any, Any]]  # (latent, text) or (picture, None) of each sample


def ours(folder: Path, place: str, kind: str, batch: int) -> Iterator[Batch]:
    from training.config import parse_config
    from training.dataloader import read_ahead
    from training.memory import keep_freed_memory
    from training.plan.mixture import build_manifest
    from training.reader import PlanReader

    keep_freed_memory()  # as a worker does
    rows = Rows.read(folder)
    config = parse_config(
        {
            "name": "bench",
            "steps": 1,
            "batch": batch,
            "size": 256,
            "mixture": {"a": {"dataset": f"{place}/ours", "tasks": ["inpainting" if kind == "pictures" else TASK]}},
            "model": {"caption_channels": rows.width},
            "objective": {"caption_dropout": 0.0},
        },
        "bench",
    )
    manifest = build_manifest(config.mixture, config.size, config.lanes)  # once a run, by its driver
    yield []
    for step in read_ahead(PlanReader(manifest, config), 0, 1, range(rows.count // batch)):
        samples = [sample for pack in step.packs for sample in pack]
        if kind == "pictures":
            yield [(sample.pictures[1], None) for sample in samples]
        else:
            yield [(sample.latents[0], sample.text) for sample in samples]


def unchecked(folder: Path, place: str, kind: str, batch: int) -> Iterator[Batch]:
    """Ours, without comparing the checksum of each array that is read."""
    from labeling.dataset import array_file

    array_file.read_checksums = lambda metadata: (False, None)  # type: ignore[assignment]
    yield from ours(folder, place, kind, batch)


def picture_of(data: bytes) -> Any:
    """What is made of a picture by all: decoded, fitted to its bucket, a part of it masked."""
    from model.conditions import degrade
    from model.pictures import aspect_bucket, decode_picture, fit_picture

    picture = decode_picture(data)
    width, height = aspect_bucket(picture.shape[1], picture.shape[0], 256)
    return degrade(fit_picture(picture, width, height), "inpainting", 0)


def collated(samples: list[dict[str, Any]], width: int) -> Any:
    """The cheapest way through torch's shared memory: one tensor of latents, one of all texts, their lengths."""
    import warnings

    import torch

    warnings.simplefilter("ignore")  # arrays over bytes are read-only, which torch warns of
    if "jpg" in samples[0]:
        return [torch.from_numpy(np.ascontiguousarray(picture_of(sample["jpg"]))) for sample in samples]
    latents = [torch.from_numpy(np.frombuffer(sample["latent"], np.float16).reshape(SHAPE)) for sample in samples]
    texts = [torch.from_numpy(np.frombuffer(sample["text"], np.float16).reshape(-1, width)) for sample in samples]
    return torch.stack(latents), torch.cat(texts), [len(text) for text in texts]


def parted(batch: Any) -> Batch:
    """What `collated` made, as samples again."""
    if isinstance(batch, list) and len(batch) != 3:
        return [(picture.numpy(), None) for picture in batch]
    latents, texts, lengths = batch
    return list(zip(latents.numpy(), np.split(texts.numpy(), np.cumsum(lengths)[:-1]), strict=True))


def _loaded(dataset: Any, folder: Path, batch: int, loader: Any = None) -> Iterator[Batch]:
    from torch.utils.data import DataLoader

    collate = partial(collated, width=Rows.read(folder).width)
    made = (loader or DataLoader)(dataset, batch_size=batch, num_workers=WORKERS, collate_fn=collate, drop_last=True)
    yield from map(parted, made)


def mosaicml(folder: Path, place: str, kind: str, batch: int) -> Iterator[Batch]:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    yield []
    where: dict[str, Any] = {"local": f"{place}/mosaicml"}
    if place.startswith("s3://"):  # into an empty cache, as on a new node
        where = {"local": tempfile.mkdtemp(), "remote": f"{place}/mosaicml"}
    dataset = StreamingDataset(**where, shuffle=True, shuffle_algo="py1e", shuffle_seed=1, batch_size=batch)
    yield from _loaded(dataset, folder, batch)


def litdata(folder: Path, place: str, kind: str, batch: int) -> Iterator[Batch]:
    from litdata import StreamingDataLoader, StreamingDataset

    yield []
    cache: dict[str, Any] = {}
    if place.startswith("s3://"):
        options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
        cache = {"cache_dir": tempfile.mkdtemp(), "storage_options": options}
    dataset = StreamingDataset(f"{place}/litdata/", shuffle=True, drop_last=False, **cache)
    yield from _loaded(dataset, folder, batch, StreamingDataLoader)


def webdataset(folder: Path, place: str, kind: str, batch: int) -> Iterator[Batch]:
    import webdataset as wds

    yield []
    tars = sorted((folder / "webdataset").glob("*.tar"))
    urls = list(map(str, tars))
    if place.startswith("s3://"):  # it reads addresses through curl
        import boto3
        from botocore.config import Config

        bucket, _, prefix = place.removeprefix("s3://").partition("/")
        client = boto3.client("s3", config=Config(signature_version="s3v4"))
        urls = [
            client.generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": f"{prefix}/webdataset/{tar.name}"}
            )
            for tar in tars
        ]
        urls = [f"pipe:curl -s '{url}'" for url in urls]
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), nodesplitter=None, empty_check=False).shuffle(SHUFFLE_BUFFER)
    yield from _loaded(dataset, folder, batch)


def floor(folder: Path, place: str, kind: str, batch: int) -> Iterator[Batch]:
    """The bytes of our latents and texts front to back, into one buffer; on S3 in ranges of 8 MiB, 8 at a time. Of
    pictures, what is made of them, by as many threads as a loader has, without reading."""
    from labeling.dataset import Dataset, in_parallel

    if kind == "pictures":
        jpegs = [path.read_bytes() for path in sorted((folder / "jpeg").glob("*.jpg"))]
        yield []
        made = in_parallel(picture_of, jpegs, WORKERS)
        while some := [(picture, None) for picture in islice(made, batch)]:
            yield some
        return
    dataset = Dataset(f"{place}/ours")
    size = 8 << 20
    yield []
    ranges = [
        (f"{group}/{shard}.parquet", start)
        for group in ("latents-256", "text")
        for shard, entry in dataset.shard_entries(group).items()
        for start in range(0, entry.size, size)
    ]
    if place.startswith("s3://"):
        read = in_parallel(lambda one: dataset.store.read_range(one[0], one[1], size), ranges, 8)
        yield from ([(np.frombuffer(content, np.uint8), None)] for content in read)
        return
    buffer = bytearray(size)
    for name, start in ranges:
        with open(f"{place}/ours/{name}", "rb", buffering=0) as file:
            file.seek(start)
            count = file.readinto(buffer)
        yield [(np.frombuffer(buffer, np.uint8, count), None)]


CONTESTANTS = {
    "ours": ours,
    "unchecked": unchecked,
    "mosaicml": mosaicml,
    "litdata": litdata,
    "webdataset": webdataset,
    "floor": floor,
}


def cpu_seconds() -> float:
    """CPU time of this process and of all that it started, those that have ended too."""
    parents, seconds = {}, {}
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split() if folder.name.isdecimal() else []
        except OSError:
            continue
        if fields:
            parents[int(folder.name)] = int(fields[1])
            seconds[int(folder.name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def is_ours(process: int) -> bool:
        while process and process != os.getpid():
            process = parents.get(process, 0)
        return process == os.getpid()

    return sum(used for process, used in seconds.items() if is_ours(process))


def measure(name: str, kind: str, folder: Path, place: str, batch: int) -> dict[str, float]:
    """Samples a second and the rest of what a contestant is judged by."""
    rows = Rows.read(folder)
    batches = CONTESTANTS[name](folder, place, kind, batch)
    next(batches)  # imports, and what a run does once
    began = time.perf_counter()
    first = used = 0.0
    samples = size = touched = 0
    seen: dict[int, int] = {}
    for made in batches:
        if not first:
            first, used = time.perf_counter(), cpu_seconds()
        else:
            samples += len(made)
            size += sum(array.nbytes for pair in made for array in pair if array is not None)
        for pair in made:
            touched += sum(int(a.reshape(-1).view(np.uint8)[::4096].sum()) for a in pair if a is not None)
        if kind == "rows" and name != "floor":
            for latent, text in made:
                number = number_of(latent)
                assert number == number_of(text), "a row's text is another's"
                seen[number] = seen.get(number, 0) + 1
    seconds, used = time.perf_counter() - first, cpu_seconds() - used
    if name == "floor":
        samples = int(size / rows.bytes_of_row) if kind == "rows" else samples
    if seen:
        assert len(seen) > 0.95 * (rows.count - batch) and max(seen.values()) <= 2, f"{name} delivered other rows"
    return {
        "rate": samples / seconds,
        "cpu_ms": used / samples * 1e3,
        "first": first - began,
        "samples": samples,
        "mb_per_second": size / 1e6 / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("kind", choices=["rows", "pictures"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--s3", default="")
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    print(
        json.dumps(measure(given.name, given.kind, given.folder, given.s3 or str(given.folder), given.batch)),
        flush=True,
    )
    os._exit(0) if given.name not in (
        "ours",
        "unchecked",
    ) else None  # loaders' threads and processes are not waited for


if __name__ == "__main__":
    main()
