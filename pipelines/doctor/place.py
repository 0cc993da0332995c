"""What a dataset's or run's place allows from a node: writing, reading, listing, how fast, and whether clocks agree."""

from __future__ import annotations

import os
import secrets
import time
from email.utils import parsedate_to_datetime

from cluster.work import Finding
from labeling.dataset import Store, open_store
from model.inputs import InputError, WorkFailed, one_line

PROBE_BYTES = 32 << 20
PROBES = "doctor"  # folder of what is written to be read again
MOST_SKEW = 300.0  # seconds; S3 refuses requests from 15 minutes on (RequestTimeTooSkewed)


def place_findings(address: str, where: str, size: int = PROBE_BYTES) -> list[Finding]:
    """Write, list, read and delete an object of `size` bytes below an address, from this node."""
    try:
        store = open_store(address)
        return _probe(store, where, size)
    except (InputError, WorkFailed, OSError) as error:
        remedy = "correct the address, the credentials (AWS_*) or AWS_ENDPOINT_URL of the job"
        if not address.startswith("s3://"):
            remedy = "name a folder that all nodes see and may write to"
        return [Finding("place of data", where, False, one_line(error, 200), remedy)]


def _probe(store: Store, where: str, size: int) -> list[Finding]:
    name, content = f"{PROBES}/probe-{secrets.token_hex(8)}", os.urandom(size)
    kind = "S3" if store.uri.startswith("s3://") else "disk of data"
    findings = []
    try:
        began = time.monotonic()
        store.put(name, content)
        wrote = time.monotonic()
        listed = name.rpartition("/")[2] in store.files(PROBES)
        seen = time.monotonic()
        same = store.read(name) == content
        read = time.monotonic()
    finally:
        store.delete(name)
    remedy = "" if listed else "this place does not list what was just written; take one that does (S3 since 2020 does)"
    if not same:
        remedy = "what is read differs from what was written; take another place"
    speeds = f"writes {size / 1e6 / (wrote - began):.0f} MB/s, lists in {1000 * (seen - wrote):.0f} ms"
    told = f"{speeds}, reads {size / 1e6 / (read - seen):.0f} MB/s"
    findings.append(Finding(f"{kind}: write, list, read, delete", where, not remedy, told, remedy))
    if kind == "S3":
        findings.append(_clock(store, where))
    return findings


def _clock(store: Store, where: str) -> Finding:
    """This machine's clock beside the server's, as the head of an answer tells it."""
    asked = time.time()
    answer = store.client.list_objects_v2(Bucket=store.bucket, Prefix=store.key(PROBES), MaxKeys=1)  # type: ignore[attr-defined]
    now = (asked + time.time()) / 2
    return clock_finding(answer["ResponseMetadata"]["HTTPHeaders"].get("date"), now, where)


def clock_finding(date: str | None, now: float, where: str) -> Finding:
    """date: of the server's answer, as HTTP writes it; now: Unix time here."""
    if not date:
        return Finding("S3's clock", where, True, "the server does not tell the time")
    skew = now - parsedate_to_datetime(date).timestamp()
    told = f"this clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
    remedy = "" if abs(skew) <= MOST_SKEW else "set this machine's clock (chrony, ntp): S3 refuses 15 minutes"
    return Finding("S3's clock", where, not remedy, told, remedy)
