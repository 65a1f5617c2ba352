"""Suites: records, interruptions, identities, robustness, and submissions that the devkit takes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from PIL import Image

from tenfold.cmt import experiments
from tenfold.cmt.cli import chosen, main
from tenfold.cmt.config import CAMERAS, CLASSES
from tenfold.cmt.experiments import reproduce, shares, train_method
from tenfold.cmt.network_files import load_network
from tenfold.cmt.profiles import MASKED, PROFILES, UNMASKED
from tenfold.cmt.sensor_conditions import CONDITIONS
from tenfold.cmt.suite_runs import WORSE, ComparisonJob, ConditionJob, Job, Suite, TrainJob, slug
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.comparison import compare, judge, load_reported
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import save_atomically

CPU = AcceleratorConfig(device="cpu")
ROOT = Path(__file__).resolve().parents[3]
SMOKE = PROFILES["smoke"]
METHODS = {"cmt-masked-modal": MASKED, "cmt-unmasked": UNMASKED}
TITLES = {
    "no-lidar": "no LiDAR",
    "no-cameras": "no cameras",
    "neither": "neither sensor",
    "worse-single-sensor": "worse single sensor",
}
QUIET = ("--device", "cpu", "-q")


def call(*arguments: object) -> int:
    """Exit status of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    code = ended.value.code
    return code if isinstance(code, int) else int(code is not None)


def records(root: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in root.rglob("result.json")}


def unmasked_alone(folder: Path, **changes: Any) -> Suite:
    """The smoke suite with one method and all its sensors."""
    return Suite("smoke", chosen(SMOKE, (UNMASKED,), (), 1), folder, accelerator=CPU, **changes)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished smoke suite."""
    folder = tmp_path_factory.mktemp("smoke")
    status = call("reproduce", "--profile", "smoke", "--output", folder, "--workers", 1, *QUIET)
    assert status == 0
    return folder


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite("smoke", SMOKE, tmp_path, accelerator=CPU)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the seconds of pictures where only numbers are looked at."""
    monkeypatch.setattr(experiments, "draw_findings", lambda *_: None)


# -- records ---------------------------------------------------------------------------------------------


def test_every_run_of_the_suite_leaves_a_record(smoke: Path) -> None:
    found = {name: (record["setting"], record["method"]) for name, record in records(smoke).items()}
    expected = {"comparison-seed0": ("smoke, synthetic, comparison", "CMT")}
    for name, method in METHODS.items():
        expected[f"{name}-seed0"] = ("smoke, synthetic", method)
        for condition, title in TITLES.items():
            expected[f"{name}-{condition}-seed0"] = ("smoke, synthetic", f"{method}, {title}")
    assert found == expected


def test_records_are_of_the_stored_schema(smoke: Path) -> None:
    (schema,) = ROOT.glob("benchmarks/src/tenfold/benchmarks/schemas/result*.json")
    for record in records(smoke).values():
        jsonschema.validate(record, json.loads(schema.read_text()))
        assert record["status"] == "finished"
        assert record["dataset"] == "procedural scenes"


def test_finished_runs_keep_no_checkpoint_and_name_no_folder_of_the_machine(smoke: Path) -> None:
    assert not list(smoke.rglob("checkpoint.pt"))
    for path in smoke.rglob("*.json"):
        assert str(smoke) not in path.read_text(), path.name


def test_every_figure_of_a_record_is_a_picture(smoke: Path) -> None:
    for name, record in records(smoke).items():
        expected = {"figures/sample-0.png", "figures/precision-recall.png"}
        if name in ("cmt-masked-modal-seed0", "cmt-unmasked-seed0"):
            expected |= {"figures/sample-1.png"}
        if name == "comparison-seed0":
            expected = {"figures/conditions-mAP.png", "figures/conditions-NDS.png"}
        elif WORSE.replace(" ", "-") in name:
            expected = set()
        assert {figure["file"] for figure in record["figures"]} == expected, name
        for figure in record["figures"]:
            (path,) = smoke.rglob(f"{name}/{figure['file']}")
            with Image.open(path) as picture:
                assert picture.format == "PNG"
                assert len(picture.convert("L").getcolors() or ()) > 10
            assert figure["caption"]


