"""Which jobs were submitted from here: their ids and addresses, in this user's data folder."""

from __future__ import annotations

import json
from contextlib import suppress

from cluster.user_data import data_folder, write_whole


def remember_job(job_id: str, address: str) -> None:
    """Note the address of a job's folder. It is noted before anything is sent, so a killed sender's job is listed."""
    folder = data_folder() / "jobs"
    folder.mkdir(exist_ok=True)
    write_whole(folder / f"{job_id}.json", json.dumps({"address": address}))


def forget_job(job_id: str) -> None:
    """Remove the note."""
    (data_folder() / "jobs" / f"{job_id}.json").unlink(missing_ok=True)


def remembered_jobs() -> dict[str, str]:
    """Job id → address of its folder."""
    addresses: dict[str, str] = {}
    for path in sorted((data_folder() / "jobs").glob("[!.]*.json")):
        with suppress(FileNotFoundError):  # forgotten since they were listed
            addresses[path.stem] = json.loads(path.read_text())["address"]
    return addresses
