"""ADE20K's files, augmentation, the recipe, the training loop and mIoU; on networks and images of a few pixels."""

from __future__ import annotations

import argparse
import colorsys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn

from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run, RunKey, load_checkpoint
from tenfold.shared.seeding import make_generator, seed_everything
from tenfold.tinymim.ade20k import (
    ADE20K,
    Augmentation,
    TrainingSamples,
    ValidationSamples,
    fitted_size,
    photometric_distortion,
    saturated,
    segmentation_metrics,
)
from tenfold.tinymim.architectures import build_classifier
from tenfold.tinymim.segmentation_backbone import build_segmentation_backbone
from tenfold.tinymim.segmentation_training import (
    CONFIGS,
    SegmentationConfig,
    SegmentationRecipe,
    build_segmenter,
    evaluate_segmenter,
    fit_segmenter,
    load_segmenter,
    poly_lr,
    segmentation_decay_groups,
    train_segmentation,
    training_loader,
    weights_digest,
)
from tenfold.tinymim.upernet import Segmentation, Segmenter

COLOURS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]], dtype=np.uint8)
"""Of classes 0 to 2."""
TINY = SegmentationConfig(
    "tiny",
    SegmentationRecipe(iterations=4, batch_size=2, lr=1e-3, warmup_iterations=1, log_every=2),
    Augmentation(crop_size=32, long_side=128, short_side=32),
    stride=20,
    num_classes=3,
    head_channels=8,
    auxiliary_channels=8,
)


