"""Settings: what is refused, the paper's recipes, and profiles that fit their networks, teachers and printed rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch

from tenfold.shared.comparison import Reported, load_reported
from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.architectures import STUDENTS, TEACHERS, make_classifier
from tenfold.tinymim.augmentation import CropConfig
from tenfold.tinymim.config import DataConfig, FinetuneConfig, NetworkConfig, PretrainConfig
from tenfold.tinymim.mae import MAEDecoder
from tenfold.tinymim.profiles import PROFILES, SEGMENTATION_PROFILES
from tenfold.tinymim.segmentation_training import SHAPES, SegmentationRecipe
from tenfold.tinymim.suites import FEATURES, RELATIONS, Finetuning, Pretraining, Profile
from tenfold.tinymim.targets import TargetConfig
from tenfold.tinymim.teachers import plan_heads, resolve_target
from tenfold.tinymim.vit import VisionTransformer, ViTConfig

SIZES = ("tiny", "small", "base")
IMAGENET = [name for name in PROFILES if name.startswith("imagenet")]
ABLATIONS = [name for name in IMAGENET if name.startswith("imagenet-ablation-")]
SCALED_DOWN = [name for name in PROFILES if name not in IMAGENET]
PAPER = [
    *(f"imagenet-{size}" for size in SIZES),
    *(f"imagenet-strategies-{size}" for size in SIZES),
    "imagenet-chain",
    "imagenet-tiny-star",
    *ABLATIONS,
]
"""Profiles whose runs stand beside printed numbers."""


@pytest.fixture(scope="module")
def reported() -> Reported:
    return load_reported("tenfold.tinymim")


def of_profiles(names: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("profile", [PROFILES[name] for name in names], ids=names)


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 4}, "at least 8 pixels a side, not 4"),
        ({"labelled": 0.5}, "a share of the labels is for sets in memory: leave out --data.labelled"),
        ({"dataset": "cifar10", "labelled": 0.0}, "labelled is a share from above 0 to 1"),
        ({"labelled": 1.5}, "labelled is a share from above 0 to 1"),
        ({"workers": -1}, "workers is not negative"),
    ],
)
def test_impossible_data_is_refused_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TenfoldError, match=sentence):
        DataConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "are at least 1"),
        ({"batch_size": 0}, "are at least 1"),
        ({"accumulate": 0}, "its parts are at least 1"),
        ({"base_lr": 0.0}, "the rate is positive"),
        ({"base_lr": float("nan")}, "the rate is positive"),
        ({"min_lr": -1e-6}, "not negative"),
        ({"weight_decay": -0.1}, "not negative"),
        ({"warmup_epochs": -1.0}, "not negative"),
        ({"epochs": 15}, "a warm-up of 15.0 epochs needs more than 15 epochs in all"),
        ({"jitter": 1.2}, "jitter is from 0 to 1"),
        ({"drop_path": 1.0}, "stochastic depth is from 0 to below 1"),
        ({"probe_every": -1}, "looks are not negative"),
        ({"teacher_drop_path": -0.1}, "stochastic depth is from 0 to below 1"),
    ],
)
def test_an_impossible_pretraining_is_refused_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TenfoldError, match=sentence):
        PretrainConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "are at least 1"),
        ({"accumulate": 0}, "its parts and looks are at least 1"),
        ({"evaluate_every": 0}, "looks are at least 1"),
        ({"base_lr": -1.0}, "the rate is positive"),
        ({"epochs": 5}, "a warm-up of 5.0 epochs needs more than 5 epochs in all"),
        ({"layer_decay": 0.0}, "layer decay is from above 0 to 1"),
        ({"layer_decay": 1.1}, "layer decay is from above 0 to 1"),
        ({"drop_path": 1.0}, "stochastic depth"),
        ({"label_smoothing": 1.0}, "smoothing from 0 to below 1"),
        ({"mixup": -0.1}, "mixup and cutmix are not negative"),
        ({"cutmix": -0.1}, "mixup and cutmix are not negative"),
        ({"erasing": 1.1}, "erasing is from 0 to 1"),
    ],
)
def test_an_impossible_finetuning_is_refused_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TenfoldError, match=sentence):
        FinetuneConfig(**changes)


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
def test_sentences_are_one_line(kind: type) -> None:
    with pytest.raises(TenfoldError) as caught:
        kind(epochs=1)
    assert "\n" not in str(caught.value)


def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        TenfoldError, match=r"no network 'vit_huge' here; choose one of mae_vit_tiny, .*vit_base_patch16"
    ):
        NetworkConfig("vit_huge").shape(224)


def test_a_network_takes_its_size_from_the_images() -> None:
    assert NetworkConfig("vit_base_patch16").shape(384).grid == 24
    assert NetworkConfig(patch_size=4, embed_dim=32, depth=2, num_heads=4).shape(24) == ViTConfig(
        24, 4, 32, 2, 4
    )
    with pytest.raises(TenfoldError, match="patches of 16 pixels do not tile images of 100"):
        NetworkConfig("vit_base_patch16").shape(100)


def test_a_method_that_begins_with_no_network_of_its_profile_is_refused() -> None:
    profile = PROFILES["smoke"]
    methods = {"relation": Finetuning(FinetuneConfig(), "nothing")}
    with pytest.raises(
        TenfoldError, match="relation begins with nothing, which this profile does not pre-train"
    ):
        replace(profile, finetunings=methods)


# -- the paper's recipes -------------------------------------------------------------------------------


def test_the_pretraining_recipe_is_the_papers() -> None:
    recipe = PretrainConfig()
    assert (recipe.epochs, recipe.batch_size, recipe.warmup_epochs) == (300, 4096, 15)
    assert recipe.lr == pytest.approx(2.4e-3)
    assert (recipe.min_lr, recipe.weight_decay, recipe.betas) == (0.0, 0.05, (0.9, 0.95))
    assert (recipe.drop_path, recipe.teacher_drop_path, recipe.jitter) == (0.1, 0.0, 0.4)


def test_the_data_of_the_paper_are_imagenet_in_crops_of_a_fifth_or_more() -> None:
    data = DataConfig()
    assert (data.dataset, data.image_size, data.labelled) == ("imagenet", 224, 1.0)
    assert data.crop == CropConfig((0.2, 1.0), (3 / 4, 4 / 3), flip=True, interpolation="bicubic")


def test_the_finetuning_recipe_is_the_papers_of_vit_b() -> None:
    recipe = FinetuneConfig()
    assert (recipe.epochs, recipe.batch_size, recipe.warmup_epochs) == (100, 1024, 5)
    assert recipe.lr == pytest.approx(2e-3)
    assert (recipe.min_lr, recipe.weight_decay) == (1e-6, 0.05)
    assert (recipe.layer_decay, recipe.drop_path) == (0.65, 0.2)
    assert (recipe.mixup, recipe.cutmix, recipe.label_smoothing) == (0.8, 1.0, 0.1)
    assert (recipe.randaugment, recipe.erasing, recipe.crop_scale) == (
        "rand-m9-mstd0.5-inc1",
        0.25,
        (0.08, 1.0),
    )
    assert recipe.global_pool
    assert not recipe.keep_pretrain_heads


@pytest.mark.parametrize(
    ("size", "teacher", "recipe"),
    [
        ("base", "mae_vit_large", FinetuneConfig()),
        ("small", "tinymim_vit_base_patch16", FinetuneConfig(layer_decay=0.7, drop_path=0.1)),
        (
            "tiny",
            "tinymim_vit_small_patch16",
            FinetuneConfig(200, 2048, layer_decay=0.75, drop_path=0.1, mixup=0.2),
        ),
    ],
)
def test_the_papers_models_are_distilled_and_finetuned_by_their_recipes(
    size: str, teacher: str, recipe: FinetuneConfig
) -> None:
    profile = PROFILES[f"imagenet-{size}"]
    (distilled,), (method,) = profile.pretrainings.values(), profile.finetunings.values()
    assert distilled.network.name == f"tinymim_vit_{size}_patch16"
    assert (distilled.teacher, distilled.target, distilled.train) == (
        teacher,
        TargetConfig(),
        PretrainConfig(),
    )
    assert distilled.head_policy == "student"
    assert method.train == recipe
    assert method.network == NetworkConfig(f"vit_{size}_patch16")
    assert profile.data == DataConfig()


def test_the_default_target_is_qk_and_vv_after_the_softmax() -> None:
    target = TargetConfig()
    assert (target.family, target.pairs, target.softmax, target.masked) == (
        "relation",
        ("qk", "vv"),
        True,
        False,
    )
    assert target.target_block is None  # the teacher's own
    assert TEACHERS["mae_vit_large"].target_block == 18
    assert {TEACHERS[f"mae_vit_{size}"].target_block for size in SIZES} == {12}


@pytest.mark.parametrize("size", SIZES)
def test_mae_on_the_student_is_maes_own_recipe(size: str) -> None:
    mae = PROFILES[f"imagenet-strategies-{size}"].pretrainings["MAE"]
    recipe = mae.train
    assert (recipe.epochs, recipe.batch_size, recipe.warmup_epochs) == (1600, 4096, 40)
    assert recipe.lr == pytest.approx(1.5e-4 * 16)
    assert (recipe.betas, recipe.weight_decay, recipe.min_lr) == ((0.9, 0.95), 0.05, 0.0)
    assert (recipe.drop_path, recipe.jitter) == (0.0, 0.0)
    assert mae.teacher is None
    assert (mae.target.family, mae.target.mask_ratio, mae.target.reconstruction) == ("none", 0.75, True)
    decoder = mae.target.decoder
    assert (decoder.embed_dim, decoder.depth, decoder.num_heads) == (512, 8, 16)


def test_the_chain_is_read_with_16_12_and_12_heads() -> None:
    profile = PROFILES["imagenet-chain"]
    found = {name: planned_heads(profile, name) for name in profile.pretrainings}
    assert found == {"TinyMIM-B": 16, "TinyMIM-S": 12, "TinyMIM-T": 12}
    trained = replace(
        profile,
        pretrainings={
            name: replace(value, head_policy="trained") for name, value in profile.pretrainings.items()
        },
    )
    assert {planned_heads(trained, name) for name in trained.pretrainings} == {16}
    assert [profile.depth_of(name) for name in profile.pretrainings] == [0, 1, 2]


@of_profiles(ABLATIONS)
def test_ablations_are_100_epochs(profile: Profile) -> None:
    for settings in profile.pretrainings.values():
        assert settings.train.epochs == (100 if settings.teacher else 1600)


@pytest.mark.parametrize(
    "name", [name for name in ABLATIONS if not name.startswith("imagenet-ablation-sequence")]
)
def test_ablations_are_of_vit_b_by_maes_vit_l(name: str) -> None:
    for method, settings in PROFILES[name].pretrainings.items():
        if settings.teacher is not None:
            assert settings.network.name == "tinymim_vit_base_patch16", method
            assert settings.teacher == "mae_vit_large", method


def test_the_sequence_ablation_has_the_papers_teachers() -> None:
    found = {
        method: (settings.network.name, settings.teacher)
        for name in ABLATIONS
        if name.startswith("imagenet-ablation-sequence")
        for method, settings in PROFILES[name].pretrainings.items()
    }
    small, tiny = "tinymim_vit_small_patch16", "tinymim_vit_tiny_patch16"
    assert found == {
        "S from MAE-B": (small, "mae_vit_base"),
        "S from MAE-L": (small, "mae_vit_large"),
        "S from TinyMIM-B": (small, "tinymim_vit_base_patch16"),
        "T from MAE-S": (tiny, "mae_vit_small"),
        "T from MAE-B": (tiny, "mae_vit_base"),
        "T from TinyMIM-S": (tiny, small),
    }


def test_ablated_targets_are_what_their_names_say() -> None:
    def targets(name: str) -> dict[str, TargetConfig]:
        return {
            method: settings.target
            for method, settings in PROFILES[f"imagenet-ablation-{name}"].pretrainings.items()
        }

    blocks = {method: target.target_block for method, target in targets("target-block").items()}
    assert blocks == {f"block {block}": block for block in (12, 15, 18, 21, 24)}
    assert {m: (t.pairs, t.softmax) for m, t in targets("relations").items()} == {
        "QK+VV": (("qk", "vv"), True),
        "QK+VV, no softmax": (("qk", "vv"), False),
        "QQ+KK+VV": (("qq", "kk", "vv"), True),
        "QQ+KK+VV, no softmax": (("qq", "kk", "vv"), False),
    }
    assert {m: (t.family, t.feature) for m, t in targets("features").items()} == {
        "output": ("feature", "output"),
        "FFN": ("feature", "ffn"),
        "FFN with residual": ("feature", "ffn_residual"),
        "attention": ("feature", "attention"),
        "attention with residual": ("feature", "attention_residual"),
        "Q, K, V": ("feature", "qkv"),
    }
    assert {m: (t.family, t.masked, t.reconstruction) for m, t in targets("input").items()} == {
        "raw": ("relation", False, False),
        "masked": ("relation", True, False),
        "masked, reconstruction": ("relation", True, True),
    }
    assert {m: (t.family, t.reconstruction) for m, t in targets("cls").items()} == {
        "CLS": ("cls", False),
        "CLS, reconstruction": ("cls", True),
        "MAE": ("none", True),
    }
    assert set(targets("features")) == set(FEATURES)
    assert set(targets("relations")) == set(RELATIONS)


def test_ablated_stochastic_depth_is_what_its_name_says() -> None:
    for name, settings in PROFILES["imagenet-ablation-drop-path"].pretrainings.items():
        recipe = settings.train
        assert name == f"teacher {recipe.teacher_drop_path:g}, student {recipe.drop_path:g}"


def test_the_star_learns_for_1000_epochs_from_a_classifier_of_timm() -> None:
    profile = PROFILES["imagenet-tiny-star"]
    (method,) = profile.finetunings.values()
    assert method.train.epochs == 1000
    assert method.train.teacher is not None
    assert timm.is_model(method.train.teacher)
    assert method.network == NetworkConfig("tinymim_star_tiny")
    (distilled,) = profile.pretrainings.values()
    assert distilled.teacher == "tinymim_vit_small_patch16"


@pytest.mark.parametrize(("name", "layer_decay"), [("ade20k-base", 0.75), ("ade20k-tiny-star", 0.8)])
def test_the_segmentation_recipe_is_the_papers(name: str, layer_decay: float) -> None:
    config = SEGMENTATION_PROFILES[name].base
    expected = SegmentationRecipe(
        iterations=160_000,
        batch_size=16,
        lr=1e-4,
        min_lr=0.0,
        power=1.0,
        warmup_iterations=1500,
        warmup_ratio=1e-6,
        betas=(0.9, 0.999),
        weight_decay=0.05,
        layer_decay=layer_decay,
        auxiliary_weight=0.4,
        dropout=0.1,
    )
    assert config.recipe == expected
    assert (config.stride, config.augmentation.crop_size, config.num_classes) == (341, 512, 150)
    assert (config.head_channels, config.auxiliary_channels) == (768, 256)


# -- profiles ------------------------------------------------------------------------------------------


def teacher_shape(profile: Profile, settings: Pretraining) -> ViTConfig | None:
    """Of a teacher of ours, as it was trained; None of none, and of timm's."""
    name = settings.teacher
    if name is None or name.startswith("timm/"):
        return None
    if name in profile.pretrainings:
        shape = profile.pretrainings[name].network.shape(profile.data.image_size)
        return replace(shape, last_heads=planned_heads(profile, name), target_block=None)
    return replace({**TEACHERS, **STUDENTS}[name], img_size=profile.data.image_size)


