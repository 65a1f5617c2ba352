"""Suites: records, interruptions, comparisons, and what the paper prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tenfold.emo.experiments import ComparisonJob, Suite, TrainJob, printed_networks, reproduce
from tenfold.emo.profiles import PROFILES
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.comparison import compare, judge, load_reported

CPU = AcceleratorConfig(device="cpu")
ROOT = Path(__file__).resolve().parents[3]


def records(root: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in root.rglob("result.json")}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    reproduce(Suite("smoke", PROFILES["smoke"], folder, accelerator=CPU), workers=2, quiet=True)
    return folder


def test_smoke_leaves_a_valid_record_of_every_run(smoke: Path) -> None:
    found = records(smoke)
    methods = ("emo", "mobilenetv2-like")
    assert set(found) == {"comparison-seed0", *(f"{name}-seed{seed}" for name in methods for seed in (0, 1))}
    (schema,) = ROOT.glob("benchmarks/src/tenfold/benchmarks/schemas/result*.json")
    for name, record in found.items():
        jsonschema.validate(record, json.loads(schema.read_text()))
        assert record["status"] == "finished"
        for figure in record["figures"]:
            assert next(smoke.rglob(f"{name}/{figure['file']}")).stat().st_size > 1000
    assert found["emo-seed0"]["metrics"]["parameters_m"] == pytest.approx(0.033026)
    assert {figure["file"] for figure in found["emo-seed0"]["figures"]} == {"figures/layers.png"}
    assert not found["emo-seed1"]["figures"]
    drawn = {figure["file"] for figure in found["comparison-seed0"]["figures"]}
    assert drawn == {"figures/accuracies.png", "figures/pareto.png"}


def test_printed_networks_have_their_costs() -> None:
    found = printed_networks()
    assert found["EMO-1M"] == (260.843664, 71.498, 1.361168)
    assert found["EdgeNeXt-XXS"] == (261, 71.2, 1.3)
    assert len(found) == 40


def test_the_comparison_pairs_seeds(smoke: Path) -> None:
    found = records(smoke)
    gains = [
        found[f"emo-seed{seed}"]["metrics"]["top1"] - found[f"mobilenetv2-like-seed{seed}"]["metrics"]["top1"]
        for seed in (0, 1)
    ]
    metrics = found["comparison-seed0"]["metrics"]
    assert metrics["top1: EMO - MobileNetV2-like"] == pytest.approx(sum(gains) / 2)
    assert metrics["top1: EMO - MobileNetV2-like, least"] == pytest.approx(min(gains))


def test_a_finished_suite_is_not_done_again_but_by_force(smoke: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")}
    reproduce(Suite("smoke", PROFILES["smoke"], smoke, accelerator=CPU))
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")} == before


def test_a_killed_suite_goes_on_to_the_same_metrics(
    start: Any, kill_at: Any, smoke: Path, tmp_path: Path
) -> None:
    arguments: tuple[object, ...] = ("-m", "tenfold.emo", "reproduce", "--profile", "smoke")
    arguments += ("--device", "cpu", "-q", "--workers", 1)
    arguments += ("--checkpoint-seconds", 0, "--seeds", 0, "--output", tmp_path)
    kill_at("emo/smoke/*/checkpoint.pt", *arguments, cwd=tmp_path)
    again = start(*arguments, cwd=tmp_path)
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    expected, found = records(smoke), records(tmp_path)
    assert set(found) == {name for name in expected if name.endswith("seed0")}
    found.pop("comparison-seed0")  # it has fewer seeds to compare
    for name, record in found.items():
        assert record["metrics"] == expected[name]["metrics"], name
        assert record["curves"] == expected[name]["curves"], name


def test_runs_are_identified_by_what_decides_their_outcome(tmp_path: Path) -> None:
    profile = PROFILES["smoke"]
    suite = Suite("smoke", profile, tmp_path, accelerator=CPU)
    job = TrainJob("EMO", 0)
    hashes = {suite.run(job).config_hash, suite.run(TrainJob("EMO", 1)).config_hash}
    for other in (
        replace(profile, base=replace(profile.base, train=replace(profile.base.train, lr=1.0))),
        replace(profile, base=replace(profile.base, data=replace(profile.base.data, shift=1))),
        replace(profile, base=replace(profile.base, model=replace(profile.base.model, attention=False))),
    ):
        hashes.add(replace(suite, profile=other).run(job).config_hash)
    assert len(hashes) == 5
    assert replace(suite, output=tmp_path / "elsewhere", checkpoint_seconds=1).run(job).config_hash in hashes
    fewer = replace(suite, profile=replace(profile, seeds=(0,)))
    assert suite.run(ComparisonJob()).config_hash != fewer.run(ComparisonJob()).config_hash


def test_every_claim_names_methods_of_its_profile() -> None:
    claims = load_reported("tenfold.emo").claims
    assert claims
    for claim in claims:
        assert {claim.better, claim.worse} <= set(PROFILES[claim.profile].methods)
        assert judge(claim, []).holds is None


def test_numbers_that_could_not_be_read_say_why_and_keys_are_unique() -> None:
    rows = load_reported("tenfold.emo").rows
    assert any(row.value is None for row in rows)
    assert all(row.unavailable for row in rows if row.value is None)
    keys = [(row.dataset, row.setting, row.method, row.metric) for row in rows]
    assert len(keys) == len(set(keys))


def test_paper_profiles_join_printed_numbers_and_quick_ones_do_not(smoke: Path) -> None:
    reported = load_reported("tenfold.emo")
    printed = {(row.dataset, row.setting, row.method) for row in reported.rows}
    for name in ("imagenet-1m", "imagenet-2m", "imagenet-5m", "imagenet-6m", "imagenet-components-5m"):
        profile = PROFILES[name]
        for method in profile.methods:
            assert (profile.base.data.dataset, profile.setting, method) in printed
    assert not [found for found in compare(reported, records(smoke).values()) if found.measurement]
