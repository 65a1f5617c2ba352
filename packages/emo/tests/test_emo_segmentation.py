"""Heads, the recipe for ADE20K, augmentation, the loop, and mIoU; on networks and images of a few pixels."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors

from tenfold.emo.ade20k import (
    ADE20K,
    BalancedCrop,
    PhotometricDistortion,
    TrainingSamples,
    evaluate,
    fitted_size,
    saturated,
    segmentation_metrics,
    train,
    training_loader,
    training_transform,
    validation_transform,
)
from tenfold.emo.model import EMO, Architecture, build_model
from tenfold.emo.segmentation import (
    RECIPES,
    HeadName,
    Segmentation,
    SegmentationRecipe,
    Segmenter,
    build_segmenter,
    decay_all_but_norms,
    make_optimizer,
    polynomial_rate,
    segmentation_loss,
)
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run, RunKey
from tenfold.shared.seeding import seed_everything

HEADS: tuple[HeadName, ...] = ("deeplabv3", "pspnet", "semantic_fpn")
TINY = Architecture(
    (1, 1, 2, 2), (8, 8, 16, 16), head_widths=(8, 8, 8, 8), drop_path=0.0, stem=8, window_sizes=(2, 2, 2, 2)
)
COLOURS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]], dtype=np.uint8)
"""Of classes 0 to 2."""


def tiny_segmenter(head: HeadName = "deeplabv3", num_classes: int = 3, channels: int = 16) -> Segmenter:
    return Segmenter(EMO(TINY, num_classes=5), head, num_classes, channels)


def blocks(seed: int, size: int = 64, block: int = 16) -> np.ndarray:
    """Classes 0 to 2 in square blocks; all of them occur."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(np.arange((size // block) ** 2) % 3).reshape(size // block, -1)
    return cells.repeat(block, 0).repeat(block, 1).astype(np.uint8)


def coloured(classes: np.ndarray) -> tuple[Tensor, Tensor]:
    """An image that shows its labels, and the labels."""
    image = torch.from_numpy(COLOURS[classes]).permute(2, 0, 1)
    return tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(classes))


def write_pair(root: Path, split: str, name: str, classes: np.ndarray, labels: np.ndarray) -> None:
    """An image that shows classes, and an annotation with labels as files have them."""
    for kind in ("images", "annotations"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    Image.fromarray(COLOURS[classes]).save(root / "images" / split / f"{name}.png")
    Image.fromarray(labels).save(root / "annotations" / split / f"{name}.png")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two images in ADE20K's layout, for training and for validation."""
    for split in ("training", "validation"):
        for number in range(2):
            classes = blocks(number)
            write_pair(tmp_path / "scenes", split, f"scene_{number}", classes, classes + 1)
    return tmp_path / "scenes"


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    def make(name: str, recipe: SegmentationRecipe, checkpoint_seconds: float = 3600) -> Run:
        key = RunKey("emo", "test", name, 0, "scenes", "64", "deeplabv3")
        return Run(tmp_path / "runs", key, recipe, "iteration", checkpoint_seconds)

    return make


def both_sets(root: Path) -> tuple[ADE20K, ADE20K]:
    """Crops of 64 pixels to train on, whole images to judge."""
    return (
        ADE20K(root, "training", training_transform(64, 256, 64), num_classes=3),
        ADE20K(root, "validation", validation_transform(256, 64), num_classes=3),
    )


# -- networks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "counts"),
    [
        ("deeplabv3", (5_653_188, 6_967_156, 10_355_828)),
        ("pspnet", (4_374_724, 5_557_620, 8_585_844)),
        ("semantic_fpn", (5_280_302, 6_282_974, 8_969_182)),
    ],
)
def test_whole_networks_have_the_papers_parameters(head: HeadName, counts: tuple[int, ...]) -> None:
    found = [build_segmenter(head, name) for name in ("emo_1m", "emo_2m", "emo_5m")]
    assert tuple(sum(value.numel() for value in network.parameters()) for network in found) == counts