@pytest.mark.parametrize("name", METHODS)
def test_trained_methods_have_metrics_curves_and_a_network(smoke: Path, name: str) -> None:
    record = records(smoke)[f"{name}-seed0"]
    metrics = record["metrics"]
    assert {"mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE"} <= set(metrics)
    assert {f"AP {name}" for name in CLASSES} <= set(metrics)
    assert metrics["mAP"] == pytest.approx(sum(metrics[f"AP {one}"] for one in CLASSES) / 10)
    errors = sum(1 - min(1.0, metrics[one] / 100) for one in ("mATE", "mASE", "mAOE", "mAVE", "mAAE"))
    assert metrics["NDS"] == pytest.approx((5 * metrics["mAP"] + 100 * errors) / 10)
    assert metrics["share of mAP"] == 100
    assert all(math.isfinite(value) for value in metrics.values())
    assert record["curves"]["loss"]["x"] == [2, 4, 6]
    assert record["curves"]["loss"]["x_label"] == "update"
    assert record["timing"]["throughput"] > 0
    (path,) = smoke.rglob(f"{name}-seed0/model.pt")
    method = next(method for method in SMOKE.methods if method.name == METHODS[name])
    stored = load_network(path)
    assert stored.network.network == method.network
    assert stored.data == SMOKE.data
    assert stored.scenes == SMOKE.scenes


@pytest.mark.parametrize("name", METHODS)
def test_the_worse_sensor_is_the_lesser_of_each_metric(smoke: Path, name: str) -> None:
    found = records(smoke)
    single = [found[f"{name}-{one}-seed0"]["metrics"] for one in ("no-lidar", "no-cameras")]
    for metric, value in found[f"{name}-worse-single-sensor-seed0"]["metrics"].items():
        assert value == min(one[metric] for one in single)
    assert "NDS" in found[f"{name}-worse-single-sensor-seed0"]["metrics"]


def test_shares_are_per_cent_of_what_all_sensors_give(smoke: Path) -> None:
    found = records(smoke)
    whole = found["cmt-masked-modal-seed0"]["metrics"]["NDS"]
    part = found["cmt-masked-modal-no-lidar-seed0"]["metrics"]
    assert part["share of NDS"] == pytest.approx(100 * part["NDS"] / whole)


def test_the_share_of_nothing_is_nothing() -> None:
    expected = {"share of mAP": 0.0, "share of NDS": 25.0}
    assert shares({"mAP": 3.0, "NDS": 2.0}, {"mAP": 0.0, "NDS": 8.0}) == expected


def test_the_comparison_is_what_the_runs_say(smoke: Path) -> None:
    found = records(smoke)
    for name, value in found["comparison-seed0"]["metrics"].items():
        metric, run = name.split(": ")
        method = next(folder for folder, method in METHODS.items() if run.startswith(method))
        condition = run.removeprefix(f"{METHODS[method]}, ")
        folder = {"both sensors": f"{method}-seed0"}.get(condition, f"{method}-{slug(condition)}-seed0")
        folder = folder.replace("neither-sensor", "neither")
        assert value == pytest.approx(found[folder]["metrics"][metric]), name
    assert len(found["comparison-seed0"]["metrics"]) == 2 * 2 * 4


# -- doing it again --------------------------------------------------------------------------------------


