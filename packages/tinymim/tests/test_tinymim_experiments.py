"""Suites: records, interruptions, stages, identities, comparisons, and what the paper prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.comparison import compare, judge, load_reported
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint, save_atomically
from tenfold.tinymim.checkpoints import stored_shape
from tenfold.tinymim.experiments import (
    ComparisonJob,
    FinetuneJob,
    PretrainJob,
    SegmentationJob,
    Suite,
    reproduce,
    run_pretraining,
    slug,
)
from tenfold.tinymim.profiles import PROFILES, SEGMENTATION_PROFILES
from tenfold.tinymim.suites import Finetuning, Profile

CPU = AcceleratorConfig(device="cpu")
ROOT = Path(__file__).resolve().parents[3]
SMOKE = PROFILES["smoke"]
METHODS = ("relation", "sequential", "supervised")
NETWORKS = ("pretrain-mae-teacher", "pretrain-relation", "pretrain-sequential")


def records(root: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in root.rglob("result.json")}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    reproduce(Suite("smoke", SMOKE, folder, accelerator=CPU), workers=2, quiet=True)
    return folder


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite("smoke", SMOKE, tmp_path, accelerator=CPU)


# -- records -------------------------------------------------------------------------------------------


def test_smoke_leaves_a_valid_record_of_every_run(smoke: Path) -> None:
    found = records(smoke)
    runs = {f"{name}-seed{seed}" for name in (*METHODS, *NETWORKS[1:]) for seed in (0, 1)}
    assert set(found) == {"comparison-seed0", "pretrain-mae-teacher-seed0", *runs}
    (schema,) = ROOT.glob("benchmarks/src/tenfold/benchmarks/schemas/result*.json")
    for name, record in found.items():
        jsonschema.validate(record, json.loads(schema.read_text()))
        assert record["status"] == "finished"
        assert not list(smoke.rglob(f"{name}/checkpoint.pt"))
        for figure in record["figures"]:
            assert next(smoke.rglob(f"{name}/{figure['file']}")).stat().st_size > 1000
    for name in METHODS:
        assert {"top1", "top5", "best_top1", "parameters_m"} <= set(found[f"{name}-seed0"]["metrics"])
    drawn = {name: {figure["file"] for figure in found[f"{name}-seed0"]["figures"]} for name in NETWORKS}
    relations = {"figures/heads.png", "figures/relations.png"}
    assert drawn == {NETWORKS[0]: set(), NETWORKS[1]: relations, NETWORKS[2]: relations}
    assert not any(found[f"{name}-seed1"]["figures"] for name in NETWORKS[1:])
    compared = {figure["file"] for figure in found["comparison-seed0"]["figures"]}
    assert compared == {f"figures/{name}.png" for name in ("accuracies", "curves", "divergences")}


def test_pre_training_is_judged_by_frozen_features_and_relations(smoke: Path) -> None:
    found = records(smoke)
    judged = {"total_loss", "knn_top1", "probe_top1"}
    assert set(found["pretrain-mae-teacher-seed0"]["metrics"]) == {*judged, "reconstruction_loss"}
    relations = {"qk_loss", "vv_loss", "kl_qk", "kl_vv"}
    for name in NETWORKS[1:]:
        assert set(found[f"{name}-seed0"]["metrics"]) == judged | relations
        assert len(found[f"{name}-seed0"]["curves"]["total_loss"]["y"]) == 2


def test_each_stage_has_the_heads_of_its_teacher(smoke: Path) -> None:
    """The student of eight heads is read with the four of its own student."""
    heads = {
        name: stored_shape(load_checkpoint(next(smoke.rglob(f"{name}-seed0/model.pt")))).heads
        for name in (*NETWORKS, *METHODS)
    }
    assert heads == {
        "pretrain-mae-teacher": (8,) * 6,
        "pretrain-relation": (4, 4, 8),
        "pretrain-sequential": (4, 4, 4),
        **dict.fromkeys(METHODS, (4, 4, 4)),
    }


def test_the_comparison_pairs_seeds(smoke: Path) -> None:
    found = records(smoke)
    metrics = found["comparison-seed0"]["metrics"]
    for other in METHODS[1:]:
        gains = [
            found[f"relation-seed{seed}"]["metrics"]["top1"] - found[f"{other}-seed{seed}"]["metrics"]["top1"]
            for seed in (0, 1)
        ]
        assert metrics[f"top1: relation - {other}"] == pytest.approx(sum(gains) / 2)
        assert metrics[f"top1: relation - {other}, least"] == pytest.approx(min(gains))


def test_a_finished_suite_is_not_done_again_but_by_force(smoke: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")}
    reproduce(Suite("smoke", SMOKE, smoke, accelerator=CPU))
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")} == before
    (seldom,) = (replace(SMOKE.needed(("supervised",)), seeds=(0,)),)
    first = reproduce(Suite("smoke", seldom, tmp_path, accelerator=CPU))
    (path,) = tmp_path.rglob("result.json")
    done = path.stat().st_mtime_ns
    again = reproduce(Suite("smoke", seldom, tmp_path, accelerator=CPU, force=True))
    assert path.stat().st_mtime_ns > done
    assert first[0]["metrics"] == again[0]["metrics"] == records(smoke)["supervised-seed0"]["metrics"]


def test_a_killed_suite_goes_on_to_the_same_metrics(
    start: Any, kill_at: Any, smoke: Path, tmp_path: Path
) -> None:
    arguments: tuple[object, ...] = ("-m", "tenfold.tinymim", "reproduce", "--profile", "smoke")
    arguments += ("--device", "cpu", "-q", "--workers", 1)
    arguments += ("--checkpoint-seconds", 0, "--seeds", 0, "--output", tmp_path)
    kill_at("tinymim/smoke/*/checkpoint.pt", *arguments, cwd=tmp_path)
    again = start(*arguments, cwd=tmp_path)
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    expected, found = records(smoke), records(tmp_path)
    assert set(found) == {name for name in expected if name.endswith("seed0")}
    found.pop("comparison-seed0")  # it has fewer seeds to compare
    for name, record in found.items():
        assert record["metrics"] == expected[name]["metrics"], name
        assert record["curves"] == expected[name]["curves"], name


def test_a_failed_run_says_why_and_is_done_when_it_can_be(tmp_path: Path) -> None:
    """The teacher's file is missing at first."""
    (name,) = PROFILES["imagenet-tiny"].pretrainings
    profile = replace(PROFILES["imagenet-tiny"], data=SMOKE.data)
    suite = Suite("tiny", profile, tmp_path, accelerator=CPU)
    with pytest.raises(TenfoldError, match="tinymim_vit_small_patch16 needs weights"):
        run_pretraining(suite, PretrainJob(name, 0))
    (record,) = records(tmp_path).values()
    assert record["status"] == "failed"
    assert not suite.run(PretrainJob(name, 0)).is_finished


