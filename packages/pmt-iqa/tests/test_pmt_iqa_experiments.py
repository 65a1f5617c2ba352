"""The suites: their hyperparameters, their records, and that a kill does no harm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import models

from tenfold.pmt_iqa import datasets, experiments
from tenfold.pmt_iqa.experiments import Suite, all_jobs, reproduce
from tenfold.pmt_iqa.profiles import METHODS, PROFILES, Profile
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.comparison import compare, load_reported
from tenfold.shared.logging import TenfoldError

SCHEMA = Path(__file__).parents[3] / "benchmarks/src/tenfold/benchmarks/schemas/result.schema.json"


def suite_of(name: str, profile: Profile, output: Path, **options: Any) -> Suite:
    options = {"checkpoint_seconds": 3600.0, "accelerator": AcceleratorConfig(device="cpu"), **options}
    return Suite(name, profile, output, **options)


def records(root: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(root.rglob("result.json"))}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the smoke profile, done without disturbance."""
    root = tmp_path_factory.mktemp("smoke")
    reproduce(suite_of("smoke", PROFILES["smoke"], root))
    return root


def test_smoke_leaves_a_valid_record_of_every_run(smoke: Path) -> None:
    found = records(smoke)
    methods = PROFILES["smoke"].methods
    assert len(found) == 2 * len(methods) + len(methods) + 1
    schema = json.loads(SCHEMA.read_text())
    for name, record in found.items():
        jsonschema.validate(record, schema)
        folder = smoke / "pmt-iqa" / "smoke" / name
        assert record["status"] == "finished"
        assert not (folder / "checkpoint.pt").exists()
        assert all((folder / figure["file"]).stat().st_size > 3000 for figure in record["figures"])
        if record["setting"] == "split" and record["method"] != "BRISQUE":
            assert (folder / "model.pt").exists()
            assert record["metrics"]["best_srcc"] >= record["metrics"]["srcc"]


def test_the_first_split_has_pictures(smoke: Path) -> None:
    found = records(smoke)
    files = {figure["file"] for figure in found["proxy-smoke-pmt-iqa-seed0"]["figures"]}
    assert files == {"figures/scatter.png", "figures/quality_maps.png"}
    assert found["proxy-smoke-pmt-iqa-seed1"]["figures"] == []
    comparison = {figure["file"] for figure in found["proxy-smoke-comparison-seed0"]["figures"]}
    assert comparison == {"figures/methods.png", "figures/differences.png", "figures/schedules.png"}


def test_medians_and_paired_differences_are_those_of_the_splits(smoke: Path) -> None:
    found = records(smoke)
    ours, others = (
        [found[f"proxy-smoke-{name}-seed{seed}"]["metrics"] for seed in (0, 1)]
        for name in ("pmt-iqa", "regression")
    )
    median = found["proxy-smoke-pmt-iqa-median-seed0"]
    assert median["setting"] == "median of 2 splits"
    for name in ("srcc", "best_plcc", "level_accuracy"):
        assert median["metrics"][name] == pytest.approx(np.median([metrics[name] for metrics in ours]))
    difference = found["proxy-smoke-comparison-seed0"]["metrics"]["srcc: PMT-IQA - regression"]
    assert difference == pytest.approx(
        np.mean([first["srcc"] - second["srcc"] for first, second in zip(ours, others, strict=True)])
    )