def test_finished_runs_are_not_done_again(smoke: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob("*") if path.is_file()}
    assert call("reproduce", "--profile", "smoke", "--output", smoke, "--workers", 1, *QUIET) == 0
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("undrawn")
def test_a_killed_suite_goes_on_to_the_same_metrics_and_force_repeats_it(
    kill_at: Callable[..., None], smoke: Path, tmp_path: Path
) -> None:
    kill_at(
        "cmt/smoke/*/checkpoint.pt", "-m", "tenfold.cmt", "reproduce", "--profile", "smoke",
        "--methods", UNMASKED, "--workers", 1, "--output", tmp_path, *QUIET, cwd=tmp_path,
    )  # fmt: skip
    assert not list(tmp_path.rglob("result.json"))
    expected = records(smoke)["cmt-unmasked-seed0"]
    done = []
    for force in (False, True):
        reproduce(unmasked_alone(tmp_path, force=force), workers=1, quiet=True)
        (path,) = tmp_path.rglob("cmt-unmasked-seed0/result.json")
        record = json.loads(path.read_text())
        assert record["metrics"] == expected["metrics"]
        assert record["curves"] == expected["curves"]
        done.append(path.stat().st_mtime_ns)
    assert done[1] > done[0]


def test_a_failed_run_says_why_and_is_not_finished(tmp_path: Path) -> None:
    method = SMOKE.methods[1]
    image = replace(method.network.image, original_size=(900, 1600))
    method = replace(method, network=replace(method.network, image=image), conditions=())
    suite = Suite("smoke", replace(SMOKE, methods=(method,)), tmp_path, accelerator=CPU)
    job = TrainJob(method.name, 0)
    with pytest.raises(TenfoldError, match="90 x 160 pixels; set original_size to that"):
        train_method(suite, job)
    (record,) = records(tmp_path).values()
    assert record["status"] == "failed"
    assert "original_size" in record["error"]
    assert not suite.run(job).is_finished


# -- robustness ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the robustness command writes."""
    folder = tmp_path_factory.mktemp("robustness")
    (path,) = smoke.rglob("cmt-masked-modal-seed0/model.pt")
    arguments = ("--checkpoint", path, "--output", smoke, "--results", folder, "--workers", 0)
    assert call("robustness", *arguments, *QUIET) == 0
    return folder


def test_robustness_judges_all_conditions(judged: Path) -> None:
    scores = json.loads((judged / "scores.json").read_text())
    cameras = {f"no {camera}" for camera in CAMERAS}
    beams = {"16 beams", "8 beams", "4 beams", "1 beam"}
    sensors = {"both sensors", "no LiDAR", "no cameras", "neither sensor"}
    assert set(scores) == sensors | cameras | beams
    for name in CONDITIONS:
        assert (judged / f"submission-{name}.json").is_file(), name
    for metric in ("mAP", "NDS"):
        with Image.open(judged / f"conditions-{metric}.png") as picture:
            assert picture.format == "PNG"


def test_robustness_finds_what_the_suite_found(judged: Path, smoke: Path) -> None:
    scores, found = json.loads((judged / "scores.json").read_text()), records(smoke)
    for title, name in (("both sensors", ""), ("no LiDAR", "-no-lidar"), ("neither sensor", "-neither")):
        metrics = found[f"cmt-masked-modal{name}-seed0"]["metrics"]
        for metric in ("mAP", "NDS", "mATE"):
            assert scores[title][metric] == pytest.approx(metrics[metric], rel=1e-6), title


def test_conditions_change_what_is_found(judged: Path) -> None:
    """A single beam sees the ground alone, which is below the range: it is like no LiDAR."""
    names = set(CONDITIONS) - {"beams-1"}
    found = {name: (judged / f"submission-{name}.json").read_text() for name in names}
    assert len(set(found.values())) == len(names)