@pytest.mark.parametrize(
    ("head", "name", "size"),
    [
        ("deeplabv3", "emo_1m", 7),
        ("deeplabv3", "emo_5m", 16),
        ("pspnet", "emo_5m", 16),
        ("semantic_fpn", "emo_2m", 7),
        ("semantic_fpn", "emo_5m", 10),
    ],
)
def test_attention_has_the_windows_of_the_paper(head: HeadName, name: str, size: int) -> None:
    network = build_segmenter(head, name)
    found = {module.window_size for module in network.modules() if hasattr(module, "window_size")}
    assert found == {size}


@pytest.mark.parametrize("head", HEADS)
def test_logits_have_the_size_of_images_of_any_size(head: HeadName) -> None:
    network = tiny_segmenter(head)
    images = torch.randn(2, 3, 70, 97)
    trained = network(images)
    assert trained.logits.shape == (2, 3, 70, 97)
    assert (trained.auxiliary is None) == (head == "semantic_fpn")
    assert trained.auxiliary is None or trained.auxiliary.shape == (2, 3, 70, 97)
    judged = network.eval()(images)
    assert judged.logits.shape == (2, 3, 70, 97)
    assert judged.auxiliary is None


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_learns(head: HeadName) -> None:
    torch.manual_seed(0)
    network = tiny_segmenter(head)
    loss = segmentation_loss(network(torch.randn(2, 3, 64, 64)), torch.randint(3, (2, 64, 64)))
    loss.backward()
    assert [name for name, value in network.named_parameters() if value.grad is None] == []


def test_dilated_branches_see_as_far_as_their_dilation() -> None:
    branches = tiny_segmenter().head.branches
    impulse = torch.zeros(1, 16, 101, 101)
    impulse[:, :, 50, 50] = 1
    reached = [
        branch[0](impulse)[0].abs().amax(dim=(0, 1)).nonzero()[:, 0].tolist() for branch in branches[1:]
    ]
    assert reached == [[50], [38, 50, 62], [26, 50, 74], [14, 50, 86]]


def test_pooled_features_are_means_of_a_grid() -> None:
    pooled = tiny_segmenter("pspnet").eval().head.pyramid[1]
    x = torch.randn(1, 16, 4, 4)
    means = torch.stack(
        [x[:, :, i : i + 2, j : j + 2].mean(dim=(2, 3)) for i in (0, 2) for j in (0, 2)], dim=2
    )
    expected = F.interpolate(
        pooled.project(means.reshape(1, 16, 2, 2)), (4, 4), mode="bilinear", align_corners=False
    )
    assert torch.allclose(pooled(x), expected, atol=1e-6)


def test_one_image_alone_cannot_train_pooled_features() -> None:
    with pytest.raises(TenfoldError, match="at least 2 images"):
        tiny_segmenter()(torch.randn(1, 3, 64, 64))


def test_an_unknown_head_is_named() -> None:
    with pytest.raises(TenfoldError, match="no head upernet; choose one of deeplabv3"):
        build_segmenter("upernet", "emo_1m")  # type: ignore[arg-type]


def test_a_backbone_takes_the_weights_of_a_classifier(tmp_path: Path) -> None:
    classifier = build_model("emo_1m")
    torch.save(classifier.state_dict(), tmp_path / "net.pth")
    network = build_segmenter("pspnet", "emo_1m", weights=tmp_path / "net.pth")
    expected = classifier.state_dict()
    found = network.backbone.state_dict()
    assert expected.keys() - found.keys() == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


# -- recipe --------------------------------------------------------------------------------------------


def test_the_rate_falls_polynomially_from_the_first_update_to_zero() -> None:
    rates = [polynomial_rate(iteration, 1.2e-4, 80_000) for iteration in (0, 40_000, 79_999, 80_000)]
    assert rates == pytest.approx([1.2e-4, 6.43066e-5, 4.6387e-9, 0.0], rel=1e-4)


