"""What the dashboard relies on beyond Dagster's documented interface: each test names the part that has moved."""

from __future__ import annotations

import re
from importlib.metadata import entry_points, version
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions import data_version

from pipelines.dashboard import dagster_internals as ours
from pipelines.dashboard.partitions import MAX_PARTITIONS

ROOT = Path(ours.__file__).parents[2]
ADVICE = (
    f"dagster {version('dagster')} is installed, and pipelines/dashboard/dagster_internals.py was checked with "
    f"{ours.CHECKED_VERSION}"
)


def test_dagster_is_the_checked_version() -> None:
    assert version("dagster") == ours.CHECKED_VERSION, f"{ADVICE}: run all of these tests, then change CHECKED_VERSION"
    assert version("dagster-webserver") == ours.CHECKED_VERSION, ADVICE


@pytest.mark.parametrize(
    ("name", "constant"),
    [
        ("CODE_VERSION_TAG", ours.CODE_VERSION),
        ("DATA_VERSION_TAG", ours.DATA_VERSION),
        ("DATA_VERSION_IS_USER_PROVIDED_TAG", ours.DATA_VERSION_IS_OURS),
        ("INPUT_DATA_VERSION_TAG_PREFIX", ours.INPUT_DATA_VERSION),
        ("INPUT_EVENT_POINTER_TAG_PREFIX", ours.INPUT_EVENT_POINTER),
        ("SKIP_PARTITION_DATA_VERSION_DEPENDENCY_THRESHOLD", ours.UNCOMPARED_PARTITIONS),
    ],
)
def test_constants_are_those_of_dagster(name: str, constant: str | int) -> None:
    assert getattr(data_version, name, "gone") == constant, f"{name}: {ADVICE}"
    assert MAX_PARTITIONS < ours.UNCOMPARED_PARTITIONS


def test_event_tags_are_read_as_provenance() -> None:
    """Dagster finds the versions of a reported event's inputs by these tags."""
    key = dg.AssetKey(["faces", "images"])
    tags = {
        ours.CODE_VERSION: "code",
        f"{ours.INPUT_DATA_VERSION}/faces/images": "content",
        f"{ours.INPUT_EVENT_POINTER}/faces/images": ours.NO_EVENT,
        ours.DATA_VERSION_IS_OURS: "true",
    }
    provenance = data_version.DataProvenance.from_tags(tags)
    assert provenance, ADVICE
    assert (provenance.code_version, provenance.input_data_versions[key].value) == ("code", "content"), ADVICE
    assert provenance.input_storage_ids == {key: None} and provenance.is_user_provided, ADVICE


@pytest.mark.parametrize("script", ["dagster", "dagster-daemon"])
def test_console_scripts_exist(script: str) -> None:
    assert len(entry_points(group="console_scripts", name=script)) == 1, f"{script}: {ADVICE}"


def test_every_path_of_web_server_is_classified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new path may read files of this machine, or change something without asking for the role."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    (tmp_path / "workspace.yaml").write_text("load_from: []\n")
    with ours.web_application(str(tmp_path / "workspace.yaml"), read_only=True) as application:
        paths = {"/" + route.path.split("/")[1] for route in application.routes if not _is_static(route)}
    needing_care = {"/" + path.split("/")[1] for path in (*ours.FILE_PATHS, *ours.REPORT_PATHS)}
    harmless = {"/", "/{path:path}", "/graphql", "/server_info", "/dagit_info", "/logs", "/download_debug"}
    assert paths == needing_care | harmless, ADVICE


def test_scripts_of_pages_are_where_the_proxy_reads_them() -> None:
    page = (ours.static_folder().parents[1] / "index.html").read_text()
    scripts = re.findall(f'src="[^"]*{ours.STATIC_PATH}([^"]+)"', page)
    assert scripts, ADVICE
    assert all((ours.static_folder() / script).is_file() for script in scripts), ADVICE


def _is_static(route: object) -> bool:
    return type(route).__name__ == "Mount" or re.search(r"\.\w+$|^/(static|vendor)\b", str(route.path)) is not None  # type: ignore[attr-defined]


def test_check_evaluations_are_read_back_with_their_time() -> None:
    key = dg.AssetCheckKey(dg.AssetKey(["run", "checkpoints"]), "loss")
    with dg.DagsterInstance.ephemeral() as instance:
        assert ours.last_check_evaluations(instance, [key]) == {}
        instance.report_runless_asset_event(dg.AssetCheckEvaluation(key.asset_key, key.name, True, {}))
        [(reported, evaluation)] = ours.last_check_evaluations(instance, [key]).values()
    assert reported > 0 and evaluation.passed, ADVICE


def test_newest_events_have_growing_numbers() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(2):
            before = ours.newest_events(instance, [("a", "b"), ("a", "c")])
            instance.report_runless_asset_event(dg.AssetMaterialization(["a", "b"], partition="1"))
        after = ours.newest_events(instance, [("a", "b"), ("a", "c")])
    assert after["a", "c"] is None and before["a", "b"] and after["a", "b"] > before["a", "b"], ADVICE


def test_pools_of_ended_runs_are_freed() -> None:
    with dg.instance_for_test() as instance:
        storage = instance.event_log_storage
        storage.set_concurrency_slots("run_faces", 1)
        storage.claim_concurrency_slot("run_faces", "gone", "step")
        assert storage.get_concurrency_run_ids() == {"gone"}, ADVICE
        ours.create_databases(instance)
        ours.free_pools_of_ended_runs(instance)
        assert storage.get_concurrency_run_ids() == set(), ADVICE


def test_private_parts_of_dagster_are_used_in_two_files() -> None:
    private = re.compile(r"\bdagster(_\w+)?\._|\bdagster_webserver\.|[\"']\.?dagster/")
    offenders = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in ("pipelines", "cluster", "labeling", "training", "model")
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in ("dagster_internals.py", "dagster_storage.py")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if private.search(line)
    ]
    assert not offenders, "these belong into pipelines/dashboard/dagster_internals.py"
