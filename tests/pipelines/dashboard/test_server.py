"""The server and its processes, which neither die nor stay behind, and jobs that outlive them."""

from __future__ import annotations

import json
import socket
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from dashboard_process import ASSETS, LAUNCH, STOP_NOTHING, Dashboard, command, descendants, served
from process_tree import training_suspended

from cluster.local import work_processes
from labeling.dataset import Dataset, open_store
from model.inputs import InputError
from pipelines.dashboard.processes import is_alive
from pipelines.dashboard.server import _listen, address_of, dashboard
from pipelines.dashboard.tracked_assets import state_folder, tracked_assets
from pipelines.jobs.status import list_jobs
from training.metrics_logger import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.long]


def keys(running: Dashboard) -> set[tuple[str, ...]]:
    return {tuple(node["assetKey"]["path"]) for node in running.ask(ASSETS)["assetNodes"]}


def test_dead_processes_restart_and_all_end_together(
    tmp_path: Path, pictures_original: Path, views_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, str(pictures_original)) as running:
        strange = running.request("/graphql", {"Host": "elsewhere.example"}, b"{}")
        assert strange[0] == 403
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        with pytest.raises(InputError, match=f"served already, at {running.address}$"):
            dashboard([])
        # What another command changes is seen without anyone restarting anything, or it is refused as a whole.
        with pytest.raises(InputError, match="unknown: not on the dashboard"):
            dashboard([str(views_dataset)], forgotten=["unknown"])
        with pytest.raises(InputError, match="neither a dataset nor a run"):
            dashboard([str(tmp_path)], forgotten=["pictures"])
        assert [asset.name for asset in tracked_assets()] == ["pictures"]
        lines: list[str] = []
        dashboard([str(views_dataset)], forgotten=["pictures"], say=lines.append)
        assert lines[0].startswith(f"the dashboard is served already, at {running.address}; it shows in some seconds")
        running.until(lambda: {key[0] for key in keys(running)} == {views_dataset.name})
        dashboard([str(pictures_original)], say=lines.append)
        web = next(one for one in descendants(running) if command(one)[3:4] == ["web"])
        web.kill()
        running.until(lambda: any("'web' died (-9), started again" in line for line in running.lines))
        running.until(lambda: running.request("/server_info")[0] == 200)
        # A dataset that is labeled by the command line is seen without anyone reloading anything.
        dataset = Dataset.open(pictures_original)
        dataset.declare(
            "own", {"labeler": "own", "version": 1, "parameters": {}, "weights": "", "reads": ["images.image"]}
        )
        try:
            running.until(lambda: ("pictures", "own") in keys(running), seconds=90)
        finally:
            dataset.store.delete_tree("own")
        family = descendants(running)
        assert len(family) >= 4
    assert running.process.returncode == 0
    assert running.lines[-1] == "dashboard: ends; jobs that were sent go on"
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left


