"""The target `ray`: a Ray cluster that runs already, through its Jobs API."""

from __future__ import annotations

import json
import os
import shlex
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from cluster.checkout import CHECKOUT, checkout_files, job_pins, pack_checkout
from cluster.ray_environment import THREADS, cluster_token_file, prepare_ray
from cluster.target import RayTarget
from cluster.work import WORK_VARIABLE, AlreadySubmitted, Finding, TargetState, Work
from model.inputs import InputError, one_line

CONNECT_SECONDS = 10.0
AGENT_SECONDS = 60.0  # for the agent that takes jobs to start, after the head
STOP_SECONDS = 60.0
NO_AGENT = "No available agent to submit job"
# These variables are no secrets, and name the S3 that the addresses of a job mean.
FORWARDED = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED"),
    *("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"),
)


class RayBackend:
    """Jobs of a Ray cluster; their submission id is the work's name, which Ray refuses to take twice."""

    sees_all = True

    def __init__(self, target: RayTarget) -> None:
        self.target = target

    def plan(self, work: Work) -> dict[str, str]:
        """The request, and the files of the working directory; see `Backend.plan`."""
        request = {**self._request(work), "runtime_env": {**self._runtime(work), "working_dir": "(the files below)"}}
        return {
            f"POST {self.target.address}/api/jobs/": json.dumps(request, indent=2) + "\n",
            "working directory": "\n".join(checkout_files(self._folder())) + "\n",
        }

    def examine(self, work: Work) -> list[Finding]:
        """The version of the cluster's Ray, beside this machine's; see `Backend.examine`."""
        from importlib.metadata import version

        with self._explained(work.name):
            there = str(self.client().get_version() or "of an unknown version")
        return [Finding("the cluster's Ray answers", self.target.address, True, f"Ray {there}; here {version('ray')}")]

    def remarks(self, work: Work) -> list[str]:
        """See `Backend.remarks`."""
        return []

    def submit(self, work: Work) -> None:
        """See `Backend.submit`."""
        with tempfile.TemporaryDirectory(prefix="onediffusion-") as scratch:
            archive = Path(scratch, "working_dir.zip")
            pack_checkout(self._folder(), archive)
            request = {**self._request(work), "runtime_env": {**self._runtime(work), "working_dir": str(archive)}}
            with self._explained(work.name):
                client = self.client()
                deadline = time.monotonic() + AGENT_SECONDS
                while True:
                    try:
                        client.submit_job(**request)
                        return
                    except OSError as error:
                        silence = error
                        break
                    except RuntimeError as error:
                        # A head that has just started answers before its agent runs, which takes the jobs.
                        if NO_AGENT not in str(error) or time.monotonic() > deadline:
                            raise
                    time.sleep(1)
        # The cluster did not answer, so it may have taken the job.
        with suppress(InputError):
            if self.state(work.name).phase != "absent":
                return
        raise ConnectionError(one_line(str(silence)))

    def state(self, name: str) -> TargetState:
        """See `Backend.state`."""
        with self._explained(name):
            try:
                details = self.client().get_job_info(name)
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return TargetState("absent")
                raise
        status = str(details.status.value)
        if status == "PENDING":
            return TargetState("pending", "Ray is preparing the job's environment")
        if status == "RUNNING":
            return TargetState("running")
        return TargetState("ended", "" if status == "SUCCEEDED" else one_line(details.message or status))

    def stop(self, name: str) -> None:
        """See `Backend.stop`."""
        with self._explained(name):
            if self.state(name).phase in ("pending", "running"):
                self.client().stop_job(name)
                deadline = time.monotonic() + STOP_SECONDS
                while self.state(name).phase in ("pending", "running") and time.monotonic() < deadline:
                    time.sleep(0.5)

    def scale(self, name: str, work: Work) -> bool:
        """A running cluster has a fixed size, or grows by Ray's own autoscaler; see `Backend.scale`."""
        return True

    def logs(self, name: str) -> Iterator[str]:
        """See `Backend.logs`."""
        if self.state(name).phase != "absent":
            with self._explained(name):
                yield from self.client().get_job_logs(name).splitlines()

    def _request(self, work: Work) -> dict[str, Any]:
        # The driver only waits, so it reserves no CPU. Its tasks and actors ask Ray for their own.
        return {
            "submission_id": work.name,
            "entrypoint": shlex.join(["python", "-m", "pipelines", *work.arguments]),
            "entrypoint_num_cpus": 0,
            "metadata": {"kind": work.kind, "address": work.address},
        }

    def _runtime(self, work: Work) -> dict[str, Any]:
        forwarded = {name: os.environ[name] for name in FORWARDED if name in os.environ}
        variables = {**THREADS, **forwarded, **self.target.environment, WORK_VARIABLE: work.name}
        runtime: dict[str, Any] = {"env_vars": variables}
        if self.target.install == "pip":
            runtime["pip"] = {"packages": job_pins()}
        return runtime

    def _folder(self) -> Path:
        configured = self.target.working_dir
        folder = Path(configured).expanduser().absolute() if configured else CHECKOUT
        if not (folder / "pipelines" / "__main__.py").exists():
            raise InputError(f"{folder}: no checkout of this project; give one as `working_dir` in the target")
        return folder

    def client(self) -> Any:
        """Ray's own client of the cluster's Jobs API. Raises InputError for a wrong address, OSError without answer."""
        address = urlparse(self.target.address)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputError(
                f"{self.target.address}: write `address` as http://HOST:8265, the address of Ray's dashboard"
            )
        port = address.port or (443 if address.scheme == "https" else 80)
        # Ray's client waits without a limit for a host that does not answer.
        socket.create_connection((address.hostname, port), CONNECT_SECONDS).close()
        token = self._token()
        prepare_ray()
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self.target.address, headers={"Authorization": f"Bearer {token}"})

    def _token(self) -> str:
        if not self.target.token_file and (token := os.environ.get("RAY_AUTH_TOKEN")):
            return token
        path = Path(self.target.token_file or os.environ.get("RAY_AUTH_TOKEN_PATH") or cluster_token_file())
        try:
            return path.expanduser().read_text().strip()
        except OSError as error:
            raise InputError(
                f"{path}: cannot read the cluster's token ({error.strerror}); name its file as `token_file` in the "
                "target"
            ) from None

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn the cluster's answer to a user's mistake into an InputError of one line."""
        try:
            yield
        except InputError:
            raise
        except OSError as error:
            raise InputError(
                f"{self.target.address}: no Ray cluster answers there ({one_line(str(error))}); start one with "
                "`ray start --head`, or correct `address` in the target"
            ) from None
        except Exception as error:
            text = one_line(str(error))
            if type(error).__name__ == "AuthenticationError":
                raise InputError(
                    f"{self.target.address}: the cluster refuses this token; give its own as `token_file` in the target"
                ) from None
            if "already used" in text or "already exists" in text:
                raise AlreadySubmitted(f"{name}: runs on {self.target.address} already") from None
            if NO_AGENT in text:
                raise InputError(
                    f"{self.target.address}: the agent that takes jobs does not run; another Ray on the head's machine "
                    "may have its port: start the head with `--dashboard-agent-listen-port` and a free one"
                ) from None
            if type(error) is RuntimeError and "status code" in text:
                raise InputError(f"{self.target.address}: Ray refuses: {text[-300:]}") from None
            raise