def planned_heads(profile: Profile, name: str) -> int:
    """Of the last block of a pre-trained network, as training decides."""
    settings = profile.pretrainings[name]
    shape, teacher = settings.network.shape(profile.data.image_size), teacher_shape(profile, settings)
    wanted = settings.last_heads or shape.last_heads
    if teacher is None or settings.target.family != "relation":
        return shape.num_heads
    block = resolve_target(teacher.depth, settings.target.target_block or teacher.target_block)
    return plan_heads(
        settings.head_policy,
        trained_heads=teacher.heads[block - 1],
        student_last_heads=wanted,
        teacher_width=teacher.embed_dim,
        student_width=shape.embed_dim,
    )


def pretrained_shapes(profile: Profile) -> Iterator[ViTConfig]:
    """Of teachers and students."""
    for settings in profile.pretrainings.values():
        shape = settings.network.shape(profile.data.image_size)
        yield replace(shape, last_heads=settings.last_heads or shape.last_heads)
        teacher = teacher_shape(profile, settings)
        if teacher is not None:
            yield teacher


def classifier_shapes(profile: Profile) -> Iterator[ViTConfig]:
    for method in profile.finetunings.values():
        network = method.network or profile.pretrainings[str(method.pretrained)].network
        yield network.shape(profile.data.image_size)