# -- identity ------------------------------------------------------------------------------------------


def changed(suite: Suite, name: str, **recipe: Any) -> Suite:
    """The suite with another recipe of one pre-training."""
    profile = suite.classification
    settings = profile.pretrainings[name]
    other = replace(settings, train=replace(settings.train, **recipe))
    return replace(suite, profile=replace(profile, pretrainings={**profile.pretrainings, name: other}))


def hashes(suite: Suite) -> dict[str, str]:
    jobs = [PretrainJob(name, 0) for name in suite.classification.pretrainings]
    arms = [FinetuneJob(name, 0) for name in suite.classification.finetunings]
    return {repr(job): suite.run(job).config_hash for job in (*jobs, *arms)} | {
        "comparison": suite.run(ComparisonJob()).config_hash
    }


@pytest.mark.parametrize(
    ("name", "stays"),
    [
        ("MAE teacher", {FinetuneJob("supervised", 0)}),
        ("relation", {PretrainJob("MAE teacher", 0), FinetuneJob("supervised", 0)}),
        (
            "sequential",
            {
                PretrainJob("MAE teacher", 0),
                PretrainJob("relation", 0),
                FinetuneJob("relation", 0),
                FinetuneJob("supervised", 0),
            },
        ),
    ],
)
def test_another_recipe_of_a_teacher_makes_all_that_follow_others(
    name: str, stays: set[PretrainJob | FinetuneJob], suite: Suite
) -> None:
    before, after = hashes(suite), hashes(changed(suite, name, base_lr=1.0))
    assert {job for job in before if before[job] == after[job]} == {repr(job) for job in stays}


