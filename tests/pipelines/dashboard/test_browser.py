"""The dashboard in a browser: look at labels, make one stale, rebuild it; train, scale, stop. Saves screenshots."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from dashboard_process import Dashboard, served
from playwright.sync_api import Page, TimeoutError, expect, sync_playwright
from process_tree import training_suspended

from cluster.local import work_processes
from labeling.dataset import Dataset, dataset_status, open_store
from pipelines.ingest import ingest
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.log import stored_lines
from pipelines.jobs.status import job_status, list_jobs
from pipelines.label import label
from training.metrics_logger import read_metrics

CHROMIUM = "/usr/bin/chromium"
SCREENSHOTS = Path(__file__).parents[3] / "runs" / "screenshots"
needs_chromium = pytest.mark.skipif(
    not Path(CHROMIUM).exists() and os.environ.get("CI") != "true",
    reason=f"no {CHROMIUM}; install Debian's package chromium",
)
pytestmark = [pytest.mark.slow, pytest.mark.long, needs_chromium]
MILLISECONDS = 120_000  # that a page may take on a busy machine


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, photographs: Path, ray_cluster: None) -> Dataset:
    """A dataset of photographs with their edges."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "source").mkdir()
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "brick.png"):
        shutil.copy(photographs / name, folder / "source" / name)
    ingest(str(folder / "source"), str(folder / "photographs"))
    label(str(folder / "photographs"), ["edges", "latents-64-edges"])
    return Dataset.open(folder / "photographs")


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory, pictures: Dataset) -> Iterator[Dashboard]:
    import ray  # it reads its environment when it is imported

    patch = pytest.MonkeyPatch()
    data = tmp_path_factory.mktemp("data")
    patch.setenv("XDG_DATA_HOME", str(data))
    patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)  # rather than one for each job
    with served(data, pictures.uri) as running:
        yield running
    for attempt, _ in list_jobs():
        for process in work_processes(attempt.name):
            process.kill()
    patch.undo()


@pytest.fixture(scope="module")
def page(dashboard: Dashboard) -> Iterator[Page]:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1050}, base_url=dashboard.address)
        page.set_default_timeout(MILLISECONDS)
        expect.set_options(timeout=MILLISECONDS)
        page.on("pageerror", lambda error: print(f"{page.url}: {error}"))
        page.on("console", lambda entry: print(f"{page.url}: {entry.text}") if entry.type == "error" else None)
        yield page
        browser.close()


def visit(page: Page, address: str) -> None:
    """Open a page of Dagster: it stays blank where a single one of its scripts is answered with an error."""
    page.goto(address)
    page.get_by_role("link", name="Runs").first.wait_for(timeout=MILLISECONDS)


def take_screenshot(page: Page, name: str) -> None:
    page.wait_for_timeout(400)  # charts and menus unfold
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def expect_picture(page: Page, alternative: str) -> None:
    """Assert that an asset page shows a picture with this alternative text, and that the picture was loaded."""
    picture = page.get_by_alt_text(alternative).first
    try:
        expect(picture).to_be_visible(timeout=MILLISECONDS / 2)
    except AssertionError:  # as a person does when a part of a page stays away; what is there instead is printed
        print(f"{page.url} lacks {alternative!r}; once more\n{page.locator('body').inner_text()}", flush=True)
        page.reload()
        expect(picture).to_be_visible()
    assert picture.evaluate("it => it.decode().then(() => it.naturalWidth)") > 100


def launch(page: Page, job: str, step: str, form: dict[str, Any]) -> str:
    """Fill in a job's launch form, press the button, and give the id of the Dagster run."""
    text = yaml.safe_dump({"ops": {step: {"config": form}}})
    visit(page, f"/locations/onediffusion/jobs/{job}/playground/setup?config={quote(text)}")
    editor = page.locator(".CodeMirror").first
    try:
        editor.wait_for(timeout=MILLISECONDS / 2)
    except TimeoutError as error:  # as a person does when a page of Dagster loads for ever; why is printed above
        print(f"{page.url} loads for too long ({error}); once more", flush=True)
        page.reload()
    expect(editor).to_contain_text(step)
    button = page.get_by_role("button", name=re.compile("Launch Run"))
    expect(button).to_be_enabled()
    take_screenshot(page, f"form-{job.replace('_', '-')}")
    button.click()
    page.wait_for_url(re.compile(r"/runs/[0-9a-f-]{36}"))
    return page.url.split("/runs/")[1][:36]


