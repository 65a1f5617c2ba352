"""Every suite by name: smoke, quick, ablation, h100, and those of the paper."""

from __future__ import annotations

from dataclasses import replace

from tenfold.reft.composed_digits import ComposeConfig
from tenfold.reft.config import (
    BackboneName,
    DataConfig,
    DistillConfig,
    LossConfig,
    NetworkConfig,
    ReferenceConfig,
    TrainConfig,
)
from tenfold.reft.suites import OFF, BaseStage, Method, Profile
from tenfold.shared.logging import TenfoldError

# -- digits ----------------------------------------------------------------------------------------------

DIGITS = DataConfig(
    dataset="digits",
    image_size=64,
    jitter=(0.9, 1.1),
    few_shot_jitter=(0.85, 1.18),
    flip=False,
    test_short_side=0,
    test_long_side=0,
    support_size=48,
    support_context=4,
    workers=0,
)
SMALL = NetworkConfig(
    backbone="small",
    hidden_dim=64,
    num_heads=4,
    encoder_layers=1,
    encoder_ffn=128,
    decoder_layers=3,
    decoder_ffn=128,
    num_queries=8,
)
ON_DIGITS = TrainConfig(
    steps=1500,
    batch_size=8,
    lr=1.5e-3,
    backbone_lr_factor=1.0,
    clip=1.0,
    schedule="one-cycle",
    milestones=(),
    warmup=0,
    batch_norm="trained",
)
REFERENCE_STAGE = replace(ON_DIGITS, steps=200, lr=5e-4, batch_norm="frozen")
FEW_SHOT = replace(REFERENCE_STAGE, lr=2e-4, classifier_lr_factor=30.0)
SHOTS = 10
ABLATED_SHOTS = 5
FT_FULL = "Mask2Former + ft-full"
HEAD_ALONE = "Mask2Former, cosine classifier alone trained"


def digit_stages(
    references: dict[str, ReferenceConfig], base: TrainConfig, after: TrainConfig
) -> dict[str, BaseStage]:
    """One base network, and what becomes of it with each choice of references after the same number of updates."""
    stages = {"base": BaseStage(base, OFF)}
    return stages | {name: BaseStage(after, chosen, "base") for name, chosen in references.items()}


QUICK = Profile(
    "10 shots of 3 new digits beside 7 known ones (gFSIS), with and without references, three seeds; minutes on a CPU",
    DIGITS,
    SMALL,
    LossConfig(num_points=256),
    digit_stages({"RefT": ReferenceConfig(), "Mask2Former": OFF}, ON_DIGITS, REFERENCE_STAGE),
    (
        Method("RefT", "RefT", "gfsis", {SHOTS: FEW_SHOT}),
        Method(FT_FULL, "Mask2Former", "gfsis", {SHOTS: FEW_SHOT}),
    ),
    compose=ComposeConfig(test_images=240, shots=(SHOTS,), seeds=(0, 1, 2)),
)


def smoke() -> Profile:
    """Every kind of stage and every setting in a few updates."""
    base, after, few = (replace(one, steps=2, log_every=1) for one in (ON_DIGITS, REFERENCE_STAGE, FEW_SHOT))
    network = replace(SMALL, hidden_dim=32, num_heads=2, decoder_layers=1)
    stages = digit_stages({"RefT": ReferenceConfig(), "Mask2Former": OFF}, base, after)
    stages["RefT, cosine"] = BaseStage(after, ReferenceConfig(), "base", "cosine")
    return Profile(
        "all stages and settings in two updates each; seconds, and nothing is learned",
        DIGITS,
        network,
        LossConfig(num_points=32),
        stages,
        (
            Method("RefT", "RefT", "fsis", {1: few}),
            Method("RefT", "RefT", "gfsis", {1: few}),
            Method(FT_FULL, "Mask2Former", "gfsis", {1: few}),
            Method(
                "RefT w/ Cos",
                "RefT, cosine",
                "ifsis",
                {1: replace(few, freeze="incremental")},
                DistillConfig(),
            ),
        ),
        seeds=(0,),
        compose=ComposeConfig(train_images=16, test_images=16, shots=(1,), seeds=(0,)),
        base_shots=1,
        checkpoint_seconds=0.0,
    )


