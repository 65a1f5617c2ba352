"""Suites: records, interruptions, frozen counterparts, defences, comparisons, and what the paper prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from scipy import stats

from tenfold.doorping.experiments import (
    ArmJob,
    ComparisonJob,
    DefenceJob,
    Suite,
    known_poison,
    paired_difference,
    reproduce,
    slug,
)
from tenfold.doorping.image_sets import DESCRIPTIONS, ImageSet
from tenfold.doorping.official_artifacts import load_distilled
from tenfold.doorping.profiles import PROFILES, Profile
from tenfold.doorping.training import judge, victims_of
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.comparison import compare, load_reported
from tenfold.shared.comparison import judge as judge_claim
from tenfold.shared.logging import TenfoldError

CPU = AcceleratorConfig(device="cpu")
ROOT = Path(__file__).resolve().parents[3]


def records(root: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in root.rglob("result.json")}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    reproduce(Suite("smoke", PROFILES["smoke"], folder, accelerator=CPU), quiet=True)
    return folder


def test_smoke_leaves_a_valid_record_of_every_run(smoke: Path) -> None:
    found = records(smoke)
    names = {slug(method) for method in PROFILES["smoke"].methods} | {"defences-doorping"}
    assert set(found) == {"comparison-seed0", *(f"{name}-seed{seed}" for name in names for seed in (0, 1))}
    (schema,) = ROOT.glob("benchmarks/src/tenfold/benchmarks/schemas/result*.json")
    for name, record in found.items():
        jsonschema.validate(record, json.loads(schema.read_text()))
        assert record["status"] == "finished"
        for figure in record["figures"]:
            assert next(smoke.rglob(f"{name}/{figure['file']}")).stat().st_size > 1000
    drawn = {Path(figure["file"]).name for figure in found["doorping-seed0"]["figures"]}
    assert drawn == {"distilled.png", "triggered.png", "trigger.png"}
    drawn = {Path(figure["file"]).name for figure in found["comparison-seed0"]["figures"]}
    assert {"arms.png", "differences.png", "detectors.png", "repairs_asr.png", "repairs_cta.png"} == drawn


def test_every_arm_has_rates_with_intervals_and_curves(smoke: Path) -> None:
    for name, record in records(smoke).items():
        if name.startswith(("defences", "comparison")):
            continue
        metrics = record["metrics"]
        judged = "fresh_" if name.startswith("dd") else ""  # a single known network has no interval
        for rate in (f"{judged}cta", f"{judged}asr_all", f"{judged}asr_excluding_target"):
            assert 0 <= metrics[f"{rate}_low"] <= metrics[rate] <= metrics[f"{rate}_high"] <= 1
        assert metrics["trigger_max"] > 0
        if name.startswith(("doorping", "clean")):
            assert record["curves"]["cta"]["x"] == [0, 1, 2]
            assert record["curves"]["matching_loss"]["x"] == [1, 2]


def test_a_frozen_trigger_is_as_strong_as_the_one_it_is_compared_with(smoke: Path) -> None:
    found = records(smoke)
    for seed in (0, 1):
        for arm, frozen in (("doorping", "frozen-patch"), ("dd-doorping", "dd-frozen-patch")):
            strength = found[f"{arm}-seed{seed}"]["metrics"]["trigger_max"]
            assert found[f"{frozen}-seed{seed}"]["metrics"]["trigger_max"] == pytest.approx(strength)
            trigger = load_distilled(next(smoke.rglob(f"{frozen}-seed{seed}/distilled.pt"))).trigger
            assert trigger is not None
            assert trigger[0, :, 5:7, 5:7].abs().unique().tolist() == pytest.approx([strength])


def test_a_kept_set_gives_the_rates_of_its_record(smoke: Path, digits: ImageSet) -> None:
    for name, method in (("doorping-in-pixels", "DOORPING in pixels"), ("invisible", "INVISIBLE")):
        config = PROFILES["smoke"].run_config(method, "digits")
        distilled = load_distilled(next(smoke.rglob(f"smoke/{name}-seed1/distilled.pt")))
        data = digits.subset(config.share, 1)
        victims = victims_of(distilled, config.network, data, config.victim, 1, torch.device("cpu"))
        rates = judge(victims, known_poison(config, 1, distilled, data))
        metrics = records(smoke)[f"{name}-seed1"]["metrics"]
        assert {rate: metrics[rate] for rate in rates} == pytest.approx(rates)


def test_the_comparison_pairs_seeds(smoke: Path) -> None:
    found = records(smoke)
    gains = [
        found[f"doorping-seed{seed}"]["metrics"]["cta"] - found[f"naiveattack-seed{seed}"]["metrics"]["cta"]
        for seed in (0, 1)
    ]
    metrics = found["comparison-seed0"]["metrics"]
    assert metrics["cta: DOORPING - NAIVEATTACK"] == pytest.approx(sum(gains) / 2)


def test_paired_intervals_are_students() -> None:
    first, second = [0.9, 0.8, 1.0, 0.7], [0.5, 0.6, 0.7, 0.2]
    mean, low, high = paired_difference(first, second)
    gains = [a - b for a, b in zip(first, second, strict=True)]
    expected = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((sum(gains) / 4, expected.low, expected.high))
    assert paired_difference([0.5], [0.2]) == pytest.approx((0.3, 0.3, 0.3))


def test_a_finished_suite_is_not_done_again(smoke: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")}
    reproduce(Suite("smoke", PROFILES["smoke"], smoke, accelerator=CPU))
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")} == before


def test_a_killed_suite_goes_on_to_the_same_metrics(
    start: Any, kill_at: Any, smoke: Path, tmp_path: Path
) -> None:
    arguments = ("-m", "tenfold.doorping", "reproduce", "--profile", "smoke", "--device", "cpu", "-q")
    arguments += ("--workers", 1, "--seeds", 0, "--methods", "DOORPING", "frozen patch", "DD, DOORPING")
    arguments += ("--output", tmp_path)
    kill_at("doorping/smoke/*/checkpoint.pt", *arguments, cwd=tmp_path)
    again = start(*arguments, cwd=tmp_path)
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    expected, found = records(smoke), records(tmp_path)
    found.pop("comparison-seed0")  # it has fewer arms and seeds to compare
    assert set(found) == {
        "doorping-seed0", "frozen-patch-seed0", "dd-doorping-seed0", "defences-doorping-seed0"
    }  # fmt: skip
    for name, record in found.items():
        assert record["metrics"] == expected[name]["metrics"], name
        assert record["curves"] == expected[name]["curves"], name


def test_a_frozen_counterpart_alone_is_refused() -> None:
    with pytest.raises(TenfoldError, match="frozen patch needs the run of DOORPING"):
        PROFILES["smoke"].only(("frozen patch",))


def test_runs_are_identified_by_what_decides_their_outcome(tmp_path: Path) -> None:
    profile = PROFILES["smoke"]
    suite, job = Suite("smoke", profile, tmp_path, accelerator=CPU), ArmJob("DOORPING", "digits", 0)
    base = profile.base
    hashes = {suite.run(job).config_hash, suite.run(replace(job, seed=1)).config_hash}
    for other in (
        replace(base, attack=replace(base.attack, portion=0.02)),
        replace(base, condensation=replace(base.condensation, lr_img=1.0)),
        replace(base, victim=replace(base.victim, epochs=5)),
    ):
        hashes.add(replace(suite, profile=replace(profile, base=other)).run(job).config_hash)
    assert len(hashes) == 5
    assert replace(suite, output=tmp_path / "elsewhere", checkpoint_seconds=1).run(job).config_hash in hashes
    weaker = replace(suite, profile=replace(profile, defences=replace(profile.defences, victims=2)))
    defended = DefenceJob("DOORPING", "digits", 0)
    assert suite.run(defended).config_hash != weaker.run(defended).config_hash


def test_data_sets_of_one_profile_have_records_of_their_own(tmp_path: Path) -> None:
    suite = Suite("h100", PROFILES["h100"], tmp_path, accelerator=CPU)
    jobs = [job for stage in suite.jobs() for job in stage]
    assert len({suite.run(job).directory for job in jobs}) == len(jobs)
    assert {job.dataset for job in jobs} == {"fashion-mnist", "cifar-10-mosaic"}
    assert sum(isinstance(job, ComparisonJob) for job in jobs) == 2


# -- profiles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PROFILES if name != "defences"])
def test_a_frozen_arm_stands_beside_every_doorping(name: str) -> None:
    profile = PROFILES[name]
    for method in profile.methods:
        if "DOORPING" not in method:
            continue
        frozen = next(
            each
            for each in (
                method.replace("DOORPING", "frozen patch"),
                method.replace("DOORPING", "frozen"),
            )
            if each in profile.methods
        )
        for dataset in profile.datasets:
            ours, theirs = profile.run_config(method, dataset), profile.run_config(frozen, dataset)
            assert theirs.attack.kind == "frozen"
            assert theirs.as_strong_as == method or (
                theirs.attack.bound == ours.attack.bound
                and theirs.attack.within_pixels == ours.attack.within_pixels
            )
            same = replace(theirs, attack=ours.attack, as_strong_as=None)
            assert same == ours
            assert theirs.attack.portion == ours.attack.portion


def test_the_papers_settings_are_the_authors() -> None:
    dc = PROFILES["dc-cifar-10-convnet"].run_config("DOORPING", "cifar-10")
    assert dc.condensation.loops == (10, 50)
    settings = dc.condensation
    assert (settings.ipc, settings.iterations, settings.lr_img, settings.lr_net) == (10, 1000, 0.1, 0.01)
    assert (settings.momentum_img, settings.batch_real, settings.batch_train) == (0.5, 256, 256)
    assert (settings.init, settings.metric, settings.augmentation) == ("noise", "ours", "none")
    attack = dc.attack
    assert (attack.portion, attack.trigger_size, attack.target, attack.layer) == (0.01, 2, 0, -2)
    assert (attack.topk, attack.alpha, attack.steps, attack.lr, attack.stop_below) == (1, 10, 1000, 0.08, 0.5)
    assert attack.bound is None
    victim = dc.victim
    assert (victim.networks, victim.epochs, victim.drop_after) == (10, 301, 151)
    assert (victim.lr, victim.momentum, victim.weight_decay) == (0.01, 0.9, 5e-4)
    dd = PROFILES["dd-svhn-alexnet"].run_config("INVISIBLE", "svhn")
    assert (dd.distillation, dd.network.name) == ("dd", "AlexNet")
    assert (dd.unrolled.epochs, dd.unrolled.batch_size, dd.unrolled.lr) == (400, 1024, 0.01)
    assert (dd.unrolled.distill_lr, dd.unrolled.distill_steps, dd.unrolled.distill_epochs) == (0.001, 10, 3)
    assert (dd.attack.steps, dd.attack.lr) == (50, 0.001)
    assert PROFILES["dc-svhn-alexnet"].run_config("INVISIBLE", "svhn").attack.steps == 100


def small(profile: Profile, dataset: str) -> Profile:
    """A paper profile at the size of a test: fewer loops and networks, everything else as it is."""
    base = profile.base
    condensation = replace(base.condensation, iterations=1, outer=2, inner=1, batch_real=4, ipc=1)
    unrolled = replace(base.unrolled, epochs=1, batch_size=40, distill_steps=1, distill_epochs=2, ipc=1)
    methods = {
        name: replace(
            method,
            attack={**method.attack, "portion": 0.05, "steps": 2},
            condensation={
                key: value for key, value in method.condensation.items() if key not in ("ipc", "iterations")
            },
            victim={**method.victim, "epochs": 1, "networks": 1} if method.victim else {},
        )
        for name, method in profile.methods.items()
    }
    victim = replace(base.victim, networks=1, epochs=1)
    network = replace(base.network, width=8)
    base = replace(base, condensation=condensation, unrolled=unrolled, victim=victim, network=network)
    return replace(profile, base=base, methods=methods, datasets=(dataset,), defences=None, defended=())


@pytest.fixture
def tiny_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the data sets that are not here: random images of their form, from the loader's own table."""

    def load(name: str, root: Path, download: bool, statistics: str = "dc") -> ImageSet:
        known = DESCRIPTIONS[name]
        normal = known.normalisation(statistics)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        shape = (len(normal.mean), 32, 32)
        count = 4 * known.classes
        return ImageSet(
            name,
            torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8),
            torch.arange(count) % known.classes,
            torch.randint(0, 256, (20, *shape), generator=generator, dtype=torch.uint8),
            torch.arange(20) % known.classes,
            known.classes,
            tuple(normal.mean),
            tuple(normal.std),
        )

    monkeypatch.setattr("tenfold.doorping.training.load_image_set", load)


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("dc-fashion-mnist-convnet", ("clean", "NAIVEATTACK", "DOORPING", "frozen patch", "INVISIBLE")),
        ("dc-cifar-10-alexnet", ("DOORPING", "frozen patch")),
        ("dc-svhn-convnet", ("frozen bytes", "random subset", "whole set")),
        ("dc-stl-10-convnet", ("DOORPING in pixels", "frozen in pixels")),
        ("dd-cifar-10-alexnet", ("DOORPING", "frozen patch")),
        ("dd-fashion-mnist-convnet", ("INVISIBLE",)),
        ("cross-architecture", ("NAIVEATTACK",)),
        ("ablation-layer", ("DOORPING, layer -1", "DOORPING, layer -4")),
        ("ablation-trajectory", ("DOORPING", "frozen patch")),
        ("reference-cifar-10", ("DC, ipc 1", "DSA, ipc 1")),
    ],
)
def test_a_paper_profile_starts(name: str, methods: tuple[str, ...], tmp_path: Path, tiny_sets: None) -> None:
    (dataset,) = PROFILES[name].datasets
    profile = small(PROFILES[name].only(methods), dataset)
    results = reproduce(Suite(name, profile, tmp_path, accelerator=CPU), quiet=True)
    found = [result for result in results if result["setting"] != "comparison"]
    assert {result["method"] for result in found} == set(methods)
    for result in found:
        assert result["status"] == "finished"
        assert 0 <= result["metrics"]["cta"] <= 1
        assert result["metrics"]["asr_all"] is not None
    if name == "cross-architecture":
        assert len(found) == 1
        assert {"VGG11_cta", "ResNet18_asr_all", "AlexNet_cta"} <= found[0]["metrics"].keys()


