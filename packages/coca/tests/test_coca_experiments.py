"""The suites: their hyperparameters, their records, and that a kill does no harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from tenfold.coca import streams
from tenfold.coca.experiments import ComparisonJob, LearnJob, Suite, all_jobs, reproduce
from tenfold.coca.figures import draw_accuracy_matrix, draw_gains, draw_memory, draw_methods
from tenfold.coca.hyperparameters import BENCHMARKS, VARIANTS, paper_config
from tenfold.coca.image_sets import TrainTest
from tenfold.coca.methods import METHODS
from tenfold.coca.profiles import PROFILES, Profile
from tenfold.coca.streams import Stream
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.comparison import compare, load_reported

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
    assert len(found) == len(PROFILES["smoke"].methods) * 2 + 1
    schema = json.loads(SCHEMA.read_text())
    for name, record in found.items():
        jsonschema.validate(record, schema)
        folder = smoke / "coca" / "smoke" / name
        assert record["status"] == "finished"
        assert not (folder / "checkpoint.pt").exists()
        assert all((folder / figure["file"]).stat().st_size > 3000 for figure in record["figures"])
        if not name.endswith("comparison-seed0"):
            assert (folder / "model.pt").exists()
            assert 0 <= record["metrics"]["class_il"] <= record["metrics"]["task_il"] <= 100


def test_the_first_seed_has_pictures_of_its_matrix_and_memory(smoke: Path) -> None:
    files = {figure["file"] for figure in records(smoke)["s-digits-smoke-coca-30-seed0"]["figures"]}
    assert files == {"figures/accuracy_matrix.png", "figures/memory.png"}
    assert records(smoke)["s-digits-smoke-coca-30-seed1"]["figures"] == []


def test_the_comparison_says_paired_differences_with_intervals(smoke: Path) -> None:
    found = records(smoke)
    metrics = found["s-digits-smoke-30-comparison-seed0"]["metrics"]
    values = [
        found[f"s-digits-smoke-coca-30-seed{seed}"]["metrics"]["class_il"]
        - found[f"s-digits-smoke-derpp-30-seed{seed}"]["metrics"]["class_il"]
        for seed in (0, 1)
    ]
    assert metrics["class_il: CoCa - DER++"] == pytest.approx(sum(values) / 2)
    assert (
        metrics["class_il: CoCa - DER++, low"] <= sum(values) / 2 <= metrics["class_il: CoCa - DER++, high"]
    )
    assert "class_il: CoCa - CoCa w/o CD" in metrics


def test_finished_runs_are_not_repeated_but_forced_ones_are(smoke: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")}
    assert len(reproduce(suite_of("smoke", PROFILES["smoke"], smoke))) == len(times)
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")} == times
    before = records(smoke)
    profile = replace(PROFILES["smoke"], methods=("DER++", "CoCa"), seeds=(1,))
    reproduce(suite_of("smoke", profile, smoke, force=True))
    changed = {path.parent.name for path, stamp in times.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {"s-digits-smoke-derpp-30-seed1", "s-digits-smoke-coca-30-seed1"}
    for name in changed:
        assert records(smoke)[name]["metrics"] == before[name]["metrics"]


def test_workers_find_what_one_process_finds(smoke: Path, tmp_path: Path) -> None:
    profile = replace(PROFILES["smoke"], methods=("ER", "DER++", "CoCa"))
    reproduce(suite_of("smoke", profile, tmp_path), workers=2, quiet=True)
    expected = records(smoke)
    for name, record in records(tmp_path).items():
        if "comparison" not in name:
            assert record["metrics"] == expected[name]["metrics"], name


def test_a_killed_suite_goes_on_to_the_same_metrics(
    start: Any, kill_at: Any, smoke: Path, tmp_path: Path
) -> None:
    chosen = ("--methods", "CoCa", "DER++", "GEM", "--seeds", 0, 1)
    small = ("--profile", "smoke", *chosen, "--device", "cpu", "-q", "--workers", 1)
    arguments = ("-m", "tenfold.coca", "reproduce", *small, "--checkpoint-seconds", 0, "--output", tmp_path)
    kill_at("coca/smoke/s-digits-smoke-coca-30-seed1/checkpoint.pt", *arguments, cwd=tmp_path)
    assert len(records(tmp_path)) < 6
    again = start(*arguments, cwd=tmp_path)
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    expected, found = records(smoke), records(tmp_path)
    assert len(found) == 3 * 2 + 1
    for name, record in found.items():
        if "comparison" not in name:
            assert record["metrics"] == expected[name]["metrics"], name
            assert record["curves"] == expected[name]["curves"], name


# -- hyperparameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "lr", "alpha", "beta", "epochs", "views"),
    [
        ("cifar10", 200, 0.03, 0.1, 0.5, 50, "zoom-rotate"),
        ("cifar10", 500, 0.03, 0.2, 0.5, 50, "zoom-rotate"),
        ("cifar10", 5120, 0.03, 0.1, 1.0, 50, "zoom-rotate"),
        ("cifar100", 200, 0.03, 0.1, 0.5, 50, "zoom-rotate"),
        ("cifar100", 500, 0.03, 0.2, 0.5, 50, "zoom-rotate"),
        ("cifar100", 5120, 0.03, 0.1, 1.0, 50, "zoom-rotate"),
        ("tinyimagenet", 200, 0.1, 0.1, 1.0, 50, "scale-rotate"),
        ("tinyimagenet", 500, 0.1, 0.1, 0.5, 50, "scale-rotate"),
        ("tinyimagenet", 5120, 0.1, 0.1, 0.5, 50, "scale-rotate"),
    ],
)
def test_coca_has_the_authors_best_arguments(
    name: str, size: int, lr: float, alpha: float, beta: float, epochs: int, views: str
) -> None:
    config = paper_config(name, "CoCa", size)
    learner = config.learner
    assert (learner.lr, learner.alpha, learner.beta) == (lr, alpha, beta)
    assert (config.stream.epochs, config.stream.batch_size) == (epochs, 32)
    assert (learner.memory_size, learner.memory_batch_size, learner.views) == (size, 32, views)
    assert (learner.omega, learner.gamma, learner.diagonal, learner.temperature) == (0.1, 0.01, 0.1, 0.07)
    assert (learner.contrastive_weight, learner.pretext_weight, learner.task_boundaries) == (0.3, 0.3, False)
    assert (config.network.name, config.network.width, config.network.projection_dim) == ("resnet18", 64, 64)
    assert not config.stream.drop_last


@pytest.mark.parametrize(
    ("name", "method", "size", "expected"),
    [
        ("cifar10", "SGD", 200, (0.1, 32, 50)),
        ("cifar10", "ER", 500, (0.1, 32, 50)),
        ("tinyimagenet", "ER", 500, (0.03, 32, 100)),
        ("tinyimagenet", "DER++", 200, (0.03, 32, 100)),
        ("smnist", "ER", 200, (0.01, 10, 1)),
        ("pmnist", "DER++", 200, (0.1, 128, 1)),
        ("rmnist", "DER++", 500, (0.2, 128, 1)),
        ("mnist360", "SGD", 200, (0.1, 4, 1)),
        ("mnist360", "ER", 500, (0.2, 1, 1)),
        ("mnist360", "ER", 1000, (0.2, 4, 1)),
        ("mnist360", "DER", 1000, (0.1, 8, 1)),
        ("mnist360", "DER++", 1000, (0.2, 16, 1)),
        ("cifar10", "iCaRL", 5120, (0.03, 32, 50)),
        ("tinyimagenet", "FDR", 200, (0.03, 32, 100)),
        ("smnist", "GEM", 5120, (0.1, 10, 1)),
        ("smnist", "FDR", 200, (0.03, 128, 1)),
        ("pmnist", "GEM", 500, (0.1, 128, 1)),
        ("rmnist", "A-GEM", 500, (0.3, 128, 1)),
        ("mnist360", "A-GEM-R", 1000, (0.1, 4, 1)),
        ("mnist360", "OCD-Net", 200, (0.2, 16, 1)),
    ],
)
def test_baselines_have_the_arguments_of_their_first_release(
    name: str, method: str, size: int, expected: tuple[float, int, int]
) -> None:
    config = paper_config(name, method, size)
    assert (config.learner.lr, config.stream.batch_size, config.stream.epochs) == expected


def test_every_ablation_differs_from_coca_in_what_its_name_says() -> None:
    whole = vars(paper_config("cifar10", "CoCa", 200).learner)
    for name, (_, changes) in VARIANTS.items():
        own = vars(paper_config("cifar10", name, 200).learner)
        assert {key for key in whole if own[key] != whole[key]} == set(changes), name


def test_there_is_a_profile_for_every_benchmark_and_memory_size() -> None:
    for name, benchmark in BENCHMARKS.items():
        for size in benchmark.memory_sizes:
            profile = PROFILES[f"{name}-{size}"]
            assert profile.memory_sizes == (size,)
            assert len(profile.seeds) == 10
            assert {"JOINT", "SGD", "ER", "DER", "DER++", "CoCa", "CoCa w/o CD", "CoCa w/o CSS"} <= set(
                profile.methods
            )
            for method in profile.methods:
                assert profile.train_config(method, size).learner.method in METHODS


def test_quick_is_as_specified() -> None:
    profile = PROFILES["quick"]
    config = profile.train_config("CoCa", 30)
    learner = config.learner
    assert (learner.lr, learner.alpha, learner.beta, learner.memory_size) == (0.1, 0.3, 1.0, 30)
    assert (learner.memory_batch_size, config.stream.batch_size, config.stream.epochs) == (10, 10, 5)
    assert (learner.omega, learner.gamma, learner.diagonal, learner.temperature) == (0.1, 0.01, 0.1, 0.07)
    assert (config.network.name, config.network.hidden, config.network.projection_dim) == ("mlp", 100, 32)
    assert len(profile.seeds) == 10
    (convnet,) = profile.further
    assert convnet.network.name == "convnet"
    other = profile.train_config("CoCa", 20, convnet)
    assert (other.learner.lr, other.learner.memory_size, other.network) == (0.03, 20, convnet.network)
    assert other.stream == config.stream


def test_h100_is_as_specified() -> None:
    profile = PROFILES["h100"]
    assert profile.memory_sizes == (200, 500)
    for method in profile.methods:
        config = profile.train_config(method, 200)
        assert (config.stream.name, config.stream.epochs) == ("s-cifar-10-mosaic", 8)
    assert profile.dataset_name == "s-cifar-10-mosaic"  # it joins no printed number of s-cifar-10


def test_runs_without_a_memory_are_done_once_for_all_memory_sizes(tmp_path: Path) -> None:
    learning, comparisons = all_jobs(suite_of("h100", PROFILES["h100"], tmp_path))
    assert learning.count(LearnJob("", "SGD", 0, 0)) == 1
    assert len(learning) == 2 + 4 * 2
    assert comparisons == []  # one seed cannot be compared in pairs
    quick = all_jobs(suite_of("quick", PROFILES["quick"], tmp_path))
    assert quick[1] == [ComparisonJob("", 30), ComparisonJob("convnet", 20)]


# -- paper profiles start ------------------------------------------------------------------------------

SHAPES = {
    "cifar-10": (3, 32, 32),
    "cifar-100": (3, 32, 32),
    "tiny-imagenet": (3, 64, 64),
    "mnist": (1, 28, 28),
}
CLASSES = {"cifar-10": 10, "cifar-100": 100, "tiny-imagenet": 200, "mnist": 10}
COUNTS = {"cifar-10": 200, "cifar-100": 400, "tiny-imagenet": 400, "mnist": 400}


@pytest.fixture
def made_up_data(make_images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of the right form in place of every data set."""

    def load(name: str, *_: Any) -> TrainTest:
        shape, classes = SHAPES[name], CLASSES[name]
        sets = (make_images(COUNTS[name], classes, shape, seed) for seed in (0, 1))
        return TrainTest(*sets, {})

    monkeypatch.setattr(streams, "load_image_sets", load)


