"""Profiles: the paper's to the letter (specification 2, 3 and 9), and that all their stages and methods start."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tenfold.reft.annotations import load_annotations
from tenfold.reft.bundled import bundled_annotations
from tenfold.reft.class_split import COCO_NOVEL
from tenfold.reft.config import (
    BackboneName,
    DataConfig,
    DistillConfig,
    LossConfig,
    NetworkConfig,
    ReferenceConfig,
    TrainConfig,
)
from tenfold.reft.evaluation import few_shot_metrics
from tenfold.reft.experiments import do
from tenfold.reft.model import RefT
from tenfold.reft.network_files import load_network
from tenfold.reft.profiles import PROFILES
from tenfold.reft.suite_runs import BaseJob, ComparisonJob, FewShotJob, Suite
from tenfold.reft.suites import BaseStage, Method, Profile
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.logging import TenfoldError

CPU = AcceleratorConfig(device="cpu")
NO_REFERENCES = ReferenceConfig("off", query="off")
PAPER = ("coco-r50", "coco-r101", "coco-swin-t", "coco-swin-s", "coco-swin-b")
LENGTHS = {1: 500, 2: 800, 3: 1000, 5: 1500, 10: 2500, 30: 5000}


def of_setting(profile: Profile, setting: str) -> list[Method]:
    return [method for method in profile.methods if method.setting == setting]


def named(profile: Profile, setting: str, beginning: str) -> Method:
    return next(one for one in of_setting(profile, setting) if one.name.startswith(beginning))


# -- to the letter -------------------------------------------------------------------------------------


def test_there_is_a_profile_for_every_experiment() -> None:
    assert {"smoke", "quick", "h100", *PAPER, "coco-r50-12ep"} <= set(PROFILES)


@pytest.mark.parametrize(
    ("name", "backbone"),
    list(zip(PAPER, ("resnet-50", "resnet-101", "swin-t", "swin-s", "swin-b"), strict=True)),
)
def test_a_profile_on_coco_has_its_backbone_and_mask2formers_shape(name: str, backbone: str) -> None:
    network = PROFILES[name].network
    assert network.backbone == backbone
    assert (network.hidden_dim, network.num_heads, network.num_queries) == (256, 8, 100)
    assert (network.encoder_layers, network.encoder_ffn) == (6, 1024)
    assert (network.decoder_layers, network.decoder_ffn) == (9, 2048)
    assert network.cosine_scale == 20


@pytest.mark.parametrize("name", PAPER)
def test_base_training_is_mask2formers_recipe(name: str) -> None:
    for stage in PROFILES[name].stages.values():
        recipe = stage.train
        assert (recipe.steps, recipe.batch_size) == (368_750, 16)
        assert (recipe.lr, recipe.weight_decay, recipe.backbone_lr_factor) == (1e-4, 0.05, 0.1)
        assert recipe.schedule == "steps"
        assert recipe.milestones == (327_778, 355_092)
        assert (recipe.warmup, recipe.warmup_factor) == (10, 1.0)
        assert recipe.clip == 0.01
        assert (recipe.freeze, recipe.batch_norm) == ("none", "frozen")
        assert stage.pretrained
        assert stage.begins_with is None


@pytest.mark.parametrize("name", PAPER)
def test_losses_and_matching_are_at_12544_points_with_mask2formers_weights(name: str) -> None:
    losses = PROFILES[name].losses
    assert losses.num_points == 12_544 == 112**2
    assert (losses.class_weight, losses.mask_weight, losses.dice_weight) == (2.0, 5.0, 5.0)
    assert losses.no_object_weight == 0.1
    assert (losses.oversample_ratio, losses.importance_ratio) == (3.0, 0.75)


@pytest.mark.parametrize("name", PAPER)
def test_images_are_augmented_tested_and_cropped_as_the_table_says(name: str) -> None:
    data = PROFILES[name].data
    assert data.dataset == "coco"
    assert (data.image_size, data.jitter, data.few_shot_jitter) == (1024, (0.1, 2.0), (0.5, 2.0))
    assert data.flip
    assert (data.test_short_side, data.test_long_side) == (800, 1333)
    assert (data.support_size, data.support_context, data.episode_classes) == (320, 16, 20)
    assert data.records == "merged"


@pytest.mark.parametrize("name", PAPER)
def test_references_are_the_specifications_defaults(name: str) -> None:
    stages = PROFILES[name].stages
    assert stages["RefT"].references == ReferenceConfig(
        feature="reweight",
        query="last",
        top_k=5,
        selection="mask",
        max_rows=512,
        class_embedding=False,
        detach_supports=False,
    )
    assert stages["Mask2Former"].references.is_off
    assert {name: stage.classifier for name, stage in stages.items()} == {
        "RefT": "linear",
        "Mask2Former": "linear",
        "RefT, cosine": "cosine",
        "Mask2Former, cosine": "cosine",
    }


@pytest.mark.parametrize("name", PAPER)
def test_base_networks_are_trained_once_and_new_classes_are_learned_with_ten_seeds(name: str) -> None:
    assert PROFILES[name].seeds == tuple(range(10))
    assert PROFILES[name].base_seed == 0


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize(
    ("setting", "shots"), [("fsis", (5, 10, 30)), ("gfsis", (1, 5, 10)), ("ifsis", (1, 5, 10))]
)
def test_numbers_of_shots_are_those_of_the_tables(name: str, setting: str, shots: tuple[int, ...]) -> None:
    methods = of_setting(PROFILES[name], setting)
    assert methods
    assert all(tuple(sorted(method.finetuning)) == shots for method in methods)


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize(("setting", "share"), [("fsis", 1.0), ("gfsis", 1.0), ("ifsis", 0.5)])
def test_fine_tuning_takes_as_long_as_the_table_says(name: str, setting: str, share: float) -> None:
    for method in of_setting(PROFILES[name], setting):
        for shots, recipe in method.finetuning.items():
            assert recipe.steps == LENGTHS[shots] * share, (method.name, shots)
            assert [float(one) for one in recipe.milestones] == [0.8 * recipe.steps]
            assert (recipe.lr, recipe.weight_decay, recipe.clip) == (1e-4, 0.05, 0.01)
            assert (recipe.batch_size, recipe.schedule) == (16, "steps")
            assert recipe.classifier_lr_factor == 1.0


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize(
    ("setting", "beginning", "frozen", "base"),
    [
        ("fsis", "RefT", "backbone", "RefT"),
        ("fsis", "Mask2Former + ft-full", "backbone", "Mask2Former"),
        ("gfsis", "RefT", "backbone", "RefT"),
        ("gfsis", "Mask2Former + ft-full", "backbone", "Mask2Former"),
        ("gfsis", "Mask2Former, cosine classifier alone", "classifier", "Mask2Former, cosine"),
        ("ifsis", "RefT w/ Cos", "incremental", "RefT, cosine"),
        ("ifsis", "RefT w/ Cos, no distillation", "incremental", "RefT, cosine"),
        ("ifsis", "RefT w/ Cos, nothing frozen", "none", "RefT, cosine"),
    ],
)
def test_each_method_freezes_what_the_table_says(
    name: str, setting: str, beginning: str, frozen: str, base: str
) -> None:
    method = named(PROFILES[name], setting, beginning)
    assert {recipe.freeze for recipe in method.finetuning.values()} == {frozen}
    assert method.base == base


@pytest.mark.parametrize("name", PAPER)
def test_the_base_model_is_distilled_in_ifsis_with_the_weights_of_incremental_detr(name: str) -> None:
    profile = PROFILES[name]
    found = named(profile, "ifsis", "RefT w/ Cos").distill
    assert found is not None
    assert (found.class_weight, found.feature_weight, found.temperature) == (2.0, 0.1, 1.0)
    assert named(profile, "ifsis", "RefT w/ Cos, no distillation").distill is None
    classes_alone = named(profile, "ifsis", "RefT w/ Cos, classes distilled").distill
    assert classes_alone == DistillConfig(class_weight=2.0, feature_weight=0.0)
    assert all(method.distill is None for method in profile.methods if method.setting != "ifsis")


def test_twelve_epochs_are_the_same_recipe_in_fewer_updates() -> None:
    short, full = (PROFILES[name].stages["RefT"].train for name in ("coco-r50-12ep", "coco-r50"))
    assert short.steps == 88_500
    for mine, theirs in zip(short.milestones, full.milestones, strict=True):
        assert mine / short.steps == pytest.approx(theirs / full.steps, abs=1e-5)
    assert replace(short, steps=full.steps, milestones=full.milestones) == full


@pytest.mark.parametrize("name", [*PAPER[1:], "coco-r50-12ep"])
def test_profiles_on_coco_differ_by_backbone_and_names_alone(name: str) -> None:
    ours, main = PROFILES[name], PROFILES["coco-r50"]
    assert (ours.data, ours.losses, ours.base_shots) == (main.data, main.losses, main.base_shots)
    assert replace(ours.network, backbone="resnet-50") == main.network
    assert list(ours.stages) == list(main.stages)
    for mine, theirs in zip(ours.methods, main.methods, strict=True):
        assert replace(mine, name=theirs.name) == theirs


def test_quick_is_the_specifications_task() -> None:
    profile = PROFILES["quick"]
    assert profile.compose is not None
    assert profile.compose.train_images == 400
    assert profile.compose.test_images >= 80
    assert (profile.compose.image_size, profile.compose.digit_size, profile.compose.max_digits) == (
        64,
        (28, 43),
        2,
    )
    assert profile.network == NetworkConfig("small", 64, 4, 1, 128, 3, 128, 8)
    assert profile.losses.num_points == 256
    base, after = profile.stages["base"].train, profile.stages["RefT"].train
    assert 800 <= base.steps <= 1500
    assert (base.batch_size, base.lr, base.schedule) == (8, 1.5e-3, "one-cycle")
    assert (base.weight_decay, base.clip) == (0.05, 1.0)
    assert (after.steps, after.lr) == (200, 5e-4)
    assert {method.setting for method in profile.methods} == {"gfsis"}
    for method in profile.methods:
        (recipe,) = method.finetuning.values()
        # Twice the specification's updates for twice its shots.
        assert (recipe.steps, recipe.freeze, list(method.finetuning)) == (200, "none", [10])
    assert len(profile.seeds) >= 3


def test_quick_compares_both_branches_after_as_many_updates_from_one_base() -> None:
    stages = PROFILES["quick"].stages
    assert stages["base"].references.is_off
    assert {stages[name].begins_with for name in ("RefT", "Mask2Former")} == {"base"}
    assert replace(stages["RefT"], references=NO_REFERENCES) == stages["Mask2Former"]


def test_the_quick_network_is_as_small_as_the_prototype() -> None:
    profile = PROFILES["quick"]
    with torch.device("meta"):
        network = RefT(profile.network, ReferenceConfig(), 10)
    assert count(network) == pytest.approx(0.83e6, rel=0.05)


def test_the_gpus_profile_is_the_specifications_proposal() -> None:
    profile = PROFILES["h100"]
    assert profile.network.backbone == "resnet-18"
    assert (profile.network.hidden_dim, profile.network.num_queries) == (128, 50)
    assert (profile.network.encoder_layers, profile.network.decoder_layers) == (6, 6)
    assert (profile.stages["base"].train.steps, profile.stages["base"].train.batch_size) == (8000, 64)
    assert profile.compose is not None
    assert (profile.compose.image_size, profile.compose.max_digits) == (256, 10)
    assert len(profile.seeds) == 5
    assert {method.setting for method in profile.methods} == {"fsis", "gfsis", "ifsis"}
    assert {shots for method in profile.methods for shots in method.finetuning} == {1, 3, 5, 10, 30}


@pytest.mark.parametrize("name", PROFILES)
def test_every_run_of_a_profile_has_a_folder_of_its_own(name: str, tmp_path: Path) -> None:
    suite = Suite(name, replace(PROFILES[name], seeds=(0, 1)), tmp_path, accelerator=CPU)
    jobs = [job for stage in suite.jobs() for job in stage if isinstance(job, BaseJob | FewShotJob)]
    assert len({suite.run(job).directory for job in jobs}) == len(jobs)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_composes_the_shots_that_its_methods_learn_from(name: str) -> None:
    profile = PROFILES[name]
    assert (profile.compose is not None) == (profile.data.dataset == "digits")
    if profile.compose is not None:
        assert set(profile.seeds) <= set(profile.compose.seeds)
        assert {shots for one in profile.methods for shots in one.finetuning} <= set(profile.compose.shots)
        assert profile.data.image_size == profile.compose.image_size


def test_a_stage_begins_with_one_before_it() -> None:
    later = BaseStage(TrainConfig(), begins_with="second")
    with pytest.raises(TenfoldError, match="first begins with second, which is no stage before it"):
        Profile("", DataConfig(), NetworkConfig(), LossConfig(), {"first": later, "second": later}, ())


def test_a_method_begins_with_a_stage_of_its_profile() -> None:
    method = Method("RefT", "absent", "fsis", {1: TrainConfig()})
    with pytest.raises(TenfoldError, match="RefT begins with absent, which is no stage of this profile"):
        Profile("", DataConfig(), NetworkConfig(), LossConfig(), {}, (method,))


def test_digits_alone_are_composed() -> None:
    with pytest.raises(TenfoldError, match="digits, and they alone"):
        replace(PROFILES["coco-r50"], compose=PROFILES["quick"].compose)
    with pytest.raises(TenfoldError, match="digits, and they alone"):
        replace(PROFILES["quick"], compose=None)


# -- parameters ----------------------------------------------------------------------------------------


def count(*modules: nn.Module | None) -> int:
    return sum(
        parameter.numel() for module in modules if module is not None for parameter in module.parameters()
    )


@pytest.mark.parametrize(
    ("backbone", "of_backbone", "of_pixels", "total"),
    [
        ("resnet-50", 23_508_032, 6_035_904, 44_023_377),
        ("resnet-101", 42_500_160, 6_035_904, 63_015_505),
        ("swin-t", 27_522_234, 5_421_504, 47_423_179),
        ("swin-s", 48_840_138, 5_421_504, 68_741_083),
        ("swin-b", 86_882_424, 5_544_384, 106_906_249),
    ],
)
def test_networks_have_the_parameters_of_the_architecture_table(
    backbone: BackboneName, of_backbone: int, of_pixels: int, total: int
) -> None:
    with torch.device("meta"):
        network = RefT(NetworkConfig(backbone), ReferenceConfig(), 80)
    modules = network.model.pixel_level_module
    assert count(modules.encoder) == of_backbone
    assert count(modules.decoder) == of_pixels
    assert count(network.model.transformer_module) == 14_458_624
    assert count(network.class_predictor) == 20_817
    assert count(network.model, network.class_predictor) == total
    assert count(network.feature_reference) == 592_896
    assert count(network.query_reference) == 263_680
    assert count(network) == total + 856_576


def test_the_table_covers_all_backbones_of_the_paper() -> None:
    assert {PROFILES[name].network.backbone for name in PAPER} == set(get_args(BackboneName)) - {
        "resnet-18",
        "small",
    }


# -- that they start -----------------------------------------------------------------------------------


def two_updates(recipe: TrainConfig) -> TrainConfig:
    """A recipe in two updates of two images; all else stays."""
    return replace(recipe, steps=2, batch_size=2, milestones=(1,), log_every=1)


def shrunk(profile: Profile, shots: dict[str, int]) -> Profile:
    """A profile of COCO with a small network and small images; its stages and methods stay.

    Args:
        profile: to shrink.
        shots: setting to the one number of shots that is kept.
    """
    return replace(
        profile,
        data=replace(
            profile.data,
            image_size=64,
            test_short_side=64,
            test_long_side=96,
            support_size=32,
            episode_classes=3,
            workers=0,
        ),
        network=NetworkConfig("small", 32, 2, 1, 64, 1, 64, 6),
        losses=replace(profile.losses, num_points=64),
        stages={
            name: replace(stage, train=two_updates(stage.train), pretrained=False)
            for name, stage in profile.stages.items()
        },
        methods=tuple(
            replace(
                method,
                finetuning={
                    number: two_updates(recipe)
                    for number, recipe in method.finetuning.items()
                    if number == shots[method.setting]
                },
            )
            for method in profile.methods
        ),
        seeds=(0,),
        base_shots=1,
        judge_before=False,
    )


def squares(
    categories: Sequence[dict[str, Any]], shown: Sequence[int], each: int, lvis_part: str = ""
) -> dict[str, Any]:
    """Annotations of COCO's form: as many images of one square as asked for of each category, in four files.

    LVIS says where an image is by its address alone.
    """
    images, annotations = [], []
    for number, (category, file) in enumerate(
        zip([one for one in shown for _ in range(each)], cycle(range(4))), start=1
    ):
        x, y, side = 6 + number % 30, 4 + number % 20, 20 + number % 12
        polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
        where = (
            {"file_name": f"{file}.jpg"}
            if not lvis_part
            else {"coco_url": f"http://x/{lvis_part}/{file}.jpg"}
        )
        images.append({"id": number, "height": 60, "width": 80, **where})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": category,
                "iscrowd": 0,
                "area": side * side,
                "bbox": [x, y, side, side],
                "segmentation": [polygon],
            }
        )
    return {"images": images, "annotations": annotations, "categories": list(categories)}


def write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(4):
        pixels = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")


@pytest.fixture(scope="module")
def coco_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO as it is unpacked, with its 80 categories and 30 images of each, as many as 30 shots need."""
    root = tmp_path_factory.mktemp("data")
    categories = load_annotations(bundled_annotations("train")).dataset["categories"]
    numbers = [category["id"] for category in categories]
    (root / "coco" / "annotations").mkdir(parents=True)
    for part, shown, each in (("train", numbers, 30), ("val", [8, 44], 1)):
        write_pictures(root / "coco" / f"{part}2017")
        content = squares(categories, shown, each)
        path = root / "coco" / "annotations" / f"instances_{part}2017.json"
        path.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def lvis_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LVIS as it is unpacked, with two rare, two common and two frequent categories; a rare one has three images."""
    root = tmp_path_factory.mktemp("data")
    categories = [
        {"id": number, "name": f"thing {number}", "frequency": letter, "image_count": 3, "instance_count": 3}
        for number, letter in enumerate("rcfrcf", start=1)
    ]
    (root / "lvis").mkdir()
    for part, each in (("train", 3), ("val", 1)):
        write_pictures(root / "coco" / f"{part}2017")
        content = squares(categories, range(1, 7), each, f"{part}2017")
        (root / "lvis" / f"lvis_v1_{part}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def coco_suite(coco_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    profile = shrunk(PROFILES["coco-r50"], {"fsis": 5, "gfsis": 1, "ifsis": 1})
    return Suite("coco-r50", profile, tmp_path_factory.mktemp("runs"), coco_root, accelerator=CPU)


def started(suite: Suite) -> list[dict[str, Any]]:
    """The records of all base networks and methods, without their comparison."""
    jobs = [job for stage in suite.jobs() for job in stage if not isinstance(job, ComparisonJob)]
    for job in jobs:
        do(suite, job)
    return [suite.run(job).result or {} for job in jobs]


@pytest.fixture(scope="module")
def coco_runs(coco_suite: Suite) -> list[dict[str, Any]]:
    """Two updates of all stages and methods of the main profile."""
    return started(coco_suite)


def test_all_stages_and_methods_on_coco_start(coco_runs: list[dict[str, Any]]) -> None:
    profile = PROFILES["coco-r50"]
    ended = [(run["setting"], run["method"]) for run in coco_runs]
    titles = {"fsis": "FSIS, 5 shots", "gfsis": "gFSIS, 1 shot", "ifsis": "iFSIS, 1 shot"}
    methods = [(titles[method.setting], method.name) for method in profile.methods]
    assert sorted(ended) == sorted([("base classes", name) for name in profile.stages] + methods)
    for run in coco_runs:
        assert run["curves"]["total_loss"]["x"] == [1, 2], run["method"]
        assert all(math.isfinite(value) for value in run["curves"]["total_loss"]["y"])


def test_base_stages_on_coco_are_judged_on_base_classes_fsis_on_novel_ones_and_others_on_both(
    coco_runs: list[dict[str, Any]],
) -> None:
    expected = {
        "base": {"segm_bAP", "bbox_bAP"},
        "FSIS": {f"{kind}_nAP{at}" for kind in ("segm", "bbox") for at in ("", "50", "75")},
    }
    expected["gFSIS"] = expected["iFSIS"] = (
        expected["base"] | expected["FSIS"] | {f"{kind}_AP" for kind in ("segm", "bbox")}
    )
    for run in coco_runs:
        judged = {name for name in run["metrics"] if name.startswith(("segm", "bbox"))}
        assert judged == expected[run["setting"].split()[0].strip(",")], run["method"]


def test_distilled_losses_on_coco_are_of_ifsis_with_distillation_alone(
    coco_runs: list[dict[str, Any]],
) -> None:
    with_distillation = {"RefT w/ Cos", "RefT w/ Cos, classes distilled"}
    for run in coco_runs:
        distilled = {name for name in run["curves"] if "distill" in name}
        assert bool(distilled) == (run["method"] in with_distillation), (run["method"], distilled)


def test_all_stages_and_methods_on_lvis_start(
    lvis_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged by COCO's rules: LVIS's own package, which is optional, is not what is tested here."""

    def as_coco(path: Path, detections: Any, novel: Sequence[int], base: Sequence[int]) -> dict[str, float]:
        return few_shot_metrics(load_annotations(path), detections, novel, base)

    monkeypatch.setattr("tenfold.reft.sources.lvis_metrics", as_coco)
    profile = shrunk(PROFILES["lvis-r50"], {"gfsis": 10})
    suite = Suite("lvis-r50", profile, tmp_path, lvis_root, accelerator=CPU)
    ended = {(run["dataset"], run["setting"], run["method"]) for run in started(suite)}
    assert ended == {
        ("LVIS", "base classes", "RefT"),
        ("LVIS", "base classes", "Mask2Former"),
        ("LVIS", "gFSIS, 10 shots", "RefT"),
        ("LVIS", "gFSIS, 10 shots", "Mask2Former + ft-full"),
    }
    job = FewShotJob("RefT", "gfsis", 10, 0)
    stored = load_network(suite.run(job).directory / "model.pt")
    assert stored.category_ids == (2, 3, 5, 6, 1, 4)  # rare ones are novel and come last