@pytest.mark.parametrize("condition", ["both", "no-lidar"])
def test_the_devkit_takes_a_submission_and_scores_it_alike(
    condition: str, judged: Path, smoke: Path, tmp_path: Path
) -> None:
    assert SMOKE.scenes is not None
    (root,) = (path.parents[1] for path in smoke.rglob("sample_annotation.json"))
    tables = NuScenes(SMOKE.scenes.version, str(root), verbose=False)
    content = json.loads((judged / f"submission-{condition}.json").read_text())
    assert content["meta"]["use_camera"]
    assert content["meta"]["use_lidar"]
    evaluation = DetectionEval(
        tables,
        config_factory("detection_cvpr_2019"),
        str(judged / f"submission-{condition}.json"),
        SMOKE.scenes.test_split,
        str(tmp_path),
        verbose=False,
    )
    metrics, _ = evaluation.evaluate()
    title = {"both": "both sensors", "no-lidar": "no LiDAR"}[condition]
    scores = json.loads((judged / "scores.json").read_text())[title]
    assert scores["mAP"] == pytest.approx(100 * metrics.mean_ap)
    assert scores["NDS"] == pytest.approx(100 * metrics.nd_score)


# -- identity --------------------------------------------------------------------------------------------


def hashes(suite: Suite) -> dict[Job, str]:
    return {job: suite.run(job).config_hash for stage in suite.jobs() for job in stage}


def with_data(suite: Suite, **changes: Any) -> Suite:
    return replace(suite, profile=replace(suite.profile, data=replace(suite.profile.data, **changes)))


def with_method(suite: Suite, **changes: Any) -> Suite:
    """The first method with other settings."""
    first, *others = suite.profile.methods
    return replace(
        suite, profile=replace(suite.profile, methods=(replace(first, **changes), *others))
    )  # fmt: skip


def test_where_and_how_a_run_is_done_is_no_part_of_its_identity(suite: Suite, tmp_path: Path) -> None:
    expected = hashes(suite)
    for other in (
        replace(suite, output=tmp_path / "elsewhere"),
        replace(suite, data_root=tmp_path),
        replace(suite, checkpoint_seconds=1.0, force=True),
        replace(suite, accelerator=AcceleratorConfig(device="cpu", compile=True, precision="bf16-mixed")),
        with_data(suite, workers=3, in_memory=False),
    ):
        assert hashes(other) == expected


def test_recipe_network_losses_and_augmentation_are_part_of_a_methods_identity(suite: Suite) -> None:
    expected, first = hashes(suite), suite.profile.methods[0]
    for changes in (
        {"train": replace(first.train, lr=1e-3)},
        {"train": replace(first.train, accumulate=2)},
        {"losses": replace(first.losses, denoising_groups=0)},
        {"augment": replace(first.augment, flip_x=0.5)},
        {"network": replace(first.network, head=replace(first.network.head, queries=81))},
    ):
        found = hashes(with_method(suite, **changes))
        for job, identity in found.items():
            is_first = isinstance(job, ComparisonJob) or job.method == MASKED
            assert (identity != expected[job]) == is_first, job


def test_scenes_and_sweeps_are_part_of_all_identities(suite: Suite) -> None:
    assert SMOKE.scenes is not None
    other = replace(suite, profile=replace(SMOKE, scenes=replace(SMOKE.scenes, seed=1)))
    for changed in (other, with_data(suite, sweeps=1)):
        found, expected = hashes(changed), hashes(suite)
        assert all(found[job] != expected[job] for job in expected)


def test_seeds_are_runs_of_their_own(suite: Suite) -> None:
    runs = [suite.run(TrainJob(MASKED, seed)) for seed in (0, 1)]
    assert runs[0].config_hash != runs[1].config_hash
    assert runs[0].directory != runs[1].directory
    judged = [suite.run(ConditionJob(MASKED, seed, "neither")).config_hash for seed in (0, 1)]
    assert judged[0] != judged[1]


def test_first_weights_are_identified_by_what_is_in_their_file(suite: Suite, tmp_path: Path) -> None:
    job, found = TrainJob(MASKED, 0), [hashes(suite)[TrainJob(MASKED, 0)]]
    for name, value in (("one.pt", 0), ("same.pt", 0), ("other.pt", 1)):
        save_atomically(tmp_path / name, {"weight": value})
        found.append(replace(suite, image_weights=tmp_path / name).run(job).config_hash)
    assert found[1] == found[2]
    assert len(set(found)) == 3
    with pytest.raises(TenfoldError, match="no weights at"):
        replace(suite, image_weights=tmp_path / "absent.pt").run(job)