def ablation() -> Profile:
    """The readings of the paper that had to be decided, one changed at a time."""
    few = replace(FEW_SHOT, steps=100)
    readings = {
        "RefT": ReferenceConfig(),
        "no references": OFF,
        "feature reference alone": ReferenceConfig(query="off"),
        "query reference alone": ReferenceConfig(feature="off"),
        "add instead of reweight": ReferenceConfig(feature="add"),
        "linked after all layers": ReferenceConfig(query="all"),
        "top 1": ReferenceConfig(top_k=1),
        "top 2": ReferenceConfig(top_k=2),
        "top 8": ReferenceConfig(top_k=8),
        "selected by class": ReferenceConfig(selection="class"),
        "selected by mask and class": ReferenceConfig(selection="product"),
        "class embedding": ReferenceConfig(class_embedding=True),
        "supports detached": ReferenceConfig(detach_supports=True),
    }
    stages = digit_stages(readings, ON_DIGITS, REFERENCE_STAGE)
    methods = [Method(name, name, "gfsis", {ABLATED_SHOTS: few}) for name in readings]
    methods.append(
        Method("backbone frozen", "RefT", "gfsis", {ABLATED_SHOTS: replace(few, freeze="backbone")})
    )
    cosine = {"cosine": ReferenceConfig(), "cosine, no references": OFF}
    stages |= {
        name: BaseStage(REFERENCE_STAGE, references, "base", "cosine") for name, references in cosine.items()
    }
    methods.append(Method("cosine classifier", "cosine", "gfsis", {ABLATED_SHOTS: few}))
    methods.append(
        Method(
            HEAD_ALONE,
            "cosine, no references",
            "gfsis",
            {ABLATED_SHOTS: replace(few, freeze="classifier")},
        )
    )
    methods += incremental_methods("cosine", {ABLATED_SHOTS: few})
    return replace(
        QUICK,
        description="every decided reading of the paper, changed one at a time, with 5 shots; half an hour on a CPU",
        stages=stages,
        methods=tuple(methods),
        compose=ComposeConfig(test_images=240, shots=(ABLATED_SHOTS,), seeds=(0, 1, 2)),
    )


def incremental_methods(base: str, lengths: dict[int, TrainConfig], suffix: str = "") -> list[Method]:
    """How iFSIS is learned: with distillation, with its parts, without it, and with no weight frozen."""
    frozen = {shots: replace(recipe, freeze="incremental") for shots, recipe in lengths.items()}
    free = {shots: replace(recipe, freeze="none") for shots, recipe in lengths.items()}
    return [
        Method(f"RefT w/ Cos{suffix}", base, "ifsis", frozen, DistillConfig()),
        Method(
            f"RefT w/ Cos, classes distilled{suffix}",
            base,
            "ifsis",
            frozen,
            DistillConfig(feature_weight=0.0),
        ),
        Method(f"RefT w/ Cos, no distillation{suffix}", base, "ifsis", frozen),
        Method(f"RefT w/ Cos, nothing frozen{suffix}", base, "ifsis", free),
    ]


def h100() -> Profile:
    """The same task at a larger size, in all settings; minutes on one GPU."""
    network = replace(
        SMALL,
        backbone="resnet-18",
        hidden_dim=128,
        num_heads=8,
        encoder_layers=6,
        encoder_ffn=512,
        decoder_layers=6,
        decoder_ffn=512,
        num_queries=50,
    )
    base = replace(ON_DIGITS, steps=8000, batch_size=64, lr=1e-3)
    after = replace(base, steps=800, lr=3e-4, batch_norm="frozen")
    few = replace(after, steps=200, batch_size=16, lr=1e-4, classifier_lr_factor=30.0)
    lengths = dict.fromkeys((1, 3, 5, 10, 30), few)
    stages = digit_stages({"RefT": ReferenceConfig(), "Mask2Former": OFF}, base, after)
    stages |= {
        "RefT, cosine": BaseStage(after, ReferenceConfig(), "base", "cosine"),
        "Mask2Former, cosine": BaseStage(after, OFF, "base", "cosine"),
    }
    methods: list[Method] = []
    for setting in ("fsis", "gfsis"):
        methods.append(Method("RefT", "RefT", setting, lengths))
        methods.append(Method(FT_FULL, "Mask2Former", setting, lengths))
    heads = {shots: replace(recipe, freeze="classifier") for shots, recipe in lengths.items()}
    methods.append(Method(HEAD_ALONE, "Mask2Former, cosine", "gfsis", heads))
    methods += incremental_methods("RefT, cosine", lengths)
    return Profile(
        "digits at 256 pixels, up to ten in an image, FSIS, gFSIS and iFSIS, five seeds; one GPU",
        replace(
            DIGITS,
            image_size=256,
            jitter=(0.8, 1.25),
            few_shot_jitter=(0.8, 1.25),
            support_size=96,
            support_context=8,
            workers=8,
        ),
        network,
        LossConfig(num_points=4096),
        stages,
        tuple(methods),
        seeds=(0, 1, 2, 3, 4),
        compose=ComposeConfig(
            image_size=256,
            digit_size=(28, 64),
            max_digits=10,
            train_images=4000,
            test_images=400,
            shots=(1, 3, 5, 10, 30),
        ),
        checkpoint_seconds=60.0,
    )