def few_steps(profile: Profile, methods: tuple[str, ...]) -> Profile:
    changes = {**profile.stream_changes, "epochs": 1, "batches_per_epoch": 2}
    return replace(profile, stream_changes=changes, methods=methods, seeds=(0,))


@pytest.mark.parametrize("name", ["smnist-200", "pmnist-500", "rmnist-5120", "mnist360-200", "mnist360-1000"])
def test_paper_profiles_on_mnist_start_on_images_of_that_form(
    name: str, made_up_data: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The streams of 20 tasks with the first three."""
    monkeypatch.setattr(streams, "domain_stream", partial(_first_tasks, 3, streams.domain_stream))
    profile = PROFILES[name]
    results = reproduce(suite_of(name, few_steps(profile, profile.methods), tmp_path))
    assert all(result["status"] == "finished" for result in results)
    assert all(result["curves"]["loss"]["y"] for result in results)  # each did learn from something
    reported = load_reported("tenfold.coca")
    joined = {c.row.method for c in compare(reported, results) if c.measurement}
    printed = {row.method for row in reported.rows if row.dataset == profile.dataset_name}
    assert joined == printed & set(profile.methods)


@pytest.mark.parametrize("name", ["cifar10-200", "cifar100-500", "tinyimagenet-200"])
def test_paper_profiles_on_colour_images_start_at_full_width(
    name: str, made_up_data: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first task, in small batches."""
    monkeypatch.setattr(streams, "split_stream", partial(_first_tasks, 1, streams.split_stream))
    profile = few_steps(PROFILES[name], ("CoCa",))
    profile = replace(profile, stream_changes={**profile.stream_changes, "batch_size": 8})
    (result,) = reproduce(suite_of(name, profile, tmp_path))
    assert result["status"] == "finished"
    assert result["config"]["network"]["width"] == 64
    assert result["dataset"] == PROFILES[name].dataset_name


def _first_tasks(count: int, original: Callable[..., Stream], *arguments: Any, **options: Any) -> Stream:
    stream = original(*arguments, **options)
    parts = {part: getattr(stream, part)[:count] for part in ("segments", "tests", "test_classes")}
    return replace(stream, **parts)


def test_h100_starts_on_its_real_data(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(streams, "split_stream", partial(_tiny_tests, streams.split_stream))
    profile = replace(few_steps(PROFILES["h100"], ("CoCa",)), memory_sizes=(200,))
    (result,) = reproduce(suite_of("h100", profile, tmp_path, data_root=data_root))
    assert {"class_il", "task_il", "jpeg_class_il", "held_out_task_il"} <= set(result["metrics"])


def _tiny_tests(original: Callable[..., Stream], *arguments: Any) -> Stream:
    stream = _first_tasks(1, original, *arguments)
    few = torch.arange(8)
    further = {name: tuple(test[few] for test in tests[:1]) for name, tests in stream.further_tests.items()}
    return replace(stream, tests=tuple(test[few] for test in stream.tests), further_tests=further)


# -- reported numbers and figures ----------------------------------------------------------------------


def test_reported_numbers_are_those_of_the_tables() -> None:
    reported = load_reported("tenfold.coca")
    values = {(r.dataset, r.setting, r.method, r.metric): r.value for r in reported.rows}
    assert values["s-cifar-10", "memory 200", "DER++", "class_il"] == 64.88
    assert values["s-cifar-10", "memory 5120", "HAL", "task_il"] == 88.51
    assert values["s-tiny-imagenet", "memory 500", "FDR", "task_il"] == 49.88
    assert values["p-mnist", "no memory", "SI", "domain_il"] == 65.86
    assert values["r-mnist", "memory 200", "ER", "domain_il"] == 85.01
    assert values["mnist-360", "memory 1000", "DER++", "accuracy"] == 76.03
    assert len(values) == len(reported.rows)


def test_nothing_is_filled_in_for_coca() -> None:
    own = [row for row in load_reported("tenfold.coca").rows if row.method == "CoCa"]
    assert len(own) == 33
    assert all(row.value is None and row.unavailable for row in own)


def test_claims_are_about_runs_of_their_profiles() -> None:
    for claim in load_reported("tenfold.coca").claims:
        groups = {
            f"memory {size}" + (f" {group.name}" if group.name else ""): group
            for group in PROFILES[claim.profile].groups
            for size in group.memory_sizes
        }
        group = groups[claim.setting] if claim.setting else PROFILES[claim.profile].groups[0]
        assert {claim.better, claim.worse} <= set(group.methods), claim.id


def test_figures_are_drawn_for_few_and_many(tmp_path: Path) -> None:
    for size in (1, 20):
        draw_accuracy_matrix([[50.0] * size] * size, "many", tmp_path / f"matrix{size}.png")
    images = torch.randint(0, 255, (300, 3, 8, 8), dtype=torch.uint8)
    draw_memory(images, torch.arange(300) % 7, [], tmp_path / "memory.png")
    draw_memory(images[:3, :1], torch.arange(3), [1, 2, 3], tmp_path / "grey.png")
    draw_methods({"A": {0: 1.0}, "B": {0: 2.0, 1: 3.0}}, "class_il", tmp_path / "methods.png")
    draw_gains({"A - B": (1.0, 0.5, 1.5)}, "class_il", tmp_path / "gains.png")
    assert all(path.stat().st_size > 3000 for path in tmp_path.glob("*.png"))
    assert len(list(tmp_path.glob("*.png"))) == 6