def test_recipes_are_those_of_the_paper() -> None:
    for head in ("deeplabv3", "pspnet"):
        recipe = RECIPES[head]
        assert (recipe.iterations, recipe.batch_size, recipe.lr, recipe.weight_decay) == (
            80_000,
            32,
            1.2e-4,
            0.01,
        )
    assert (RECIPES["semantic_fpn"].iterations, RECIPES["semantic_fpn"].weight_decay) == (160_000, 0.05)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"lr": 0.0}, {"weight_decay": -1.0}])
def test_a_recipe_without_sense_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(TenfoldError, match=r"at least|positive"):
        SegmentationRecipe(**settings)


def test_norms_are_not_decayed_and_biases_are() -> None:
    network = tiny_segmenter("semantic_fpn")
    without, decayed = decay_all_but_norms(network, 0.05)
    assert (without["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    assert {"backbone.stem.norm.weight", "backbone.stages.2.0.norm.bias", "head.scales.0.0.1.bias"} <= set(
        without["names"]
    )
    assert {"backbone.stem.conv.bias", "head.pyramid.laterals.0.bias", "head.classifier.1.bias"} <= set(
        decayed["names"]
    )
    assert all(value.ndim == 1 for value in without["params"])
    assert sorted(without["names"] + decayed["names"]) == sorted(
        name for name, _ in network.named_parameters()
    )


def test_the_optimiser_decays_by_group() -> None:
    optimizer = make_optimizer(tiny_segmenter(), SegmentationRecipe())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.01]


def test_ignored_pixels_give_no_gradient_and_others_do() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    labels = torch.randint(3, (2, 4, 4))
    labels[:, :2] = 255
    segmentation_loss(Segmentation(logits, None), labels).backward()
    assert logits.grad is not None
    assert logits.grad[:, :, :2].abs().max() == 0
    assert logits.grad[:, :, 2:].abs().amin(dim=1).min() > 0


def test_the_loss_is_a_mean_over_all_pixels() -> None:
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    expected = F.cross_entropy(logits, labels)
    assert torch.allclose(segmentation_loss(Segmentation(logits, None), labels), expected)
    labels[:, :1] = 255
    quarter_ignored = F.cross_entropy(logits[:, :, 1:], labels[:, 1:]) * 3 / 4
    assert torch.allclose(segmentation_loss(Segmentation(logits, None), labels), quarter_ignored)
    assert segmentation_loss(Segmentation(logits, None), torch.full_like(labels, 255)) == 0


def test_the_auxiliary_head_counts_two_fifths() -> None:
    first, second = torch.randn(2, 1, 3, 4, 4).unbind()
    labels = torch.randint(3, (1, 4, 4))
    expected = F.cross_entropy(first, labels) + 0.4 * F.cross_entropy(second, labels)
    assert torch.allclose(segmentation_loss(Segmentation(first, second), labels), expected)


# -- metrics -------------------------------------------------------------------------------------------


def test_metrics_of_a_matrix_worked_out_by_hand() -> None:
    found = segmentation_metrics(torch.tensor([[3, 1, 0], [0, 2, 2], [0, 0, 4]]))
    assert found["miou"] == pytest.approx(100 * (3 / 4 + 2 / 5 + 4 / 6) / 3)
    assert found["macc"] == pytest.approx(100 * (3 / 4 + 2 / 4 + 4 / 4) / 3)
    assert found["aacc"] == pytest.approx(100 * 9 / 12)


def test_a_class_that_is_nowhere_is_left_out_of_means() -> None:
    found = segmentation_metrics(torch.tensor([[2, 1, 0], [0, 0, 0], [0, 0, 0]]))
    assert found["miou"] == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert found["macc"] == pytest.approx(100 * 2 / 3)


class ColourReader(nn.Module):
    """Says of every pixel which colour is strongest."""

    num_classes = 3

    def forward(self, images: Tensor) -> Segmentation:
        return Segmentation(images, None)


