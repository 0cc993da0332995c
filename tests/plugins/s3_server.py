"""A real S3 server (rclone) on loopback."""

from __future__ import annotations

import importlib.util
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from free_ports import free_ports


@contextmanager
def s3_server(root: Path, bucket: str = "lab") -> Iterator[dict[str, str]]:
    """A server whose buckets are the folders below `root`; yields the environment that reaches it."""
    package = importlib.util.find_spec("rclone_api")
    assert package is not None and package.origin is not None
    rclone = Path(package.origin).parent / "bin" / "rclone"
    (root / bucket).mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    key, secret = "tester", secrets.token_hex(16)
    server = subprocess.Popen(
        [str(rclone), "serve", "s3", str(root), "--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            raise AssertionError("rclone did not start")
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        server.terminate()
        server.wait()