def until(condition: Callable[[], Any], folder: JobFolder | None = None, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, list(stored_lines(folder.store)) if folder else condition
        time.sleep(0.5)


def wait_for_success(dashboard: Dashboard, run: str) -> None:
    """Wait until a Dagster run has succeeded."""
    query = """query($r: ID!) { runOrError(runId: $r) { ... on Run { status } } logsForRun(runId: $r) {
        ... on EventConnection { events { ... on ExecutionStepFailureEvent { error { message } } } } } }"""

    def done() -> bool:
        answer = dashboard.ask(query, r=run)
        status = answer["runOrError"]["status"]
        assert status not in ("FAILURE", "CANCELED"), [event for event in answer["logsForRun"]["events"] if event]
        return bool(status == "SUCCESS")

    until(done)


def test_label_goes_stale_and_is_rebuilt(page: Page, pictures: Dataset, dashboard: Dashboard) -> None:
    visit(page, "/asset-groups")
    expect(page.get_by_role("link", name="3 / 3 Passed").first).to_be_visible()
    take_screenshot(page, "lineage")
    visit(page, "/assets/photographs/images")
    expect_picture(page, "images")
    take_screenshot(page, "images")
    visit(page, "/assets/photographs/edges")
    expect_picture(page, "edges")
    expect(page.get_by_text("Unsynced")).to_have_count(0)
    take_screenshot(page, "edges-fresh")
    before = page.get_by_alt_text("edges").first.get_attribute("src")

    declared = launch(
        page,
        "set_parameters",
        "declare_parameters",
        {
            "dataset": "photographs",
            "group": "edges",
            "parameters": {"low": 20.0, "high": 60.0},
        },
    )
    wait_for_success(dashboard, declared)
    visit(page, "/assets/photographs/edges")
    expect(page.get_by_text(re.compile("Unsynced")).first).to_be_visible()
    take_screenshot(page, "edges-stale")

    page.get_by_role("button", name=re.compile("Materialize$")).first.click()
    until(lambda: dataset_status(pictures)["edges"].fresh == 1)
    expect(page.get_by_alt_text("edges").first).not_to_have_attribute("src", before or "")
    expect(page.get_by_text(re.compile("Unsynced"))).to_have_count(0)
    expect_picture(page, "edges")
    take_screenshot(page, "edges-fresh-again")
    [(attempt, state)] = list_jobs(pictures.uri)
    assert state.phase == "succeeded" and attempt.target_name == "local"
    page.get_by_role("link", name="Jobs on photographs").click()
    page.wait_for_url("**/submissions/photographs")
    expect(page.get_by_role("row", name=attempt.job_id)).to_contain_text("succeeded")
    take_screenshot(page, "jobs")


def test_training_is_launched_scaled_and_stopped(
    page: Page, dashboard: Dashboard, shared_config: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "training"
    settings = {"base": "debug", **shared_config, "name": "training", "steps": 100_000, "log_every": 5}
    settings["checkpoints"] = {"every": 500, "keep": 2}
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(settings))
    training = launch(
        page,
        "start_training",
        "train_run",
        {
            "config": str(tmp_path / "training.yaml"),
            "run": str(run),
            "batch": 4,
            "workers": {"least": 1, "most": 1, "cpus": 0.25},
        },
    )
    store = open_store(run)
    page.goto("about:blank")  # a page that is shown takes its share of two cores
    until(lambda: len(read_metrics(store)) > 5)
    # Dagster shows a folder where it does not know an asset, and stays there.
    query, checkpoints = "{ assetNodes { assetKey { path } } }", {"assetKey": {"path": ["training", "checkpoints"]}}
    until(lambda: checkpoints in dashboard.ask(query)["assetNodes"])
    with training_suspended():
        visit(page, "/assets/training/checkpoints")
        expect_picture(page, "loss and speed as they are now")
        curves = dashboard.request("/curves/training.svg")[2].decode()
        assert "; 1 worker on local" in curves and "<polyline" in curves
        take_screenshot(page, "training")
    form = {"run": "training", "workers": {"least": 2, "most": 2, "cpus": 0.25}}
    scaling = launch(page, "scale_training", "scale_run", form)
    wait_for_success(dashboard, scaling)
    [(attempt, _)] = list_jobs(str(run))
    folder = JobFolder(attempt.address)
    page.goto("about:blank")
    until(lambda: any("with 2 workers" in line for line in stored_lines(folder.store)), folder=folder)
    logged = len(read_metrics(store))
    until(lambda: len(read_metrics(store)) > logged + 5, folder=folder)
    with training_suspended():
        visit(page, "/assets/training/checkpoints")
        expect_picture(page, "loss and speed as they are now")
        # As of the checkpoint that scaling made.
        expect_picture(page, "loss, throughput, learning rate and gradient norm")
        assert "; 2 workers on local" in dashboard.request("/curves/training.svg")[2].decode()
        take_screenshot(page, "training-scaled")
        visit(page, f"/runs/{training}")
        expect(page.get_by_role("button", name=re.compile("Terminate")).first).to_be_visible()
        take_screenshot(page, "training-run")
    page.get_by_role("button", name=re.compile("Terminate")).first.click()
    page.get_by_role("dialog").get_by_role("button", name=re.compile("Terminate")).click()
    until(lambda: job_status(attempt).phase == "stopped")
    take_screenshot(page, "training-stopped")