def test_finished_runs_are_not_repeated_but_forced_ones_are(smoke: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")}
    assert len(reproduce(suite_of("smoke", PROFILES["smoke"], smoke))) == len(times)
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")} == times
    before = records(smoke)
    profile = replace(PROFILES["smoke"], methods=("regression",), seeds=(1,))
    reproduce(suite_of("smoke", profile, smoke, force=True))
    name = "proxy-smoke-regression-seed1"
    changed = {path.parent.name for path, stamp in times.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {name, "proxy-smoke-regression-median-seed0"}
    assert records(smoke)[name]["metrics"] == before[name]["metrics"]


def test_a_killed_suite_goes_on_to_the_same_metrics(
    start: Any, kill_at: Any, smoke: Path, tmp_path: Path
) -> None:
    arguments: tuple[object, ...] = ("-m", "tenfold.pmt_iqa", "reproduce", "--profile", "smoke")
    arguments += ("--device", "cpu", "-q", "--workers", 1, "--checkpoint-seconds", 0)
    arguments += ("--seeds", 0, 1, "--methods", "PMT-IQA", "regression", "BRISQUE", "--output", tmp_path)
    kill_at("pmt-iqa/smoke/*/checkpoint.pt", *arguments, cwd=tmp_path)
    assert len(records(tmp_path)) < 6
    again = start(*arguments, cwd=tmp_path)
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    expected, found = records(smoke), records(tmp_path)
    assert len(found) == 3 * 2 + 3 + 1
    for name, record in found.items():
        if record["setting"] == "split":
            assert record["metrics"] == expected[name]["metrics"], name
            assert record["curves"] == expected[name]["curves"], name


# -- hyperparameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["livec", "bid", "koniq10k", "live", "csiq", "tid2013"])
def test_paper_profiles_have_the_authors_recipe(dataset: str) -> None:
    profile = PROFILES[dataset]
    config = profile.run_config("PMT-IQA")
    train = config.train
    assert (config.dataset, config.train_fraction, profile.seeds) == (dataset, 0.8, tuple(range(10)))
    assert (train.schedule, train.epochs, train.images_per_batch, train.crops_per_image) == (
        "progressive",
        30,
        12,
        4,
    )
    assert (train.optimizer, train.lr, train.weight_decay) == ("adam", 1.0933302953170044e-4, 5e-4)
    assert (train.lr_schedule, train.reset_optimizer_each_epoch, train.crop_size) == ("official", True, 224)
    assert not train.start_at_mean
    assert (config.judge.crops, config.judge.crop_rule, config.judge.every_epoch) == (25, "random", True)
    assert (config.model.backbone, config.model.pretrained) == ("resnet50", True)


def test_baselines_differ_from_the_method_as_the_ablation_says() -> None:
    def settings(method: str) -> tuple[str, str, tuple[int, ...], tuple[float, float]]:
        config = PROFILES["livec"].run_config(method)
        return config.model.kind, config.train.schedule, config.model.scales, config.train.fixed_weights

    every = (1, 2, 3, 4)
    assert settings("PMT-IQA") == ("multitask", "progressive", every, (1.0, 1.0))
    assert settings("regression") == ("multitask", "regression", every, (1.0, 1.0))
    assert settings("PMT w/o MS") == ("multitask", "progressive", (4,), (1.0, 1.0))
    assert settings("regression w/o MS") == ("multitask", "regression", (4,), (1.0, 1.0))
    assert settings("fixed weights") == ("multitask", "fixed", every, (1.0, 1.0))
    assert settings("classification") == ("multitask", "classification", every, (1.0, 1.0))
    assert settings("ResNet50")[:2] == ("plain", "regression")
    assert settings("shipped script") == (
        "multitask",
        "fixed",
        every,
        (0.9419036108703593, 0.9602831644731372),
    )
    assert PROFILES["livec"].run_config("shipped script").judge.crops == 4


def test_hyperiqa_is_trained_as_published_on_the_papers_data_and_as_all_others_elsewhere() -> None:
    train = PROFILES["koniq10k"].run_config("HyperIQA").train
    assert (train.lr, train.lr_schedule, train.epochs) == (2e-5, "hyperiqa", 16)
    assert (train.images_per_batch, train.crops_per_image, train.passes_per_epoch) == (96, 1, 25)
    assert train.weight_decay == 5e-4
    for name in ("quick", "h100"):
        profile = PROFILES[name]
        expected = replace(profile.base.train, schedule="regression")
        assert profile.run_config("HyperIQA").train == expected


def test_scaled_down_suites_train_all_methods_alike() -> None:
    for name in ("smoke", "quick", "h100"):
        profile = PROFILES[name]
        for method in profile.methods:
            found = profile.run_config(method).train
            assert replace(found, schedule="progressive", shuffle_labels=False) == profile.base.train, (
                name,
                method,
            )


def test_profiles_name_known_methods_and_enough_splits() -> None:
    for name, profile in PROFILES.items():
        assert set(profile.methods) <= set(METHODS)
        assert name == "smoke" or all(len(profile.seeds_of(method)) >= 3 for method in profile.methods)


# -- data of the right form ----------------------------------------------------------------------------


@pytest.fixture
def made_up_livec(tmp_path: Path) -> Path:
    """LIVE in the Wild as its authors distribute it, with ten small pictures."""
    folder = tmp_path / "data" / "livec"
    (folder / "Images").mkdir(parents=True)
    (folder / "Data").mkdir()
    names = [f"t{number}.bmp" for number in range(1, 8)] + [f"{number}.bmp" for number in range(1, 11)]
    rng = np.random.default_rng(0)
    for name in names[7:]:
        Image.fromarray(rng.integers(0, 256, (226, 230, 3), dtype=np.uint8)).save(folder / "Images" / name)
    cells = np.empty((len(names), 1), dtype=object)
    cells[:, 0] = names
    savemat(folder / "Data/AllImages_release.mat", {"AllImages_release": cells})
    savemat(folder / "Data/AllMOS_release.mat", {"AllMOS_release": np.linspace(20, 90, len(names))[None]})
    return tmp_path / "data"


def test_a_paper_profile_starts_and_its_medians_join_the_printed_numbers(
    made_up_livec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "summarise", lambda runs: dict(runs[0]))
    weights = tmp_path / "resnet50.pth"
    torch.save(models.resnet50().state_dict(), weights)
    profile = PROFILES["livec"]
    base = replace(
        profile.base,
        train=replace(profile.base.train, epochs=1, crop_size=96),
        judge=replace(profile.base.judge, crops=1),
    )
    short = replace(profile, base=base, methods=("PMT-IQA",), seeds=(0,))
    suite = suite_of("livec", short, tmp_path, data_root=made_up_livec, imagenet_weights=weights)
    results = reproduce(suite)
    assert all(result["status"] == "finished" for result in results)
    assert results[0]["config"]["train"]["images_per_batch"] == 12
    ten = [{**result, "setting": "median of 10 splits"} for result in results]
    joined = {
        (found.row.method, found.row.metric)
        for found in compare(load_reported("tenfold.pmt_iqa"), ten)
        if found.measurement
    }
    assert joined == {("PMT-IQA", "best_srcc"), ("PMT-IQA", "best_plcc")}


def test_every_method_of_a_paper_profile_starts_on_a_small_backbone(
    made_up_livec: Path, tmp_path: Path
) -> None:
    profile = PROFILES["livec"]
    base = replace(
        profile.base,
        model=replace(profile.base.model, backbone="resnet18", pretrained=False),
        train=replace(profile.base.train, epochs=1, crop_size=64),
        judge=replace(profile.base.judge, crops=1),
    )
    methods = {
        name: replace(METHODS[name], recipe={**METHODS[name].recipe, "passes_per_epoch": 1, "epochs": 1})
        for name in profile.methods
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, method in methods.items():
            patch.setitem(METHODS, name, method)
        results = reproduce(
            suite_of("livec", replace(profile, base=base, seeds=(0,)), tmp_path, data_root=made_up_livec)
        )
    assert {result["method"] for result in results} == set(profile.methods)
    assert all(result["status"] == "finished" for result in results)


def test_h100_starts_on_real_photographs(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, photographs = experiments.load_dataset, datasets.folder_photographs

    def few_images(*arguments: Any) -> Any:
        images = load(*arguments)
        return images.subset([i for i, name in enumerate(images.names) if "-0-jpeg-" in name])

    monkeypatch.setattr(
        datasets, "folder_photographs", lambda folder: dict(list(photographs(folder).items())[:4])
    )
    monkeypatch.setattr(experiments, "load_dataset", few_images)
    experiments._loaded.cache_clear()
    profile = PROFILES["h100"]
    base = replace(
        profile.base,
        train=replace(profile.base.train, epochs=1, crops_per_image=1),
        judge=replace(profile.base.judge, crops=1),
    )
    short = replace(profile, base=base, methods=("PMT-IQA",), seeds=(0,))
    results = reproduce(suite_of("h100", short, tmp_path, data_root=data_root))
    experiments._loaded.cache_clear()
    assert results[0]["status"] == "finished"
    assert results[0]["dataset"] == "photographs"


def test_missing_data_is_said_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match="LIVE in the Wild Challenge was not found"):
        reproduce(suite_of("livec", PROFILES["livec"], tmp_path, data_root=tmp_path))
    assert not list(tmp_path.iterdir())


# -- reported numbers ----------------------------------------------------------------------------------


def test_reported_numbers_are_those_of_the_results_file() -> None:
    reported = load_reported("tenfold.pmt_iqa")
    values = {(r.table, r.dataset, r.method, r.metric): r.value for r in reported.rows}
    assert values["LIVE-C", "livec", "PMT-IQA", "best_srcc"] == 0.866
    assert values["BID", "bid", "HyperIQA", "best_plcc"] == 0.878
    assert values["KonIQ-10k", "koniq10k", "DB-CNN", "best_srcc"] == 0.875
    assert values["CSIQ", "csiq", "BRISQUE", "best_plcc"] == 0.829
    assert values["LIVE", "live", "PQR", "best_srcc"] == 0.965
    assert values["First version (January 2023)", "csiq", "PMT-IQA", "best_srcc"] == 0.929
    assert len(values) == len(reported.rows) == 110 + 3 + 40


def test_nothing_is_filled_in_for_the_ablation() -> None:
    rows = [row for row in load_reported("tenfold.pmt_iqa").rows if row.table == "Ablation"]
    assert len(rows) == 40
    assert all(row.value is None and row.unavailable for row in rows)


def test_claims_are_about_runs_of_their_profiles() -> None:
    for claim in load_reported("tenfold.pmt_iqa").claims:
        profile = PROFILES[claim.profile]
        assert {claim.better, claim.worse} <= set(profile.methods), claim.id
        assert claim.setting == "split"
        assert profile.seeds_of(claim.better) == profile.seeds_of(claim.worse) or claim.margin > 0.2


def test_jobs_come_in_stages() -> None:
    stages = all_jobs(suite_of("quick", PROFILES["quick"], Path("unused")))
    assert [len(stage) for stage in stages] == [
        sum(len(PROFILES["quick"].seeds_of(method)) for method in PROFILES["quick"].methods),
        len(PROFILES["quick"].methods),
        1,
    ]