def squares(seed: int, size: int = 48, side: int = 16) -> np.ndarray:
    """Classes 0 to 2 in squares; all of them occur."""
    cells = np.random.default_rng(seed).permutation(np.arange((size // side) ** 2) % 3)
    return cells.reshape(size // side, -1).repeat(side, 0).repeat(side, 1).astype(np.uint8)


def write_pair(root: Path, split: str, name: str, classes: np.ndarray, labels: np.ndarray) -> None:
    """An image that shows classes, and an annotation with labels as files have them."""
    for kind in ("images", "annotations"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    Image.fromarray(COLOURS[classes]).save(root / "images" / split / f"{name}.png")
    Image.fromarray(labels).save(root / "annotations" / split / f"{name}.png")


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """A data root with two images in ADE20K's layout, for training and for validation."""
    for split in ("training", "validation"):
        for number in range(2):
            classes = squares(number)
            write_pair(tmp_path / "data" / "ade20k", split, f"scene_{number}", classes, classes + 1)
    return tmp_path / "data"


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    def make(name: str, config: SegmentationConfig, checkpoint_seconds: float = 3600) -> Run:
        key = RunKey("tinymim", "test", name, 0, "squares", "32 px", config.name)
        return Run(tmp_path / "runs", key, config, "iteration", checkpoint_seconds)

    return make


@dataclass
class Process:
    """One of several, without a group of processes."""

    global_rank: int
    world_size: int = 2
    device: ClassVar[torch.device] = torch.device("cpu")

    def autocast(self) -> Any:
        return nullcontext()


def tiny_segmenter() -> Segmenter:
    return Segmenter(build_segmentation_backbone(32, 32, 4, 2, out_blocks=(1, 2, 3, 4)), 3, 32, 32)


# -- files ---------------------------------------------------------------------------------------------


def test_classes_begin_at_zero_and_what_is_no_class_is_ignored(tmp_path: Path) -> None:
    classes = np.zeros((32, 32), dtype=np.uint8)
    labels = classes + 1
    labels[0, :4] = (0, 2, 3, 255)
    write_pair(tmp_path, "training", "a", classes, labels)
    image, found = ADE20K(tmp_path, "training", 3)[0]
    assert image.shape == (3, 32, 32) and image.dtype == found.dtype == torch.uint8
    assert found[0, :5].tolist() == [255, 1, 2, 255, 0]


def test_an_image_without_any_label_is_read(tmp_path: Path) -> None:
    nothing = np.zeros((32, 32), dtype=np.uint8)
    write_pair(tmp_path, "training", "a", nothing, nothing)
    assert (ADE20K(tmp_path, "training", 3)[0][1] == 255).all()


def test_missing_folders_are_named(tmp_path: Path, cpu: Fabric, make_run: Callable[..., Run]) -> None:
    run = make_run("missing", TINY)
    with run, pytest.raises(TenfoldError, match=r"no folder .*ade20k.*images.*training: unpack ADE20K"):
        train_segmentation(TINY, 0, cpu, run, tmp_path)
    (tmp_path / "images" / "training").mkdir(parents=True)
    with pytest.raises(TenfoldError, match=r"no folder .*annotations.*training: unpack ADE20K"):
        ADE20K(tmp_path, "training", 3)
    (tmp_path / "annotations" / "training").mkdir(parents=True)
    with pytest.raises(TenfoldError, match=r"no images in .*training: put JPEG or PNG"):
        ADE20K(tmp_path, "training", 3)


def test_an_image_without_annotation_is_named(data_folder: Path) -> None:
    (data_folder / "ade20k" / "annotations" / "training" / "scene_1.png").unlink()
    with pytest.raises(TenfoldError, match=r"1 of 2 images .* the first is scene_1\.png: add"):
        ADE20K(data_folder / "ade20k", "training", 3)


@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_a_damaged_file_is_named(data_folder: Path, kind: str) -> None:
    path = data_folder / "ade20k" / kind / "training" / "scene_0.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(TenfoldError, match=r"scene_0\.png cannot be read as an image: get it again"):
        ADE20K(data_folder / "ade20k", "training", 3)[0]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.ones((48, 32), dtype=np.uint8), r"size \(48, 32\), not \(48, 48\) as its image"),
        (np.full((48, 48), 4, dtype=np.uint8), "label 4, and 3 classes end there"),
        (np.ones((48, 48, 3), dtype=np.uint8), "mode RGB: annotations are PNGs of one channel"),
    ],
)
def test_labels_that_do_not_fit_are_named(data_folder: Path, labels: np.ndarray, sentence: str) -> None:
    Image.fromarray(labels).save(data_folder / "ade20k" / "annotations" / "training" / "scene_0.png")
    with pytest.raises(TenfoldError, match=rf"scene_0\.png has .*{sentence}"):
        ADE20K(data_folder / "ade20k", "training", 3)[0]


# -- augmentation --------------------------------------------------------------------------------------


def coloured(classes: np.ndarray) -> tuple[Tensor, Tensor]:
    """An image that shows its labels, and the labels."""
    return torch.from_numpy(COLOURS[classes]).permute(2, 0, 1), torch.from_numpy(classes)


def test_images_are_fitted_into_both_limits() -> None:
    assert fitted_size((683, 512), 2048, 512) == (683, 512)
    assert fitted_size((300, 400), 2048, 512) == (512, 683)
    assert fitted_size((256, 2000), 2048, 512) == (262, 2048)


def test_labels_follow_their_pixels_through_the_augmentation() -> None:
    change, shares, sizes = Augmentation(64, 320, 80), [], []
    for seed in range(20):
        image, labels = change(*coloured(squares(seed, 80, 20)), make_generator(seed))
        assert image.shape == (3, 64, 64) and image.dtype == torch.float32
        assert labels.shape == (64, 64) and labels.dtype == torch.int64
        seen = labels != 255
        assert image[:, ~seen].count_nonzero() == 0
        shares.append((image.argmax(dim=0)[seen] == labels[seen]).double().mean().item())
        sizes.append(int(seen.sum()))
    # Distortion may turn a colour a little, and enlarging mixes neighbours: unaligned labels would agree in a third.
    assert min(shares) > 0.8
    assert min(sizes) < 64 * 64 == max(sizes)


def test_half_of_the_images_are_flipped() -> None:
    classes = np.zeros((32, 32), dtype=np.uint8)
    classes[:, 16:] = 1
    change = Augmentation(32, 32, 32, ratios=(1, 1))
    flipped = sum(int(change(*coloured(classes), make_generator(seed))[1][0, 0] == 1) for seed in range(60))
    assert 15 < flipped < 45


def test_a_crop_shows_no_class_too_much() -> None:
    classes = np.zeros((64, 64), dtype=np.uint8)
    classes[:, 32:] = 1

    def largest_share(seed: int, limit: float) -> float:
        change = Augmentation(32, 64, 64, ratios=(1, 1), max_class_share=limit)
        _, labels = change(*coloured(classes), make_generator(seed))
        return labels.flatten().bincount().max().item() / 32**2

    assert max(largest_share(seed, 0.75) for seed in range(30)) < 0.75
    assert max(largest_share(seed, 1.0) for seed in range(30)) > 0.75


def test_ignored_pixels_do_not_balance_a_crop() -> None:
    classes = torch.full((64, 64), 255, dtype=torch.uint8)
    classes[:, 16:32], classes[:, 40:48] = 0, 1
    change = Augmentation(32, 64, 64, ratios=(1, 1))
    for seed in range(20):
        _, labels = change(torch.zeros(3, 64, 64, dtype=torch.uint8), classes, make_generator(seed))
        counts = labels.flatten().bincount(minlength=256)[:2]
        assert counts.min() > 0 and counts.max() < 0.75 * counts.sum()


def test_an_image_of_one_class_is_cropped_all_the_same() -> None:
    change = Augmentation(32, 64, 24, ratios=(1, 1))
    _, labels = change(*coloured(np.ones((40, 24), dtype=np.uint8)), make_generator(0))
    assert (labels[:, :24] == 1).all() and (labels[:, 24:] == 255).all()


def test_distortion_keeps_pixels_in_range_and_leaves_one_image_in_16() -> None:
    image = torch.rand(3, 8, 8, generator=make_generator(0))
    found = [photometric_distortion(image, make_generator(seed)) for seed in range(100)]
    assert all(changed.min() >= 0 and changed.max() <= 1 for changed in found)
    assert 0 < sum(torch.equal(changed, image) for changed in found) < 20


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_saturation_is_that_of_hsv(factor: float) -> None:
    image = torch.rand(3, 4, 4, generator=make_generator(0))
    image[:, 0, 0], image[:, 0, 1] = 0.4, 0
    found = saturated(image, factor).flatten(1).T
    for pixel, changed in zip(image.flatten(1).T.tolist(), found, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        expected = colorsys.hsv_to_rgb(hue, min(1.0, saturation * factor), value)
        assert changed.tolist() == pytest.approx(expected, abs=1e-5)


def test_whole_images_are_fitted_and_their_labels_are_not(data_folder: Path) -> None:
    image, labels = ValidationSamples(ADE20K(data_folder / "ade20k", "validation", 3), 128, 32)[0]
    assert image.shape == (3, 32, 32) and labels.shape == (48, 48) and labels.dtype == torch.int64
    mean = [
        (channel.mean() * std + shift).item()
        for channel, std, shift in zip(image, (0.229, 0.224, 0.225), (0.485, 0.456, 0.406), strict=True)
    ]
    expected = COLOURS[squares(0)].reshape(-1, 3).mean(0) / 255
    assert mean == pytest.approx(expected.tolist(), abs=0.02)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(TenfoldError, match="between two positive factors"):
        Augmentation(ratios=(2.0, 0.5))
    with pytest.raises(TenfoldError, match="windows of 512 pixels need a stride from 1 to that, not 600"):
        SegmentationConfig(stride=600)
    with pytest.raises(TenfoldError, match="layer decay is from above 0 to 1"):
        SegmentationRecipe(layer_decay=0.0)
    with pytest.raises(TenfoldError, match="no network 'huge' here; choose one of tiny, small, base, star"):
        SegmentationConfig("huge")  # type: ignore[arg-type]


# -- the recipe ----------------------------------------------------------------------------------------


def test_the_rate_rises_to_its_line_and_falls_along_it() -> None:
    def rate(iteration: int) -> float:
        return poly_lr(iteration, lr=1e-4, iterations=160_000)

    assert rate(0) == pytest.approx(1e-10)
    assert rate(750) == pytest.approx(1e-4 * (1 - 750 / 160_000) * (1e-6 + (1 - 1e-6) / 2))
    assert rate(1500) == pytest.approx(1e-4 * (1 - 1500 / 160_000))
    assert rate(80_000) == pytest.approx(5e-5)
    assert rate(160_000) == 0


def test_layers_of_the_published_networks_learn_at_their_rates() -> None:
    with torch.device("meta"):
        segmenter = build_segmenter(replace(CONFIGS["star"], head_channels=8))
    groups = segmentation_decay_groups(segmenter, 0.05, 0.8)
    assert groups.keys() == {name for name, _ in segmenter.named_parameters()}
    for name, layer in {
        "backbone.cls_token": 0,
        "backbone.pos_embed": 0,
        "backbone.patch_embed.proj.weight": 0,
        "backbone.blocks.0.gamma_1": 1,
        "backbone.blocks.11.attn.relative_position_bias_table": 12,
        "backbone.dist_token": 13,
        "backbone.conv1x1.1.weight": 13,
        "backbone.fpn1.0.weight": 13,
        "decode_head.conv_seg.weight": 13,
        "auxiliary_head.convs.0.conv.weight": 13,
    }.items():
        assert groups[name][0] == pytest.approx(0.8 ** (13 - layer)), name


def test_only_biases_and_what_has_one_dimension_are_not_decayed() -> None:
    segmenter = tiny_segmenter()
    groups = segmentation_decay_groups(segmenter, 0.05, 0.75)
    for name, value in segmenter.named_parameters():
        assert groups[name][1] == (0.0 if value.ndim == 1 else 0.05), name


def test_the_published_recipes() -> None:
    base, star = CONFIGS["base"], CONFIGS["star"]
    assert (base.recipe.layer_decay, star.recipe.layer_decay) == (0.75, 0.8)
    assert replace(star.recipe, layer_decay=0.75) == base.recipe
    assert (base.augmentation.crop_size, base.stride, base.num_classes) == (512, 341, 150)


def test_weights_have_a_digest(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"a")
    (tmp_path / "b.pt").write_bytes(b"b")
    assert weights_digest(tmp_path / "a.pt") != weights_digest(tmp_path / "b.pt")
    assert weights_digest(None) == SegmentationConfig().backbone_digest
    with pytest.raises(TenfoldError, match=r"no file .*c\.pt with the backbone's weights"):
        weights_digest(tmp_path / "c.pt")


# -- batches -------------------------------------------------------------------------------------------


def test_a_place_in_a_run_always_has_the_same_sample(data_folder: Path) -> None:
    data = ADE20K(data_folder / "ade20k", "training", 3)
    samples = TrainingSamples(data, TINY.augmentation, 5, seed=3)
    first = samples[2]
    torch.manual_seed(1)
    assert all(torch.equal(*pair) for pair in zip(first, samples[2], strict=True))
    assert not torch.equal(first[0], samples[4][0])
    assert [sorted(samples.order[place : place + 2].tolist()) for place in (0, 2)] == [[0, 1], [0, 1]]


def test_another_seed_augments_otherwise(data_folder: Path) -> None:
    data = ADE20K(data_folder / "ade20k", "training", 3)
    one, other = (TrainingSamples(data, TINY.augmentation, 1, seed) for seed in (0, 1))
    other.order = one.order
    assert not torch.equal(one[0][0], other[0][0])


def test_processes_divide_batches_and_resumed_runs_skip_them(data_folder: Path) -> None:
    data = ADE20K(data_folder / "ade20k", "training", 3)
    config = replace(TINY, recipe=replace(TINY.recipe, iterations=3, batch_size=4))
    parts = [list(training_loader(data, config, 0, Process(rank), 1, 0)) for rank in (0, 1)]  # type: ignore[arg-type]
    samples = TrainingSamples(data, config.augmentation, 12, seed=0)
    assert [len(part) for part in parts] == [2, 2]
    for step in (0, 1):
        for place in range(4):
            expected = samples[4 * (step + 1) + place][0]
            assert torch.equal(parts[place % 2][step][0][place // 2], expected)
    config = replace(config, recipe=replace(config.recipe, batch_size=3))
    with pytest.raises(TenfoldError, match="batch of 3 cannot be shared by 2 devices"):
        training_loader(data, config, 0, Process(0))  # type: ignore[arg-type]


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


@pytest.fixture
def known_errors(tmp_path: Path) -> ADE20K:
    """Two images of 40 x 60 with 200 + 200 unlabelled pixels, and 400 pixels that are labelled otherwise."""
    classes = np.zeros((40, 60), dtype=np.uint8)
    classes[:, 20:40], classes[:, 40:] = 1, 2
    first, second = classes + 1, classes + 1
    first[:10, :20], first[10:20, 40:] = 0, 255
    second[:20, :20] = 2  # labelled 1, taken for 0
    write_pair(tmp_path, "validation", "a", classes, first)
    write_pair(tmp_path, "validation", "b", classes, second)
    return ADE20K(tmp_path, "validation", 3)


@pytest.mark.parametrize("window", [32, 64])
def test_a_set_is_judged_without_ignored_pixels(known_errors: ADE20K, window: int, cpu: Fabric) -> None:
    config = replace(TINY, augmentation=Augmentation(window, 60, 40))
    found = evaluate_segmenter(ColourReader(), known_errors, config, cpu, workers=0)  # type: ignore[arg-type]
    assert found["miou"] == pytest.approx(100 * (1000 / 1400 + 1600 / 2000 + 1) / 3)
    assert found["macc"] == pytest.approx(100 * (1 + 1600 / 2000 + 1) / 3)
    assert found["aacc"] == pytest.approx(100 * 4000 / 4400)


def test_predictions_are_enlarged_to_the_size_of_the_labels(known_errors: ADE20K, cpu: Fabric) -> None:
    config = replace(TINY, augmentation=Augmentation(20, 30, 20))
    found = evaluate_segmenter(ColourReader(), known_errors, config, cpu, workers=0)  # type: ignore[arg-type]
    assert found["aacc"] == pytest.approx(100 * 4000 / 4400, abs=1.5)


def test_processes_judge_different_images(known_errors: ADE20K) -> None:
    config = replace(TINY, augmentation=Augmentation(64, 60, 40))
    found = [
        evaluate_segmenter(ColourReader(), known_errors, config, Process(rank), workers=0)  # type: ignore[arg-type]
        for rank in (0, 1)
    ]
    assert [part["aacc"] for part in found] == pytest.approx([100, 100 * 2000 / 2400])


def test_a_network_for_other_classes_is_refused(known_errors: ADE20K, cpu: Fabric) -> None:
    segmenter = ColourReader()
    segmenter.num_classes = 5
    with pytest.raises(TenfoldError, match="knows 5 classes and the set has 3"):
        evaluate_segmenter(segmenter, known_errors, TINY, cpu, workers=0)  # type: ignore[arg-type]


# -- training ------------------------------------------------------------------------------------------


def test_a_tiny_network_learns_two_images(
    data_folder: Path, cpu: Fabric, make_run: Callable[..., Run]
) -> None:
    recipe = SegmentationRecipe(
        60, 4, 5e-3, warmup_iterations=5, layer_decay=1.0, evaluate_every=30, log_every=10
    )
    config = replace(TINY, recipe=recipe, augmentation=replace(TINY.augmentation, ratios=(1.0, 2.0)))
    sets = [ADE20K(data_folder / "ade20k", split, 3) for split in ("training", "validation")]  # type: ignore[arg-type]
    seed_everything(0)
    network, run = tiny_segmenter(), make_run("learns", config)
    before = evaluate_segmenter(network, sets[1], config, cpu, workers=0)
    with run:
        found = fit_segmenter(network, config, *sets, 0, cpu, run, workers=0)
    losses = [row["loss"] for row in run.history() if "loss" in row]
    assert [row["step"] for row in run.history() if "miou" in row] == [30, 60]
    assert len(losses) == 6 and losses[-1] < 0.6 * losses[0]
    assert before["miou"] < 50 and found["miou"] > 70
    assert found == evaluate_segmenter(network, sets[1], config, cpu, workers=0)


class Killed(BaseException):
    """What ends a process from outside; nothing catches it."""


def test_a_killed_run_goes_on_to_the_same_network(
    data_folder: Path, cpu: Fabric, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, recipe=replace(TINY.recipe, evaluate_every=3))
    whole = make_run("whole", config)
    with whole:
        metrics = train_segmentation(config, 0, cpu, whole, data_folder, workers=0)

    def save(run: Run, step: int, state: Any, original: Any = Run.save_checkpoint) -> None:
        original(run, step, state)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save)
        run = make_run("killed", config, checkpoint_seconds=0)
        with run, pytest.raises(Killed):
            train_segmentation(config, 0, cpu, run, data_folder, workers=0)
    assert not (run.directory / "model.pt").exists()
    run = make_run("killed", config)
    with run:
        assert train_segmentation(config, 0, cpu, run, data_folder, workers=0) == metrics
    assert run.history() == whole.history()
    ends = [load_checkpoint(one.directory / "model.pt")["model"] for one in (whole, run)]
    for name, value in ends[0].items():
        assert torch.equal(ends[1][name], value), name


def test_training_begins_with_pretrained_weights_and_its_end_can_be_read(
    tmp_path: Path, data_folder: Path, cpu: Fabric, make_run: Callable[..., Run]
) -> None:
    weights = build_classifier("vit_tiny_patch16", num_classes=4, img_size=48).state_dict()
    trained = {"model": weights, "args": argparse.Namespace(lr=1e-3)}  # as the authors' files are
    torch.save(trained, tmp_path / "weights.pt")
    recipe = replace(TINY.recipe, iterations=1, lr=1e-12)  # so small that weights stay
    config = replace(TINY, recipe=recipe, backbone_digest=weights_digest(tmp_path / "weights.pt"))
    run = make_run("pretrained", config)
    with run:
        metrics = train_segmentation(config, 0, cpu, run, data_folder, tmp_path / "weights.pt", workers=0)
    segmenter = load_segmenter(config, load_checkpoint(run.directory / "model.pt"))
    torch.testing.assert_close(
        segmenter.backbone.blocks[3].mlp.fc1.weight,  # type: ignore[union-attr]
        weights["blocks.3.mlp.fc1.weight"],
    )
    data = ADE20K(data_folder / "ade20k", "validation", 3)
    assert evaluate_segmenter(segmenter, data, config, cpu, workers=0) == metrics
    with pytest.raises(TenfoldError, match="not the weights of a segmenter tiny of 4 classes"):
        load_segmenter(replace(config, num_classes=4), load_checkpoint(run.directory / "model.pt"))
    with pytest.raises(TenfoldError, match=r"weights\.pt: conv1x1\.0\.bias is missing"):
        build_segmenter(replace(config, name="star"), tmp_path / "weights.pt")


def test_a_loss_that_is_no_number_ends_the_run(
    data_folder: Path, cpu: Fabric, make_run: Callable[..., Run]
) -> None:
    config = replace(TINY, recipe=replace(TINY.recipe, iterations=1))
    sets = [ADE20K(data_folder / "ade20k", split, 3) for split in ("training", "validation")]  # type: ignore[arg-type]
    network, run = tiny_segmenter(), make_run("nan", config)
    nn.init.constant_(network.decode_head.conv_seg.bias, float("nan"))  # type: ignore[arg-type]
    with run, pytest.raises(TenfoldError, match="no number any more after 1 updates"):
        fit_segmenter(network, config, *sets, 0, cpu, run, workers=0)


def test_a_compiled_network_learns_what_a_plain_one_does(
    data_folder: Path, cpu: Fabric, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled without a code generator; what it trains is saved under plain names."""
    compiled = []

    def compile_eagerly(network: nn.Module, enabled: bool) -> nn.Module:
        compiled.append(enabled)
        return torch.compile(network, backend="eager") if enabled else network  # type: ignore[return-value]

    monkeypatch.setattr("tenfold.tinymim.segmentation_training.maybe_compile", compile_eagerly)
    found = []
    for enabled in (False, True):
        run = make_run(f"compiled-{enabled}", TINY)
        with run:
            train_segmentation(TINY, 0, cpu, run, data_folder, workers=0, compile_network=enabled)
        found.append(load_checkpoint(run.directory / "model.pt")["model"])
    assert compiled == [False, True]
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


def test_two_processes_learn_what_one_does(start: Any, data_folder: Path, tmp_path: Path) -> None:
    script = Path(__file__).parent / "distributed_segment.py"
    for devices in (1, 2):
        process = start(script, devices, tmp_path, data_folder, cwd=tmp_path)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    alone, *ranks = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for name in ("on1-rank0", "on2-rank0", "on2-rank1")
    )
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    # Adam divides by the gradient's size: where it is 0 but for rounding, as in 0.3 % of the weights, they differ.
    way = (alone["weights"] - alone["start"]).norm()
    assert way > 0
    assert (ranks[0]["weights"] - alone["weights"]).norm() < 0.1 * way
    assert len(alone["losses"]) == 3
    assert ranks[0]["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert ranks[0]["metrics"] == ranks[1]["metrics"] == pytest.approx(alone["metrics"], abs=0.5)