@of_profiles(list(PROFILES))
def test_every_teacher_is_known(profile: Profile) -> None:
    for name, settings in profile.pretrainings.items():
        if settings.target.family == "none":
            assert settings.teacher is None, name
        elif str(settings.teacher).startswith("timm/"):
            assert timm.is_model(str(settings.teacher).removeprefix("timm/")), name
        else:
            assert settings.teacher in {*profile.pretrainings, *TEACHERS, *STUDENTS}, name


@of_profiles(list(PROFILES))
def test_every_method_begins_with_a_network_of_the_profile_or_from_scratch(profile: Profile) -> None:
    used: set[str] = set()
    for name, method in profile.finetunings.items():
        assert method.pretrained in profile.pretrainings or (
            method.pretrained is None and method.network is not None
        ), name
        used |= {name for name in (method.pretrained,) if name is not None}
    used |= {settings.teacher for settings in profile.pretrainings.values() if settings.teacher}
    assert set(profile.pretrainings) <= used  # none is trained for nothing


@of_profiles(list(PROFILES))
def test_heads_divide_and_target_blocks_exist(profile: Profile) -> None:
    for name, settings in profile.pretrainings.items():
        width = settings.network.shape(profile.data.image_size).embed_dim
        assert width % planned_heads(profile, name) == 0
        teacher = teacher_shape(profile, settings)
        if teacher is not None:
            assert teacher.grid == settings.network.shape(profile.data.image_size).grid
            if settings.target.family == "relation":  # others leave the teacher's heads as they are
                assert teacher.embed_dim % planned_heads(profile, name) == 0