# -- COCO and LVIS ---------------------------------------------------------------------------------------

LENGTHS = {1: 500, 2: 800, 3: 1000, 5: 1500, 10: 2500, 30: 5000}
"""Updates of few-shot fine-tuning, by the number of shots; iFSIS takes half of them."""
BACKBONES: dict[BackboneName, str] = {
    "resnet-50": "R-50",
    "resnet-101": "R-101",
    "swin-t": "Swin-T",
    "swin-s": "Swin-S",
    "swin-b": "Swin-B",
}
SPLIT_SEEDS = tuple(range(10))


def few_shot_recipe(shots: int, share: float = 1.0) -> TrainConfig:
    """Fine-tuning on COCO: AdamW at 1e-4, times 0.1 after four fifths; the backbone stays.

    Raises:
        TenfoldError: the paper's splits have no such number of shots.
    """
    if shots not in LENGTHS:
        raise TenfoldError(
            f"there is no recipe for {shots} shots; choose one of {', '.join(map(str, LENGTHS))}"
        )
    steps = round(LENGTHS[shots] * share)
    return TrainConfig(
        steps=steps, milestones=(round(0.8 * steps),), warmup=0, freeze="backbone", log_every=20
    )


def coco(backbone: BackboneName, base: TrainConfig | None = None, note: str = "") -> Profile:
    """The tables of the paper with one backbone: FSIS (5, 10, 30 shots), gFSIS and iFSIS (1, 5, 10 shots).

    The paper does not print the backbone of its FSIS and iFSIS tables; R-50 joins them, others have names of their own.

    Args:
        backbone: by name.
        base: another recipe of base training.
        note: what names its runs.
    """
    name = BACKBONES[backbone] + note
    suffix = "" if name == "R-50" else f", {name}"
    base = base or TrainConfig()
    stages = {
        "RefT": BaseStage(base, pretrained=True),
        "Mask2Former": BaseStage(base, OFF, pretrained=True),
        "RefT, cosine": BaseStage(base, classifier="cosine", pretrained=True),
        "Mask2Former, cosine": BaseStage(base, OFF, classifier="cosine", pretrained=True),
    }
    fsis = {shots: few_shot_recipe(shots) for shots in (5, 10, 30)}
    gfsis = {shots: few_shot_recipe(shots) for shots in (1, 5, 10)}
    ifsis = {shots: few_shot_recipe(shots, 0.5) for shots in (1, 5, 10)}
    heads = {shots: replace(recipe, freeze="classifier") for shots, recipe in gfsis.items()}
    methods = (
        Method(f"RefT{suffix}", "RefT", "fsis", fsis),
        Method(f"{FT_FULL}{suffix}", "Mask2Former", "fsis", fsis),
        Method(f"RefT, {name}", "RefT", "gfsis", gfsis),
        Method(f"{FT_FULL}, {name}", "Mask2Former", "gfsis", gfsis),
        Method(f"{HEAD_ALONE}, {name}", "Mask2Former, cosine", "gfsis", heads),
        *incremental_methods("RefT, cosine", ifsis, suffix),
    )
    return Profile(
        f"COCO's 60 base and 20 novel classes, {name}, all settings, seeds 0 to 9",
        DataConfig(),
        NetworkConfig(backbone=backbone),
        LossConfig(),
        stages,
        methods,
        seeds=SPLIT_SEEDS,
        checkpoint_seconds=600.0,
    )


def lvis() -> Profile:
    """LVIS v1, rare classes novel; the paper's protocol is not known, so that nothing of it joins a table."""
    base = coco("resnet-50")
    fsis = {10: few_shot_recipe(10)}
    return replace(
        base,
        description="LVIS v1, rare classes novel with up to 10 shots, R-50; the paper's protocol is not known",
        data=replace(base.data, dataset="lvis"),
        stages={name: base.stages[name] for name in ("RefT", "Mask2Former")},
        methods=(
            Method("RefT", "RefT", "gfsis", fsis),
            Method(FT_FULL, "Mask2Former", "gfsis", fsis),
        ),
        seeds=(0,),
    )


TWELVE_EPOCHS = TrainConfig(steps=88_500, milestones=(78_667, 85_222))
PROFILES: dict[str, Profile] = {
    "smoke": smoke(),
    "quick": QUICK,
    "ablation": ablation(),
    "h100": h100(),
    **{f"coco-{backbone.replace('resnet-', 'r')}": coco(backbone) for backbone in BACKBONES},
    "coco-r50-12ep": coco("resnet-50", TWELVE_EPOCHS, " 12 epochs"),
    "lvis-r50": lvis(),
}