def test_a_set_is_judged_at_its_own_size_without_ignored_pixels(tmp_path: Path, cpu: Fabric) -> None:
    classes = np.zeros((40, 60), dtype=np.uint8)  # what the network will say
    classes[:, 20:] = 1
    classes[:, 40:] = 2
    first = classes + 1
    first[:10, :20] = 0  # 200 pixels of class 0 that nobody labelled
    first[10:20, 40:] = 255  # and as many of class 2
    second = classes + 1
    second[:20, :20] = 2  # 400 that are labelled 1 and taken for 0
    write_pair(tmp_path, "validation", "a", classes, first)
    write_pair(tmp_path, "validation", "b", classes, second)
    data = ADE20K(tmp_path, "validation", validation_transform(64, 32), num_classes=3)
    assert data[0][0].shape == (3, 32, 48) and data[0][1].shape == (40, 60)
    found = evaluate(ColourReader(), data, cpu, workers=0)  # type: ignore[arg-type]
    hits = (600 + 400, 800 + 800, 600 + 800)
    assert found["miou"] == pytest.approx(100 * (hits[0] / 1400 + hits[1] / 2000 + 1) / 3, abs=1.5)
    assert found["macc"] == pytest.approx(100 * (1 + hits[1] / 2000 + 1) / 3, abs=1.5)
    assert found["aacc"] == pytest.approx(100 * sum(hits) / (sum(hits) + 400), abs=1.5)
    exact = ADE20K(tmp_path, "validation", validation_transform(60, 40), num_classes=3)
    found = evaluate(ColourReader(), exact, cpu, workers=0)  # type: ignore[arg-type]
    assert found["miou"] == pytest.approx(100 * (hits[0] / 1400 + hits[1] / 2000 + 1) / 3)
    assert found["aacc"] == pytest.approx(100 * sum(hits) / (sum(hits) + 400))


# -- augmentation --------------------------------------------------------------------------------------


def test_images_are_fitted_into_both_limits() -> None:
    assert fitted_size((683, 512), 2048, 512) == (683, 512)
    assert fitted_size((300, 400), 2048, 512) == (512, 683)
    assert fitted_size((256, 2000), 2048, 512) == (262, 2048)


def test_labels_follow_their_pixels_through_the_augmentation() -> None:
    transform = training_transform(64, 320, 80)
    torch.manual_seed(0)
    shares, sizes = [], []
    for seed in range(20):
        image, labels = transform(*coloured(blocks(seed, 80, 20)))
        assert image.shape == (3, 64, 64) and image.dtype == torch.float32
        assert labels.shape == (64, 64) and labels.dtype == torch.int64
        seen = labels != 255
        assert image[:, ~seen].count_nonzero() == 0  # padded with the mean colour
        shares.append((image.argmax(dim=0)[seen] == labels[seen]).double().mean().item())
        sizes.append(int(seen.sum()))
    # Distortion may turn a colour a little, and enlarging mixes neighbours: unaligned labels would agree in a third.
    assert min(shares) > 0.8
    assert min(sizes) < 64 * 64 == max(sizes)


def test_a_crop_shows_no_class_too_much() -> None:
    classes = np.zeros((64, 64), dtype=np.uint8)
    classes[:, 32:] = 1
    torch.manual_seed(0)

    def largest_share(crop: BalancedCrop) -> float:
        _, labels = crop(*coloured(classes))
        assert labels.shape == (32, 32)
        return torch.bincount(labels.flatten()).max().item() / 32**2

    assert max(largest_share(BalancedCrop(32)) for _ in range(40)) < 0.75
    assert max(largest_share(BalancedCrop(32, max_share=1.0)) for _ in range(40)) > 0.75


def test_ignored_pixels_do_not_balance_a_crop() -> None:
    classes = torch.full((64, 64), 255, dtype=torch.uint8)
    classes[:, 16:32] = 0
    classes[:, 40:48] = 1
    image, labels = tv_tensors.Image(torch.zeros(3, 64, 64)), tv_tensors.Mask(classes)
    torch.manual_seed(0)
    for _ in range(20):
        counts = torch.bincount(BalancedCrop(32)(image, labels)[1].flatten(), minlength=256)[:2]
        assert counts.min() > 0 and counts.max() < 0.75 * counts.sum()