def test_runs_are_identified_by_what_decides_their_outcome(suite: Suite, tmp_path: Path) -> None:
    job = FinetuneJob("relation", 0)
    found = {suite.run(job).config_hash, suite.run(FinetuneJob("relation", 1)).config_hash}
    method = SMOKE.finetunings["relation"]
    for other in (
        replace(SMOKE, data=replace(SMOKE.data, labelled=0.5)),
        replace(SMOKE, finetunings={"relation": Finetuning(replace(method.train, mixup=0.5), "relation")}),
        replace(SMOKE, finetunings={"relation": replace(method, pretrained="sequential")}),
    ):
        found.add(replace(suite, profile=other).run(job).config_hash)
    assert len(found) == 5
    elsewhere = replace(suite, output=tmp_path / "elsewhere", checkpoint_seconds=1, download=True)
    assert elsewhere.run(job).config_hash in found
    fewer = replace(suite, profile=replace(SMOKE, seeds=(0,)))
    assert suite.run(ComparisonJob()).config_hash != fewer.run(ComparisonJob()).config_hash


def test_a_teacher_from_a_file_is_identified_by_what_is_in_it(tmp_path: Path) -> None:
    job, found = PretrainJob("TinyMIM", 0), []
    for name, value in (("one.pt", 0.0), ("same.pt", 0.0), ("other.pt", 1.0)):
        save_atomically(tmp_path / name, {"weight": torch.full((2,), value)})
        suite = Suite("imagenet-tiny", PROFILES["imagenet-tiny"], tmp_path, teacher_weights=tmp_path / name)
        found.append(suite.run(job).config_hash)
    assert found[0] == found[1] != found[2]
    absent = replace(suite, teacher_weights=tmp_path / "absent.pt")
    with pytest.raises(TenfoldError, match="no weights at"):
        absent.run(job)


# -- stages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("once", "teachers"), [(False, (0, 1)), (True, (0,))])
def test_stages_come_after_all_that_they_need(once: bool, teachers: tuple[int, ...], suite: Suite) -> None:
    teacher = replace(SMOKE.pretrainings["MAE teacher"], once=once)
    profile = replace(SMOKE, pretrainings={**SMOKE.pretrainings, "MAE teacher": teacher})
    both = (0, 1)
    assert [set(stage) for stage in replace(suite, profile=profile).jobs()] == [
        {PretrainJob("MAE teacher", seed) for seed in teachers}
        | {FinetuneJob("supervised", seed) for seed in both},
        {PretrainJob("relation", seed) for seed in both},
        {PretrainJob("sequential", seed) for seed in both} | {FinetuneJob("relation", seed) for seed in both},
        {FinetuneJob("sequential", seed) for seed in both},
        {ComparisonJob()},
    ]


@pytest.mark.parametrize("name", PROFILES)
def test_every_run_of_a_profile_is_one_with_a_record_of_its_own(name: str, tmp_path: Path) -> None:
    weights = tmp_path / "teacher.pt"
    save_atomically(weights, {"weight": torch.zeros(1)})
    suite = Suite(name, PROFILES[name], tmp_path, teacher_weights=weights, accelerator=CPU)
    jobs = [job for stage in suite.jobs() for job in stage]
    assert len({suite.run(job).directory for job in jobs}) == len(jobs)
    before: set[Any] = set()
    for stage in suite.jobs():
        for job in stage:
            needs = None
            if isinstance(job, PretrainJob):
                needs = suite.teacher_of(job)
            elif isinstance(job, FinetuneJob):
                needs = suite.pretraining_of(job)
            assert needs is None or needs in before
        before |= set(stage)