@pytest.mark.usefixtures("coco_runs")
def test_on_coco_a_base_network_knows_60_classes_and_fsis_the_20_novel_ones(coco_suite: Suite) -> None:
    known = load_network(coco_suite.run(BaseJob("RefT")).directory / "model.pt")
    assert known.network.num_classes == len(known.category_ids) == 60
    assert not set(known.category_ids) & set(COCO_NOVEL)
    learned = load_network(coco_suite.run(FewShotJob("RefT", "fsis", 5, 0)).directory / "model.pt")
    assert learned.network.num_classes == 20
    assert learned.category_ids == COCO_NOVEL
    assert learned.references is not None
    assert bool(learned.references.present.all())


@pytest.mark.usefixtures("coco_runs")
def test_ifsis_on_coco_keeps_the_base_networks_support_cache(coco_suite: Suite) -> None:
    base = load_network(coco_suite.run(BaseJob("RefT, cosine")).directory / "model.pt").references
    job = FewShotJob("RefT w/ Cos", "ifsis", 1, 0)
    both = load_network(coco_suite.run(job).directory / "model.pt").references
    assert base is not None and both is not None
    assert len(both.present) == 80
    for level, of_base in zip(both.centres, base.centres, strict=True):
        torch.testing.assert_close(level[:60], of_base)


def test_shots_on_coco_are_drawn_for_all_classes_whatever_the_setting(coco_suite: Suite) -> None:
    """So that FSIS learns from the novel part of what gFSIS learns from."""
    split = coco_suite.source.split
    novel = coco_suite.source.few_shot(1, 5, split.categories("fsis"))[1]["classes"]
    everything = coco_suite.source.few_shot(1, 5, split.categories("gfsis"))[1]["classes"]
    assert len(everything) == 80
    assert novel == {number: shots for number, shots in everything.items() if int(number) in COCO_NOVEL}