def test_job_outlives_the_dashboard_that_sent_it(
    tmp_path: Path, shared_config: dict[str, Any], shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed in the middle of a training: it goes on, and the next dashboard says so of the run that followed it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    settings = {"base": "debug", **shared_config, "steps": 100_000, "log_every": 5}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    form = {"config": str(tmp_path / "run.yaml"), "run": str(tmp_path / "run"), "workers": {"cpus": 0.25}}
    selector = {**STOP_NOTHING["selector"], "pipelineName": "start_training"}
    execution = {"selector": selector, "mode": "default"}
    execution["runConfigData"] = json.dumps({"ops": {"train_run": {"config": form}}})
    query = """query($r: ID!) { runOrError(runId: $r) { ... on Run { status } } logsForRun(runId: $r) {
        ... on EventConnection { events { ... on MessageEvent { message } } } } }"""
    store = open_store(tmp_path / "run")
    suspended = ExitStack()

    def follows(running: Dashboard) -> str:
        """Materialize it, and wait until that follows the job."""

        def launched() -> Any:  # not while the code server starts
            return running.ask(LAUNCH, p=joined)["launchRun"].get("run")

        run = running.until(launched)["runId"]
        running.until(lambda: any(attempt.job_id in str(e) for e in running.ask(query, r=run)["logsForRun"]["events"]))
        return str(run)

    try:
        with served(tmp_path / "data") as running:
            run = running.ask(LAUNCH, p=execution)["launchRun"]["run"]["runId"]
            running.until(lambda: read_metrics(store), seconds=180)
        suspended.enter_context(training_suspended())  # while dashboards start
        [(attempt, state)] = list_jobs()
        assert state.phase == "running"
        last = read_metrics(store)[-1]["step"]
        with served(tmp_path / "data") as running:
            answer = running.ask(query, r=run)
            assert answer["runOrError"]["status"] == "FAILURE"
            goes_on = f"the dashboard ends; {attempt.job_id} goes on: onediffusion logs -f {attempt.job_id}"
            assert any(goes_on in str(event) for event in answer["logsForRun"]["events"]), answer["logsForRun"][
                "events"
            ]
            # Again, now as an asset, whose pool has one place; the dashboard is killed, and the next must free it.
            selector = {**STOP_NOTHING["selector"], "pipelineName": "__ASSET_JOB"}
            selector["assetSelection"] = [{"path": ["run", "checkpoints"]}]
            joined = {"selector": selector, "mode": "default"}
            joined["runConfigData"] = json.dumps({"ops": {"run__train": {"config": {"workers": {"cpus": 0.25}}}}})
            running.until(lambda: ("run", "checkpoints") in keys(running))
            run = follows(running)
            # Its process is killed: its place in the pool is free again, and the job goes on.
            launched_run = next(one for one in descendants(running) if "spawn_main" in " ".join(command(one)))
            launched_run.kill()
            running.until(lambda: running.ask(query, r=run)["runOrError"]["status"] == "FAILURE")
            run = follows(running)
            # The code server is killed: what it had started ends with it, and another takes its place.
            code = next(one for one in descendants(running) if command(one)[3:4] == ["code"])
            started = code.children(recursive=True)
            assert len(started) >= 2
            code.kill()
            running.until(lambda: any("'code' died (-9), started again" in line for line in running.lines))
            running.until(lambda: running.ask(query, r=run)["runOrError"]["status"] == "FAILURE")
            running.until(lambda: not any(is_alive(process) for process in started), seconds=90)
            follows(running)
            page = running.request(f"/submissions/{store.uri.rpartition('/')[2]}")[2].decode()
            assert f"<code>{attempt.job_id}</code>" in page and ">running</span>" in page
            assert "/jobs/stop_job/" in page and "/jobs/scale_training/" in page
            assert running.request("/submissions")[2].decode().count(f"<code>{attempt.job_id}</code>") == 1
            family = descendants(running)
            running.process.kill()
            running.process.wait()
            assert not psutil.wait_procs(family, timeout=60)[1], "nothing of it stays, though a run was under way"
        with served(tmp_path / "data") as running:
            assert running.ask(query, r=run)["runOrError"]["status"] == "FAILURE"
            follows(running)
            suspended.close()
            running.until(lambda: read_metrics(store)[-1]["step"] > last)
    finally:
        suspended.close()
        for attempt, _ in list_jobs():
            for process in work_processes(attempt.name):
                process.kill()


def test_invalid_arguments_give_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert address_of("::1", 3000) == address_of("[::1]", 3000) == "http://[::1]:3000"
    with pytest.raises(InputError, match="name a --token-file as well"):
        dashboard([], host="0.0.0.0")
    with pytest.raises(InputError, match="one of ask, build, ignore"):
        dashboard([], new_pictures="buld")
    with pytest.raises(InputError, match="e-mail address, or team:NAME"):
        dashboard([], owner="me")
    with pytest.raises(InputError, match="neither a dataset nor a run"):
        dashboard([str(tmp_path)])
    assert stat.S_IMODE(state_folder().stat().st_mode) == 0o700


def test_taken_port_is_replaced_by_a_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port, lines = taken.getsockname()[1], []
        with _listen("127.0.0.1", port, lines.append) as listener:
            free = listener.getsockname()[1]
    assert free != port and lines == [f"port {port} is taken, so it is {free}"]