def test_an_image_of_one_class_is_cropped_all_the_same() -> None:
    image, labels = BalancedCrop(32)(*coloured(np.ones((40, 24), dtype=np.uint8)))
    assert image.shape == (3, 32, 24) and labels.shape == (32, 24)


def test_distortion_changes_colours_alone() -> None:
    torch.manual_seed(0)
    image = tv_tensors.Image(torch.rand(3, 8, 8))
    labels = tv_tensors.Mask(torch.randint(3, (8, 8)))
    before = labels.clone()
    found = [PhotometricDistortion()(image, labels) for _ in range(60)]
    assert all(torch.equal(mask, before) for _, mask in found)
    assert all(distorted.min() >= 0 and distorted.max() <= 1 for distorted, _ in found)
    unchanged = sum(torch.equal(distorted, image) for distorted, _ in found)
    assert 0 < unchanged < 15  # one in 16


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.5])
def test_saturation_is_that_of_hsv(factor: float) -> None:
    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    image[:, 0, 0] = torch.tensor([0.4, 0.4, 0.4])
    image[:, 0, 1] = 0
    found = saturated(image, factor).flatten(1).T
    for pixel, changed in zip(image.flatten(1).T.tolist(), found, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        expected = colorsys.hsv_to_rgb(hue, min(1.0, saturation * factor), value)
        assert changed.tolist() == pytest.approx(expected, abs=1e-5)


# -- files ---------------------------------------------------------------------------------------------


def test_labels_begin_at_zero_and_what_is_no_class_is_ignored(tmp_path: Path) -> None:
    classes = np.zeros((32, 32), dtype=np.uint8)
    labels = classes + 1
    labels[0, :4] = (0, 2, 3, 255)
    write_pair(tmp_path, "training", "a", classes, labels)
    found = ADE20K(tmp_path, "training", lambda image, mask: (image, mask), num_classes=3)[0]
    assert found[0].shape == (3, 32, 32) and found[0].dtype == torch.uint8
    assert found[1][0, :5].tolist() == [255, 1, 2, 255, 0]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match=r"no folder .*training: unpack ADE20K"):
        both_sets(tmp_path)


def test_an_empty_folder_is_named(scenes: Path) -> None:
    for path in (scenes / "images" / "validation").iterdir():
        path.unlink()
    with pytest.raises(TenfoldError, match=r"no images in .*validation: put JPEG or PNG"):
        both_sets(scenes)


def test_an_image_without_annotation_is_named(scenes: Path) -> None:
    (scenes / "annotations" / "training" / "scene_1.png").unlink()
    with pytest.raises(TenfoldError, match=r"1 of 2 images .* the first is scene_1\.png: add"):
        both_sets(scenes)


@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_a_damaged_file_is_named(scenes: Path, kind: str) -> None:
    path = scenes / kind / "training" / "scene_0.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(TenfoldError, match=r"scene_0\.png cannot be read as an image: get it again"):
        both_sets(scenes)[0][0]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.ones((64, 32), dtype=np.uint8), r"size \(64, 32\), not \(64, 64\) as its image"),
        (np.full((64, 64), 4, dtype=np.uint8), "label 4, and 3 classes end there"),
        (np.ones((64, 64, 3), dtype=np.uint8), "mode RGB: annotations are PNGs of one channel"),
        (np.ones((64, 64), dtype=np.uint16), "mode I;16: annotations are PNGs of one channel"),
    ],
)
def test_labels_that_do_not_fit_are_named(scenes: Path, labels: np.ndarray, sentence: str) -> None:
    Image.fromarray(labels).save(scenes / "annotations" / "training" / "scene_0.png")
    with pytest.raises(TenfoldError, match=rf"scene_0\.png has .*{sentence}"):
        both_sets(scenes)[0][0]


def test_a_network_for_other_classes_is_refused(scenes: Path, cpu: Fabric) -> None:
    with pytest.raises(TenfoldError, match="knows 5 classes and the set has 3"):
        evaluate(tiny_segmenter(num_classes=5), both_sets(scenes)[1], cpu, workers=0)


# -- batches and training ------------------------------------------------------------------------------