def test_every_teacher_and_student_of_every_profile_can_be_built() -> None:
    shapes = {shape for profile in PROFILES.values() for shape in pretrained_shapes(profile)}
    assert len(shapes) > 12
    for shape in shapes:
        with torch.device("meta"):
            network = VisionTransformer(shape)
        assert network.pos_embed.shape == (1, 1 + shape.grid**2, shape.embed_dim)
        assert [block.attn.heads for block in network.blocks] == list(shape.heads)


def test_every_classifier_of_every_profile_can_be_built() -> None:
    shapes = {
        replace(shape, last_heads=None, target_block=None)
        for p in PROFILES.values()
        for shape in classifier_shapes(p)
    }
    assert len(shapes) > 6
    for shape in shapes:
        with torch.device("meta"):
            network = make_classifier(shape, 10, drop_path_rate=0.1)
        assert network.head.out_features == 10
        assert (network.head_dist is not None) == shape.distillation_token


def test_every_decoder_of_every_profile_can_be_built() -> None:
    pairs = {
        (settings.network.shape(profile.data.image_size), settings.target.decoder)
        for profile in PROFILES.values()
        for settings in profile.pretrainings.values()
        if settings.target.reconstruction
    }
    assert len(pairs) > 3
    for shape, decoder in pairs:
        with torch.device("meta"):
            assert sum(value.numel() for value in MAEDecoder(shape, decoder).parameters()) > 0