def test_a_changed_profile_does_not_take_finished_runs(smoke: Path) -> None:
    finished = Suite("smoke", SMOKE, smoke, accelerator=CPU)
    first = SMOKE.methods[0]
    changed = with_method(finished, train=replace(first.train, lr=1e-3))
    assert finished.run(TrainJob(MASKED, 0)).is_finished
    assert not changed.run(TrainJob(MASKED, 0)).is_finished
    assert changed.run(TrainJob(UNMASKED, 0)).is_finished


# -- stages and what is printed --------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_networks_are_trained_before_they_are_judged_and_compared(name: str, tmp_path: Path) -> None:
    suite = Suite(name, PROFILES[name], tmp_path, accelerator=CPU)
    done: set[Job] = set()
    for stage in suite.jobs():
        for job in stage:
            if isinstance(job, ConditionJob):
                assert TrainJob(job.method, job.seed) in done
            if isinstance(job, ConditionJob) and job.condition == WORSE:
                for condition in ("no-lidar", "no-cameras"):
                    assert ConditionJob(job.method, job.seed, condition) in done
        done |= set(stage)
    trained = {job for job in done if isinstance(job, TrainJob)}
    profile = PROFILES[name]
    assert trained == {TrainJob(method.name, seed) for method in profile.methods for seed in profile.seeds}
    assert suite.jobs()[-1] == [ComparisonJob()]


@pytest.mark.parametrize("name", PROFILES)
def test_runs_of_a_suite_have_directories_of_their_own(name: str, tmp_path: Path) -> None:
    suite = Suite(name, PROFILES[name], tmp_path, accelerator=CPU)
    runs = [suite.run(job).directory for stage in suite.jobs() for job in stage]
    assert len(set(runs)) == len(runs)


def test_every_claim_names_runs_of_its_profile(tmp_path: Path) -> None:
    reported = load_reported("tenfold.cmt")
    assert reported.claims
    for claim in reported.claims:
        suite = Suite(claim.profile, PROFILES[claim.profile], tmp_path, accelerator=CPU)
        known = {suite.run(job).key.method for stage in suite.jobs() for job in stage}
        assert {claim.better, claim.worse} <= known, claim.id
        assert judge(claim, []).holds is None


def test_records_of_generated_scenes_join_no_printed_number(smoke: Path) -> None:
    joined = compare(load_reported("tenfold.cmt"), records(smoke).values())
    assert not [found for found in joined if found.measurement]


@pytest.mark.parametrize(
    ("profile", "method", "condition", "metric", "value"),
    [
        ("cmt_voxel0075_vov_1600x640", 0, None, "mAP", 70.3),
        ("cmt_voxel0075_vov_1600x640", 0, None, "NDS", 72.9),
        ("cmt_voxel0075_vov_1600x640", 0, "no-cameras", "NDS", 68.1),
        ("cmt_voxel0075_vov_1600x640", 0, "no-lidar", "NDS", 44.7),
        ("cmt_voxel0100_r50_800x320", 0, None, "NDS", 70.8),
        ("cmt_lidar_voxel0075", 0, None, "mAP", 62.14),
        ("cmt_camera_vov_1600x640", 0, None, "NDS", 46.0),
    ],
)
def test_runs_on_nuscenes_join_the_numbers_that_are_printed_of_them(
    profile: str, method: int, condition: str | None, metric: str, value: float, tmp_path: Path
) -> None:
    suite = Suite(profile, PROFILES[profile], tmp_path, accelerator=CPU)
    name = suite.profile.methods[method].name
    job = TrainJob(name, 0) if condition is None else ConditionJob(name, 0, condition)
    key = suite.run(job).key
    rows = [
        row.value
        for row in load_reported("tenfold.cmt").rows
        if (row.dataset, row.setting, row.method, row.metric)
        == (key.dataset, key.setting, key.method, metric)
    ]
    assert rows == [value]