def test_a_place_in_a_run_always_has_the_same_sample(scenes: Path) -> None:
    samples = TrainingSamples(both_sets(scenes)[0], 5, seed=3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = samples[2]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert all(torch.equal(*pair) for pair in zip(first, samples[2], strict=True))
    assert not torch.equal(first[0], samples[4][0])
    other = TrainingSamples(both_sets(scenes)[0], 5, seed=4)
    other.order = samples.order
    assert not torch.equal(first[0], other[2][0])
    assert [sorted(samples.order[epoch : epoch + 2].tolist()) for epoch in (0, 2)] == [[0, 1], [0, 1]]


def test_processes_divide_batches_and_resumed_runs_skip_them(scenes: Path) -> None:
    data = both_sets(scenes)[0]
    recipe = SegmentationRecipe(iterations=3, batch_size=4)

    class Process:
        world_size, device = 2, torch.device("cpu")

        def __init__(self, global_rank: int) -> None:
            self.global_rank = global_rank

    parts = [list(training_loader(data, recipe, 0, Process(rank), first=1, workers=0)) for rank in (0, 1)]  # type: ignore[arg-type]
    samples = TrainingSamples(data, 12, seed=0)
    assert [len(part) for part in parts] == [2, 2]
    for step in (0, 1):
        for place in range(4):
            expected = samples[4 * (step + 1) + place][0]
            assert torch.equal(parts[place % 2][step][0][place // 2], expected)
    with pytest.raises(TenfoldError, match="batch of 3 cannot be shared by 2 devices"):
        training_loader(data, replace(recipe, batch_size=3), 0, Process(0))  # type: ignore[arg-type]


def test_a_tiny_network_learns_two_images(scenes: Path, cpu: Fabric, make_run: Callable[..., Run]) -> None:
    recipe = SegmentationRecipe(iterations=60, batch_size=4, lr=5e-3, evaluate_every=30, log_every=10)
    seed_everything(0)
    network = tiny_segmenter("semantic_fpn", channels=32)
    train_set, test_set = both_sets(scenes)
    before = evaluate(network, test_set, cpu, workers=0)
    run = make_run("learns", recipe)
    with run:
        found = train(network, recipe, train_set, test_set, 0, cpu, run, workers=0)
    history = run.history()
    losses = [row["loss"] for row in history if "loss" in row]
    assert [row["step"] for row in history if "miou" in row] == [30, 60]
    assert len(losses) == 6 and losses[-1] < 0.5 * losses[0]
    assert before["miou"] < 50 and found["miou"] > 80
    assert found == evaluate(network, test_set, cpu, workers=0)


class Killed(BaseException):
    """What ends a process from outside; nothing catches it."""


def test_a_killed_run_goes_on_to_the_same_network(
    scenes: Path, cpu: Fabric, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = SegmentationRecipe(iterations=4, batch_size=2, lr=1e-3, evaluate_every=3, log_every=2)

    def learn(run: Run) -> tuple[Segmenter, dict[str, float]]:
        seed_everything(0)
        network = tiny_segmenter()
        with run:
            return network, train(network, recipe, *both_sets(scenes), 0, cpu, run, workers=0)

    whole, metrics = learn(make_run("whole", recipe))

    def save(run: Run, step: int, state: Any, original: Any = Run.save_checkpoint) -> None:
        original(run, step, state)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save)
        with pytest.raises(Killed):
            learn(make_run("killed", recipe, checkpoint_seconds=0))
    again, resumed = learn(make_run("killed", recipe))
    assert resumed == metrics
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_loss_that_is_no_number_ends_the_run(
    scenes: Path, cpu: Fabric, make_run: Callable[..., Run]
) -> None:
    recipe = SegmentationRecipe(iterations=1, batch_size=2)
    network = tiny_segmenter()
    with torch.no_grad():
        network.head.classifier[1].bias.fill_(float("nan"))
    run = make_run("nan", recipe)
    with run, pytest.raises(TenfoldError, match="no number any more after 1 updates"):
        train(network, recipe, *both_sets(scenes), 0, cpu, run, workers=0)