@of_profiles(list(PROFILES))
def test_a_profile_reduced_to_one_method_keeps_what_it_needs(profile: Profile) -> None:
    for name, method in profile.finetunings.items():
        reduced = profile.needed((name,))
        assert list(reduced.finetunings) == [name]
        needed, waiting = set(), method.pretrained
        while waiting in profile.pretrainings:
            needed.add(waiting)
            waiting = profile.pretrainings[str(waiting)].teacher
        assert set(reduced.pretrainings) == needed


def test_a_profile_divides_all_its_batches() -> None:
    found = PROFILES["imagenet-strategies-base"].accumulating(4)
    recipes = [settings.train for settings in found.pretrainings.values()]
    assert {recipe.accumulate for recipe in recipes} == {4}
    assert {method.train.accumulate for method in found.finetunings.values()} == {4}
    assert {recipe.batch_size for recipe in recipes} == {4096}


@pytest.mark.parametrize("name", [*PROFILES, *SEGMENTATION_PROFILES])
def test_a_profile_is_described_in_one_line(name: str) -> None:
    profile = {**PROFILES, **SEGMENTATION_PROFILES}[name]
    assert 20 < len(profile.description) < 120
    assert "\n" not in profile.description
    assert len(set(profile.seeds)) == len(profile.seeds) > 0


