"""The suites: their hyperparameters, their records, and that a kill does no harm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from tenfold.reliant.config import SamplingConfig
from tenfold.reliant.experiments import Suite, all_jobs, degenerate_runs, reductions, reproduce
from tenfold.reliant.figures import draw_sweep, draw_trade_off
from tenfold.reliant.profiles import METHODS, PROFILES, Profile
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.comparison import compare, load_reported

SCHEMA = Path(__file__).parents[3] / "benchmarks/src/tenfold/benchmarks/schemas/result.schema.json"
PAPER_SETS = ("recidivism", "credit", "dblp", "dblp-l")


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


@pytest.mark.parametrize("name", PAPER_SETS)
@pytest.mark.parametrize("teacher", ["gcn", "sage"])
@pytest.mark.parametrize("objective", ["sp", "eo"])
def test_paper_profiles_have_the_authors_hyperparameters(name: str, teacher: Any, objective: Any) -> None:
    profile = PROFILES[name]
    assert profile.datasets == (name,) and len(profile.seeds) == 10
    assert set(profile.protocols) == {"leakage-free", "official"} and profile.methods == tuple(METHODS)
    training = profile.teacher_config(teacher)
    assert (training.lr, training.epochs, training.patience) == (0.01, 1000, 500)
    assert training.used_weight_decay == (1e-3 if teacher == "gcn" else 5e-4)
    assert training.sampling == SamplingConfig(batch_size=None)

    akd = profile.distillation_config(name, teacher, "akd", objective, "official", "RELIANT")
    assert (akd.lr, akd.proxy_lr, akd.discriminator_lr, akd.weight_decay) == (1e-4, 1e-3, 1e-3, 5e-4)
    assert (akd.alpha, akd.epochs, akd.patience, akd.keep, akd.num_layers) == (
        10,
        600,
        None,
        "cross-entropy",
        1,
    )
    assert akd.evaluate_with_dropout and akd.placement == "append" and akd.bias_nodes == "official"

    cpf = profile.distillation_config(name, teacher, "cpf", objective, "official", "RELIANT")
    lr = 0.001 if name.startswith("dblp") and teacher == "gcn" else 0.01
    assert (cpf.lr, cpf.proxy_lr, cpf.weight_decay, cpf.alpha) == (lr, lr, 0.01, 1000)
    assert (cpf.epochs, cpf.patience, cpf.keep) == (1000, 500, "accuracy")
    assert cpf.num_layers == (5 if name == "dblp-l" else 10) and cpf.attention == "ind"
    assert cpf.placement == "replace-last" and cpf.hidden_labels == 0 and cpf.teacher_decimals == 4

    for framework in ("akd", "cpf"):
        default = profile.distillation_config(name, teacher, framework, objective, "leakage-free", "RELIANT")
        assert default.bias_nodes == "leakage-free" and default.placement == "append"
        assert not default.evaluate_with_dropout and default.objective == objective


def test_methods_differ_in_their_parts_alone() -> None:
    profile = PROFILES["quick"]
    configs = {
        method: profile.distillation_config("recidivism-3000", "gcn", "akd", "sp", "leakage-free", method)
        for method in profile.all_methods()
    }
    parts = {method: (c.learn_from, c.use_proxies, c.alpha) for method, c in configs.items()}
    assert parts == {
        "Labels": ("labels", False, 0.0),
        "Vanilla": ("teacher", False, 0.0),
        "Bias term": ("teacher", False, 100.0),
        "Proxies": ("teacher", True, 0.0),
        "RELIANT": ("teacher", True, 100.0),
        "RELIANT alpha=10": ("teacher", True, 10.0),
        "RELIANT alpha=1000": ("teacher", True, 1000.0),
    }
    same = {"learn_from": "teacher", "use_proxies": True, "alpha": 1.0, "hidden_labels": 0.5}
    assert len({str(replace(config, **same)) for config in configs.values()}) == 1


def test_quick_and_h100_are_as_specified() -> None:
    assert len(PROFILES["quick"].seeds) == 5 and PROFILES["quick"].datasets == ("recidivism-3000",)
    h100 = PROFILES["h100"]
    assert h100.datasets == ("recidivism", "credit-recomputed") and len(h100.seeds) == 5
    assert (h100.teachers, h100.frameworks, h100.objectives) == (
        ("gcn", "sage"),
        ("cpf", "akd"),
        ("sp", "eo"),
    )
    assert PROFILES["recidivism-alpha"].alphas == (1.0, 10.0, 100.0, 1000.0)


def test_smoke_leaves_a_valid_record_of_every_run(smoke: Path) -> None:
    found = records(smoke)
    # two teachers with two seeds; two frameworks with each, six methods with two seeds and a trade-off
    assert len(found) == 4 + 4 * (6 * 2 + 1)
    schema = json.loads(SCHEMA.read_text())
    for name, record in found.items():
        jsonschema.validate(record, schema)
        folder = smoke / "reliant" / "smoke" / name
        assert record["status"] == "finished" and not (folder / "checkpoint.pt").exists()
        if name.endswith("trade-off-seed0"):
            assert [figure["file"] for figure in record["figures"]] == [
                "figures/trade_off.png",
                "figures/alpha_sweep.png",
            ]
            assert all((folder / figure["file"]).stat().st_size > 5000 for figure in record["figures"])
        else:
            assert (folder / "model.pt").exists() and 0 <= record["metrics"]["accuracy"] <= 1
            assert record["curves"]["val_accuracy"]["x"][-1] in (4, 5)


def test_finished_runs_are_not_repeated_but_forced_ones_are(smoke: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")}
    results = reproduce(suite_of("smoke", PROFILES["smoke"], smoke))
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")} == times
    assert len(results) == len(times)
    profile = replace(
        PROFILES["smoke"],
        methods=("Vanilla", "RELIANT"),
        alphas=(),
        seeds=(1,),
        teachers=("gcn",),
        frameworks=("akd",),
    )
    metrics = {name: record["metrics"] for name, record in records(smoke).items()}
    reproduce(suite_of("smoke", profile, smoke, force=True))
    changed = {path.parent.name for path, before in times.items() if path.stat().st_mtime_ns != before}
    assert changed == {
        "german-gcn-teacher-seed1",
        "german-akd-gcn-sp-vanilla-seed1",
        "german-akd-gcn-sp-reliant-seed1",
        "german-akd-gcn-sp-trade-off-seed0",
    }
    for name in changed - {"german-akd-gcn-sp-trade-off-seed0"}:
        assert records(smoke)[name]["metrics"] == metrics[name]


def test_a_killed_suite_goes_on_to_the_same_metrics(
    start: Any, kill_at: Any, smoke: Path, tmp_path: Path
) -> None:
    arguments: tuple[object, ...] = ("-m", "tenfold.reliant", "reproduce", "--profile", "smoke")
    arguments += ("--device", "cpu", "-q", "--workers", 1)
    arguments += ("--checkpoint-seconds", 0, "--seeds", 1, "--output", tmp_path)
    kill_at("reliant/smoke/german-cpf-gcn-sp-vanilla-seed1/result.json", *arguments, cwd=tmp_path)
    assert len(records(tmp_path)) < len(records(smoke))
    again = start(*arguments, cwd=tmp_path)
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    expected, found = records(smoke), records(tmp_path)
    # The trade-off compares fewer seeds.
    runs_of_a_seed = {name for name in found if not name.endswith("trade-off-seed0")}
    assert runs_of_a_seed == {name for name in expected if name.endswith("seed1")}
    for name in runs_of_a_seed:
        assert found[name]["metrics"] == expected[name]["metrics"], name
        assert found[name]["curves"] == expected[name]["curves"], name


def few_steps(profile: Profile) -> Profile:
    short = {
        framework: {**profile.distillation.get(framework, {}), "epochs": 1} for framework in ("cpf", "akd")
    }
    return replace(
        profile, teacher={"epochs": 2}, distillation=short, seeds=(0,), methods=("RELIANT",), alphas=()
    )


@pytest.mark.parametrize("name", ["recidivism", "credit-recomputed", "recidivism-alpha", "h100"])
def test_profiles_start_on_their_real_data(name: str, data_root: Path, tmp_path: Path) -> None:
    profile = few_steps(PROFILES[name])
    if name == "recidivism-alpha":
        profile = replace(profile, methods=(), alphas=(100.0,))
    if name == "h100":
        profile = replace(profile, frameworks=("akd",), datasets=("recidivism",))
    profile = replace(
        profile, teachers=profile.teachers[:1] if name != "recidivism" else ("sage",), objectives=("eo",)
    )
    results = reproduce(suite_of(name, profile, tmp_path, data_root=data_root))
    students = [
        r for r in results if r["method"].startswith("RELIANT") and not r["setting"].endswith("trade-off")
    ]
    assert len(students) == len(profile.frameworks) * len(profile.protocols)
    assert all(
        result["dataset"] == profile.datasets[0] and result["status"] == "finished" for result in students
    )


@pytest.mark.parametrize("name", ["dblp", "dblp-l"])
def test_profiles_of_the_authors_own_files_start_on_files_of_that_form(
    name: str, make_dblp: Any, tmp_path: Path
) -> None:
    make_dblp(tmp_path / "data" / "reliant" / name, num_nodes=60)
    results = reproduce(
        suite_of(name, few_steps(PROFILES[name]), tmp_path / "runs", data_root=tmp_path / "data")
    )
    rows = [row for row in load_reported("tenfold.reliant").rows if row.dataset == name]
    joined = {
        (c.row.setting, c.row.method)
        for c in compare(load_reported("tenfold.reliant"), results)
        if c.measurement
    }
    # every printed student, and one printed training of each teacher, has a run that joins it
    printed = [row for row in rows if not row.setting.endswith("(second log)")]
    expected = {(row.setting, row.method) for row in printed if row.method in ("RELIANT", "Teacher")}
    assert joined == expected and len(expected) == 8 + 2


def test_reported_numbers_are_those_of_the_log() -> None:
    reported = load_reported("tenfold.reliant")
    values = {
        (row.dataset, row.setting, row.method, row.metric): row.value
        for row in reported.rows
        if row.value is not None
    }
    assert values["dblp", "cpf-gcn sp official", "RELIANT", "delta_eo"] == 0.1029
    assert values["credit", "akd-sage sp official", "RELIANT", "delta_sp"] == 0.0116
    assert values["recidivism", "cpf-gcn eo official", "RELIANT", "accuracy"] == 0.8663
    assert values["dblp-l", "sage", "Teacher", "delta_sp"] == 0.0789
    plain = [row for row in reported.rows if row.method == "Vanilla"]
    assert plain and all(row.value is None and row.unavailable for row in plain)


def test_reductions_are_shares_of_the_means() -> None:
    plain = [
        {"delta_sp": 0.1, "delta_eo": 0.05, "accuracy": 0.9},
        {"delta_sp": 0.06, "delta_eo": 0.05, "accuracy": 0.9},
    ]
    fair = [{"delta_sp": 0.02, "delta_eo": 0.1, "accuracy": 0.88}]
    found = reductions({"Vanilla": plain, "RELIANT": fair})
    assert found == pytest.approx(
        {"delta_sp_reduction": 0.75, "delta_eo_reduction": -1.0, "accuracy_cost": 0.02}
    )
    assert reductions({"Vanilla": plain}) == {}


def test_degenerate_predictors_are_found() -> None:
    results = [
        {"name": "fair", "method": "RELIANT", "seed": 0, "metrics": {"minority_rate": 0.2}},
        {"name": "useless", "method": "RELIANT", "seed": 3, "metrics": {"minority_rate": 0.0}},
        {"name": "drawing", "method": "RELIANT", "seed": 0, "metrics": {}},
        {
            "name": "far-too-strong",
            "method": "RELIANT alpha=1000",
            "seed": 0,
            "metrics": {"minority_rate": 0.0},
        },
    ]
    assert degenerate_runs(results, {"RELIANT", "Vanilla"}) == ["useless-seed3"]


def test_figures_are_drawn_for_few_and_many_seeds(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def seeds(count: int) -> list[dict[str, float]]:
        names = ("accuracy", "delta_sp", "delta_eo", "positive_rate")
        return [dict(zip(names, generator.random(4), strict=True)) for _ in range(count)]

    undefined = [{**seed, "delta_eo": float("nan")} for seed in seeds(3)]
    draw_trade_off(
        {"undefined": undefined, **{f"method {index}": seeds(1 + index) for index in range(9)}},
        tmp_path / "scatter.png",
    )
    draw_sweep({0.0: seeds(1), 1.0: seeds(5), 1000.0: seeds(2)}, tmp_path / "sweep.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("scatter.png", "sweep.png"))


def test_jobs_of_a_suite_are_in_the_order_they_need(tmp_path: Path) -> None:
    teachers, students, trade_offs = all_jobs(suite_of("smoke", PROFILES["smoke"], tmp_path))
    assert (len(teachers), len(students), len(trade_offs)) == (4, 48, 4)
    assert students[0].framework == "cpf"  # takes longest