# -- what is printed -------------------------------------------------------------------------------------------


def test_every_claim_names_arms_of_its_profile() -> None:
    claims = load_reported("tenfold.doorping").claims
    assert claims
    for claim in claims:
        assert {claim.better, claim.worse} <= set(PROFILES[claim.profile].methods)
        assert judge_claim(claim, []).holds is None


def test_nothing_is_filled_in_and_keys_are_unique() -> None:
    rows = load_reported("tenfold.doorping").rows
    keys = [(row.dataset, row.setting, row.method, row.metric) for row in rows]
    assert len(keys) == len(set(keys))
    assert all(row.unavailable for row in rows if row.value is None)
    own = [row for row in rows if row.table.startswith(("DC with", "DD with"))]
    assert len(own) == 160
    assert all(row.value is None for row in own)


def test_paper_profiles_join_printed_rows_and_scaled_down_ones_do_not(smoke: Path) -> None:
    reported = load_reported("tenfold.doorping")
    printed = {(row.dataset, row.setting, row.method) for row in reported.rows}
    for dataset in ("fashion-mnist", "cifar-10", "cifar-100", "stl-10", "svhn"):
        for network in ("convnet", "alexnet"):
            for kind in ("dc", "dd"):
                profile = PROFILES[f"{kind}-{dataset}-{network}"]
                for method in ("clean", "NAIVEATTACK", "DOORPING", "INVISIBLE"):
                    assert (dataset, profile.setting, method) in printed
    for name in ("fashion-mnist", "cifar-10", "cifar-100", "svhn"):
        profile = PROFILES[f"reference-{name}"]
        assert {(name, profile.setting, method) for method in profile.methods} <= printed
    assert not [found for found in compare(reported, records(smoke).values()) if found.measurement]