def test_seeds_share_a_teacher_that_is_trained_once(suite: Suite) -> None:
    shared = replace(SMOKE.pretrainings["MAE teacher"], once=True)
    profile = replace(SMOKE, pretrainings={**SMOKE.pretrainings, "MAE teacher": shared}, seeds=(3, 4))
    once = replace(suite, profile=profile)
    assert [job for job in once.jobs()[0] if isinstance(job, PretrainJob)] == [PretrainJob("MAE teacher", 3)]
    for seed in (3, 4):
        assert once.teacher_of(PretrainJob("relation", seed)) == PretrainJob("MAE teacher", 3)
        assert once.pretraining_of(FinetuneJob("relation", seed)) == PretrainJob("relation", seed)
    records_of = {once.run(PretrainJob("relation", seed)).config["origin"] for seed in (3, 4)}
    assert records_of == {once.run(PretrainJob("MAE teacher", 3)).config_hash}


@pytest.mark.parametrize(
    ("methods", "networks"),
    [
        (("supervised",), ()),
        (("relation", "supervised"), ("MAE teacher", "relation")),
        (("sequential",), ("MAE teacher", "relation", "sequential")),
    ],
)
def test_a_choice_of_methods_keeps_what_they_need(
    methods: tuple[str, ...], networks: tuple[str, ...], suite: Suite
) -> None:
    profile = SMOKE.needed(methods)
    assert tuple(profile.finetunings) == methods
    assert tuple(profile.pretrainings) == networks
    chosen = replace(suite, profile=profile)
    has_comparison = any(ComparisonJob() in stage for stage in chosen.jobs())
    assert has_comparison == (len(methods) > 1)
    for method in methods:  # their runs are those of the whole suite
        job = FinetuneJob(method, 0)
        assert chosen.run(job).config_hash == suite.run(job).config_hash


def test_a_method_must_begin_with_a_network_of_its_profile() -> None:
    with pytest.raises(TenfoldError, match="which this profile does not pre-train"):
        replace(SMOKE, pretrainings={})


def test_segmenters_are_identified_by_their_backbone(tmp_path: Path) -> None:
    found = set()
    for value in (0.0, 1.0):
        path = tmp_path / f"{value}.pt"
        save_atomically(path, {"weight": torch.full((2,), value)})
        profile = SEGMENTATION_PROFILES["ade20k-tiny"]
        suite = Suite("ade20k-tiny", profile, tmp_path, backbone_weights=path)
        assert suite.jobs() == [[SegmentationJob(0)]]
        found.add(suite.run(SegmentationJob(0)).config_hash)
    assert len(found) == 2


def test_names_become_names_of_folders() -> None:
    assert slug("TinyMIM*") == "tinymim-star"
    assert slug("relation, QQ+KK+VV") == "relation-qq-kk-vv"


# -- what the paper prints -----------------------------------------------------------------------------


def test_every_claim_names_methods_of_its_profile() -> None:
    claims = load_reported("tenfold.tinymim").claims
    assert claims
    for claim in claims:
        assert {claim.better, claim.worse} <= set(PROFILES[claim.profile].finetunings)
        assert judge(claim, []).holds is None


def test_numbers_that_could_not_be_read_say_why_and_keys_are_unique() -> None:
    rows = load_reported("tenfold.tinymim").rows
    assert all(row.unavailable for row in rows if row.value is None)
    keys = [(row.dataset, row.setting, row.method, row.metric) for row in rows]
    assert len(keys) == len(set(keys))


def test_paper_profiles_join_printed_numbers_and_quick_ones_do_not(smoke: Path) -> None:
    reported = load_reported("tenfold.tinymim")
    printed = {(row.dataset, row.setting, row.method) for row in reported.rows}

    def keys(profile: Profile) -> set[tuple[str, str, str]]:
        return {(profile.data.dataset, profile.setting, method) for method in profile.finetunings}

    for name, profile in PROFILES.items():
        if name.startswith("imagenet-") and name not in ("imagenet-chain",):
            assert keys(profile) <= printed, name
        elif not name.startswith("imagenet-"):
            assert not keys(profile) & printed
    assert not [found for found in compare(reported, records(smoke).values()) if found.measurement]