# -- printed numbers -----------------------------------------------------------------------------------


def test_printed_rows_are_unique(reported: Reported) -> None:
    counts = Counter((row.dataset, row.setting, row.method, row.metric) for row in reported.rows)
    assert [key for key, count in counts.items() if count > 1] == []


def test_rows_have_a_number_or_say_why_not(reported: Reported) -> None:
    for row in reported.rows:
        assert (row.value is None) == bool(row.unavailable), row
        assert row.source


def test_claims_compare_methods_of_their_profile(reported: Reported) -> None:
    assert {claim.profile for claim in reported.claims} <= {*PROFILES, *SEGMENTATION_PROFILES}
    assert "quick" in {claim.profile for claim in reported.claims}
    assert len({claim.id for claim in reported.claims}) == len(reported.claims)
    for claim in reported.claims:
        profile = PROFILES[claim.profile]
        assert {claim.better, claim.worse} <= set(profile.finetunings)
        assert claim.better != claim.worse
        assert claim.metric in ("top1", "best_top1")
        assert claim.dataset in (None, profile.data.dataset)
        assert claim.setting in (None, profile.setting)


def keys(reported: Reported) -> set[tuple[str, str, str, str]]:
    return {(row.dataset, row.setting, row.method, row.metric) for row in reported.rows}


@of_profiles(PAPER)
def test_every_run_of_the_paper_stands_beside_a_printed_number(profile: Profile, reported: Reported) -> None:
    for method in profile.finetunings:
        assert ("imagenet", profile.setting, method, "best_top1") in keys(reported), method


@pytest.mark.parametrize("name", SEGMENTATION_PROFILES)
def test_every_segmenter_of_the_paper_stands_beside_a_printed_number(name: str, reported: Reported) -> None:
    profile = SEGMENTATION_PROFILES[name]
    assert ("ade20k", profile.setting, profile.method, "miou") in keys(reported)
    assert profile.base.name in SHAPES


@of_profiles(SCALED_DOWN)
def test_smaller_runs_stand_beside_no_printed_number(profile: Profile, reported: Reported) -> None:
    printed = {(dataset, setting) for dataset, setting, *_ in keys(reported)}
    assert (profile.data.dataset, profile.setting) not in printed


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("strategies, ViT-T", (72.2, 71.6, 70.6, 73.4, 75.8)),
        ("strategies, ViT-S", (79.9, 80.6, 79.6, 80.8, 83.0)),
        ("strategies, ViT-B", (81.2, 83.6, 82.6, 83.8, 85.0)),
    ],
)
def test_strategies_are_printed_as_in_table_8(
    setting: str, values: tuple[float, ...], reported: Reported
) -> None:
    found = {
        row.method: row.value
        for row in reported.rows
        if (row.dataset, row.setting, row.metric) == ("imagenet", setting, "best_top1")
    }
    assert found == dict(zip(("supervised", "MAE", "CLS", "feature", "relation"), values, strict=True))


@pytest.mark.parametrize(
    ("setting", "methods", "values"),
    [
        (
            "target block",
            [f"block {block}" for block in (12, 15, 18, 21, 24)],
            (83.6, 84.1, 84.6, 84.8, 84.4),
        ),
        ("input", ["raw", "masked", "masked, reconstruction"], (84.6, 83.9, 84.0)),
        ("CLS token", ["CLS", "CLS, reconstruction", "MAE"], (80.6, 82.1, 83.6)),
        ("features", list(FEATURES), (83.7, 84.2, 81.8, 84.1, 81.3, 84.3)),
        ("relations", list(RELATIONS), (84.6, 84.4, 84.5, 84.4)),
        (
            "drop path",
            [
                f"teacher {pair}"
                for pair in ("0, student 0", "0, student 0.1", "0, student 0.2", "0, student 0.3")
            ]
            + ["teacher 0.1, student 0.1"],
            (84.3, 84.6, 84.3, 84.1, 83.9),
        ),
    ],
)
def test_ablations_are_printed_as_in_their_tables(
    setting: str, methods: list[str], values: tuple[float, ...], reported: Reported
) -> None:
    found = {
        row.method: row.value
        for row in reported.rows
        if (row.dataset, row.setting, row.metric) == ("imagenet", setting, "best_top1")
    }
    assert found == dict(zip(methods, values, strict=True))
