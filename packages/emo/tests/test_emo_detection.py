"""Detectors on EMO, their losses and choice of boxes, data of COCO's form, and training on drawn shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher, SSDMatcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from tenfold.emo.anchors import ssdlite_anchors
from tenfold.emo.checkpoints import to_official
from tenfold.emo.coco import (
    CocoBoxes,
    coco_results,
    detect,
    evaluate,
    load_annotations,
    retinanet_transforms,
    ssdlite_transforms,
    training_batches,
    training_loader,
)
from tenfold.emo.detection import (
    BACKGROUND,
    IGNORED,
    Backbone,
    DetectionRecipe,
    Detector,
    Target,
    assign,
    choose_boxes,
    decode_boxes,
    detection_learning_rate,
    detection_optimizer,
    detection_parameter_groups,
    encode_boxes,
    match_anchors,
    train_epoch,
)
from tenfold.emo.model import EMO, Architecture, build_model
from tenfold.emo.retinanet import RECIPE as RETINANET_RECIPE
from tenfold.emo.retinanet import build_retinanet, make_retinanet, retinanet_loss
from tenfold.emo.ssdlite import RECIPE as SSDLITE_RECIPE
from tenfold.emo.ssdlite import build_ssdlite, hard_negatives, level_anchors, make_ssdlite, ssd_loss
from tenfold.shared.logging import TenfoldError

SMALL = Architecture(
    depths=(1, 1, 2, 2),
    widths=(8, 12, 16, 24),
    head_widths=(8, 12, 8, 8),
    stem=8,
    drop_path=0.0,
    kernels=(3, 3, 3, 3),
    window_sizes=(4, 4, 4, 4),
)
CATEGORIES = (3, 7, 90)
"""Of red rectangles, green circles and blue rectangles."""
COLOURS = ((220, 40, 40), (40, 200, 40), (40, 40, 220))


def small_network() -> EMO:
    """With random weights, and statistics of batch norms that fit them, as those of a trained network do."""
    torch.manual_seed(0)
    network = EMO(SMALL).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(4, 3, 64, 64))
    return network


def small_ssdlite(size: int = 64) -> Detector:
    return make_ssdlite(small_network(), 3, size, extra_channels=(32, 16, 16, 16))


def small_retinanet() -> Detector:
    return make_retinanet(small_network(), 3, short_side=64, long_side=96, channels=32)


MAKERS: dict[str, Callable[[], Detector]] = {"ssdlite": small_ssdlite, "retinanet": small_retinanet}


@pytest.fixture(params=MAKERS)
def detector(request: pytest.FixtureRequest) -> Detector:
    return MAKERS[request.param]()


def pictures() -> tuple[list[Tensor], list[Target]]:
    """Two images with a coloured rectangle each."""
    images = [torch.full((3, 64, 80), 0.5) for _ in range(2)]
    boxes = [torch.tensor([[10.0, 12, 50, 44]]), torch.tensor([[30.0, 20, 70, 60]])]
    for channel, (image, box) in enumerate(zip(images, boxes, strict=True)):
        x1, y1, x2, y2 = box[0].int().tolist()
        image[channel, y1:y2, x1:x2] = 1.0
    return images, [{"boxes": box, "labels": torch.tensor([k])} for k, box in enumerate(boxes)]


# -- networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "name", "parameters"),
    [
        (build_ssdlite, "emo_1m", 2_311_980),
        (build_ssdlite, "emo_2m", 3_342_716),
        (build_ssdlite, "emo_5m", 6_076_540),
        (build_retinanet, "emo_1m", 10_479_244),
        (build_retinanet, "emo_2m", 11_555_644),
        (build_retinanet, "emo_5m", 14_440_508),
    ],
)
def test_parameters_are_those_of_the_paper(
    build: Callable[[str], Detector], name: str, parameters: int
) -> None:
    detector = build(name)
    assert sum(parameter.numel() for parameter in detector.parameters()) == parameters
    window = 10 if name == "emo_5m" else 7
    assert detector.backbone.model.architecture.window_sizes == (window,) * 4


def test_ssdlite_has_six_levels_whose_anchors_are_those_of_the_paper() -> None:
    detector = small_ssdlite(size=320).eval()
    levels = detector.neck(detector.backbone(torch.zeros(1, 3, 320, 320)))
    sizes = tuple((level.shape[2], level.shape[3]) for level in levels)
    assert sizes == ((20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1))
    output = detector.head(levels)
    assert output["cls_logits"].shape == (1, 3234, 4)
    assert output["bbox_regression"].shape == (1, 3234, 4)
    assert torch.equal(detector.rules.anchors(sizes), ssdlite_anchors(320)[0])


def test_anchors_of_smaller_images_shrink_with_them() -> None:
    sizes = ((10, 10), (5, 5), (3, 3), (2, 2), (1, 1), (1, 1))
    small = level_anchors(sizes, size=160)
    assert small.shape == (6 * (100 + 25 + 9 + 4 + 1 + 1), 4)
    large = ssdlite_anchors(320)[0]
    torch.testing.assert_close(sides(small[:6]), sides(large[:6]) / 2)


def sides(boxes: Tensor) -> Tensor:
    return boxes[:, 2:] - boxes[:, :2]


def test_retinanet_has_five_levels_and_nine_anchors_in_a_cell() -> None:
    detector = small_retinanet().eval()
    levels = detector.neck(detector.backbone(torch.zeros(1, 3, 64, 96)))
    sizes = tuple((level.shape[2], level.shape[3]) for level in levels)
    assert sizes == ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))
    cells = sum(height * width for height, width in sizes)
    assert detector.head(levels)["cls_logits"].shape == (1, 9 * cells, 3)
    assert len(detector.rules.anchors(sizes)) == 9 * cells


def test_new_parts_of_ssdlite_have_the_settings_of_the_paper() -> None:
    detector = small_ssdlite()
    norms = [
        part
        for part in (*detector.neck.modules(), *detector.head.modules())
        if isinstance(part, nn.BatchNorm2d)
    ]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
    assert len(norms) == 4 * 3 + 2 * 6
    for part, deviation in ((detector.neck, 0.03), (detector.head, 0.001)):
        weights = torch.cat([conv.weight.flatten() for conv in part.modules() if isinstance(conv, nn.Conv2d)])
        assert weights.std().item() == pytest.approx(deviation, rel=0.1)


def test_nothing_stands_between_the_last_two_levels_of_retinanet() -> None:
    pyramid = small_retinanet().neck
    for parameter, value in zip(pyramid.extra.parameters(), (0.0, -1.0, 1.0, 0.0), strict=True):
        nn.init.constant_(parameter, value)
    levels = pyramid([torch.zeros(1, width, side, side) for width, side in ((12, 8), (16, 4), (24, 2))])
    assert (levels[3] == -1).all()
    assert (levels[4] == -32).all()  # the sum over 32 channels


def test_a_new_retinanet_believes_one_percent_of_anchors_are_objects() -> None:
    detector = small_retinanet().eval()
    logits = detector.head(detector.neck(detector.backbone(torch.rand(1, 3, 64, 64))))["cls_logits"]
    torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.01), rtol=0.1, atol=0)


def test_backbone_shows_the_maps_of_its_stages() -> None:
    model = EMO(SMALL).eval()
    images = torch.rand(1, 3, 64, 64)
    _, expected = model.forward_intermediates(images)
    backbone = Backbone(model, stages=(2, 4)).eval()
    assert backbone.channels == [12, 24]
    for found, wanted in zip(backbone(images), (expected[1], expected[3]), strict=True):
        torch.testing.assert_close(found, wanted)


def test_batch_norms_of_the_backbone_keep_their_statistics_but_learn() -> None:
    detector = small_ssdlite().train()
    before = {name: value.clone() for name, value in detector.named_buffers()}
    losses = detector(*pictures())
    (losses["classification"] + losses["bbox_regression"]).backward()
    for name, value in detector.named_buffers():
        if name.endswith("running_mean"):
            assert torch.equal(value, before[name]) == name.startswith("backbone."), name
    for module in detector.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.training
            assert module.weight.grad is not None and module.bias.grad is not None


def test_batch_norms_follow_the_images_without_norm_eval() -> None:
    backbone = Backbone(EMO(SMALL), stages=(4,), norm_eval=False)
    before = backbone.model.stem.norm.running_mean.clone()
    backbone(torch.rand(2, 3, 64, 64))
    assert not torch.equal(backbone.model.stem.norm.running_mean, before)


def test_frozen_stages_do_not_learn_and_stay_in_evaluation_mode() -> None:
    backbone = small_retinanet().train().backbone
    frozen = [backbone.model.stem, backbone.model.stages[0]]
    assert not any(parameter.requires_grad for part in frozen for parameter in part.parameters())
    assert not any(module.training for part in frozen for module in part.modules())
    assert all(parameter.requires_grad for parameter in backbone.model.stages[1:].parameters())
    assert backbone.model.stages[1].training


def test_weights_of_a_classifier_are_taken(tmp_path: Path) -> None:
    classifier = build_model("emo_1m")
    torch.save(to_official(classifier), tmp_path / "net.pth")
    expected = classifier.state_dict()
    detector = build_ssdlite("emo_1m", weights=tmp_path / "net.pth")
    loaded = detector.backbone.model.state_dict()
    assert expected.keys() - loaded.keys() == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())
    with pytest.raises(TenfoldError, match="is it another"):
        build_ssdlite("emo_2m", weights=tmp_path / "net.pth")


# -- boxes -----------------------------------------------------------------------------------------------


def random_boxes(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 40
    return torch.cat((corner, corner + 4 + torch.rand(count, 2, generator=generator) * 30), dim=1)


def test_box_codes_are_shift_and_scale_by_their_deviations() -> None:
    anchor, box = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 10, 15, 50]])
    expected = torch.tensor([[0.5 / 0.1, 1.0 / 0.1, 0.0, math.log(2) / 0.2]])
    torch.testing.assert_close(encode_boxes(box, anchor, (0.1, 0.1, 0.2, 0.2)), expected)


def test_box_codes_agree_with_torchvision_and_can_be_undone() -> None:
    boxes, anchors = random_boxes(50, 1), random_boxes(50, 2)
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    codes = encode_boxes(boxes, anchors, (0.1, 0.1, 0.2, 0.2))
    torch.testing.assert_close(codes, coder.encode_single(boxes, anchors))
    torch.testing.assert_close(decode_boxes(codes, anchors, (0.1, 0.1, 0.2, 0.2)), boxes)


def test_decoded_boxes_are_finite_whatever_the_code() -> None:
    codes = torch.tensor([[0.0, 0, 500, -500]])
    box = decode_boxes(codes, torch.tensor([[0.0, 0, 16, 16]]), (1.0, 1.0, 1.0, 1.0))[0]
    torch.testing.assert_close(box[2] - box[0], torch.tensor(1000.0))
    torch.testing.assert_close(box[3] - box[1], torch.tensor(16 * 16 / 1000), rtol=0, atol=1e-5)


def test_anchors_between_the_thresholds_are_ignored() -> None:
    iou = torch.tensor([[0.9, 0.5, 0.45, 0.4, 0.39]])
    assert match_anchors(iou, 0.5, 0.4, True).tolist() == [0, 0, IGNORED, IGNORED, BACKGROUND]
    assert match_anchors(iou, 0.5, 0.5, False).tolist() == [0, 0, BACKGROUND, BACKGROUND, BACKGROUND]


def test_an_anchor_takes_the_box_it_overlaps_most() -> None:
    iou = torch.tensor([[0.9, 0.6], [0.1, 0.7]])
    assert match_anchors(iou, 0.5, 0.5, False).tolist() == [0, 1]


def test_every_box_gets_its_best_anchor() -> None:
    iou = torch.tensor([[0.2, 0.3, 0.3], [0.8, 0.0, 0.0]])
    assert match_anchors(iou, 0.5, 0.5, False).tolist() == [1, 0, BACKGROUND]
    assert match_anchors(iou, 0.5, 0.4, True).tolist() == [1, 0, 0]


def test_the_last_of_several_boxes_gets_their_common_best_anchor() -> None:
    iou = torch.tensor([[0.9, 0.1], [0.6, 0.2]])
    for all_ties in (True, False):
        assert match_anchors(iou, 0.5, 0.4, all_ties).tolist() == [1, BACKGROUND]


def test_a_box_that_no_anchor_touches_gets_none() -> None:
    iou = torch.tensor([[0.0, 0.0], [0.7, 0.2]])
    for all_ties in (True, False):
        assert match_anchors(iou, 0.5, 0.4, all_ties).tolist() == [1, BACKGROUND]


def test_without_boxes_all_anchors_are_background() -> None:
    assert match_anchors(torch.zeros(0, 3), 0.5, 0.4, True).tolist() == [BACKGROUND] * 3


def test_matches_of_ssdlite_agree_with_torchvision() -> None:
    iou = box_iou(random_boxes(6, 1), random_boxes(200, 2))
    assert torch.equal(match_anchors(iou, 0.5, 0.5, False), SSDMatcher(0.5)(iou))


# -- losses ----------------------------------------------------------------------------------------------


def test_hard_negatives_are_three_for_each_positive_of_an_image() -> None:
    losses = torch.tensor([[9.0, 5, 1, 4, 3, 2], [1.0, 2, 3, 4, 5, 6]])
    positive = torch.tensor([[True, False, False, False, False, False], [False] * 6])
    expected = [[False, True, False, True, True, False], [False] * 6]
    assert hard_negatives(losses, positive).tolist() == expected


def test_hard_negatives_are_all_where_positives_are_many() -> None:
    positive = torch.tensor([[True, True, False, False]])
    assert hard_negatives(torch.ones(1, 4), positive).tolist() == [[False, False, True, True]]


def outputs(num_outputs: int, images: int = 2) -> tuple[Tensor, Tensor, Tensor, list[Target]]:
    """Logits, codes, anchors and targets at random."""
    generator = torch.Generator().manual_seed(3)
    anchors = random_boxes(120, 4)
    logits = torch.randn(images, 120, num_outputs, generator=generator)
    codes = torch.randn(images, 120, 4, generator=generator)
    targets = [
        {"boxes": random_boxes(3 + image, 5 + image), "labels": torch.arange(3 + image) % 3}
        for image in range(images)
    ]
    return logits, codes, anchors, targets


def test_loss_of_ssdlite_agrees_with_torchvision() -> None:
    logits, codes, anchors, targets = outputs(num_outputs=4)
    rules = small_ssdlite().rules
    labels, wanted = zip(*(assign(anchors, target, rules) for target in targets), strict=True)
    found = ssd_loss(logits, codes, torch.stack(labels), torch.cat(wanted))

    settings = SimpleNamespace(box_coder=BoxCoder(weights=(10.0, 10.0, 5.0, 5.0)), neg_to_pos_ratio=3.0)
    background_first = {"cls_logits": logits.roll(1, dims=2), "bbox_regression": codes}
    shifted = [{**target, "labels": target["labels"] + 1} for target in targets]
    matches = [SSDMatcher(0.5)(box_iou(target["boxes"], anchors)) for target in targets]
    expected = SSD.compute_loss(settings, shifted, background_first, [anchors] * 2, matches)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_loss_of_retinanet_agrees_with_torchvision_on_one_image() -> None:
    logits, codes, anchors, targets = outputs(num_outputs=3, images=1)
    labels, wanted = assign(anchors, targets[0], small_retinanet().rules)
    assert (labels == IGNORED).any() and (labels == BACKGROUND).any()
    found = retinanet_loss(logits, codes, labels[None], wanted)
    matches = Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(targets[0]["boxes"], anchors))
    expected = RetinaNetHead(4, 9, 3).compute_loss(
        targets, {"cls_logits": logits, "bbox_regression": codes}, [anchors], [matches]
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_loss_of_retinanet_is_divided_by_the_positives_of_the_batch() -> None:
    logits, codes, anchors, targets = outputs(num_outputs=3)
    rules = small_retinanet().rules
    sums, positives = torch.zeros(2), 0
    for logit, code, target in zip(logits, codes, targets, strict=True):
        labels, wanted = assign(anchors, target, rules)
        alone = retinanet_loss(logit[None], code[None], labels[None], wanted)
        sums += torch.stack((alone["classification"], alone["bbox_regression"])) * len(wanted)
        positives += len(wanted)
    labels, wanted = zip(*(assign(anchors, target, rules) for target in targets), strict=True)
    found = retinanet_loss(logits, codes, torch.stack(labels), torch.cat(wanted))
    together = torch.stack((found["classification"], found["bbox_regression"]))
    torch.testing.assert_close(together, sums / positives)


def test_images_without_boxes_have_a_loss(detector: Detector) -> None:
    images, _ = pictures()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = detector.train()(images, [nothing, nothing])
    assert losses["bbox_regression"] == 0
    assert losses["classification"].isfinite()


def test_two_images_can_be_learned(detector: Detector) -> None:
    images, targets = pictures()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=5e-3, weight_decay=0.0)
    detector.train()
    history = []
    for _ in range(35):
        losses = detector(images, targets)
        total = losses["classification"] + losses["bbox_regression"]
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        history.append(total.item())
    assert all(parameter.grad is not None for parameter in detector.parameters() if parameter.requires_grad)
    assert all(math.isfinite(value) for value in history)
    assert min(history[-5:]) < 0.5 * history[0]


# -- choice of boxes -------------------------------------------------------------------------------------


def test_chosen_boxes_are_the_best_of_their_class_and_place() -> None:
    anchors = torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [40, 40, 70, 70], [0, 0, 20, 20]])
    scores = torch.tensor([[0.9, 0.8], [0.7, 0.0], [0.6, 0.01], [0.02, 0.0]])
    rules = replace(small_ssdlite().rules, min_score=0.05, nms_iou=0.5)
    found = choose_boxes([scores[:2], scores[2:]], [torch.zeros(2, 4)] * 2, anchors.split(2), (60, 64), rules)
    assert found["labels"].tolist() == [0, 1, 0]
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.8, 0.6]))
    expected = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 20], [40, 40, 64, 60]])
    torch.testing.assert_close(found["boxes"], expected)


def test_candidates_are_limited_by_level_and_detections_by_image() -> None:
    anchors = torch.arange(6.0)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    scores = torch.linspace(0.9, 0.4, 6)[:, None]
    levels = (scores.split(3), torch.zeros(6, 4).split(3), anchors.split(3))
    rules = replace(small_ssdlite().rules, candidates=2, detections=200)
    found = choose_boxes(*levels, (200, 200), rules)
    torch.testing.assert_close(found["scores"], scores[[0, 1, 3, 4], 0])
    found = choose_boxes(*levels, (200, 200), replace(rules, detections=3))
    torch.testing.assert_close(found["scores"], scores[[0, 1, 3], 0])


def test_boxes_outside_the_image_are_dropped() -> None:
    anchors = torch.tensor([[70.0, 0, 90, 20], [0, 0, 20, 20]])
    found = choose_boxes(
        [torch.full((2, 1), 0.5)], [torch.zeros(2, 4)], [anchors], (64, 64), small_ssdlite().rules
    )
    assert found["boxes"].tolist() == [[0, 0, 20, 20]]


class SureOf(nn.Module):
    """A head that is sure of one anchor and one class."""

    def __init__(self, anchors: int, outputs: int, anchor: int, label: int, others: float) -> None:
        super().__init__()
        self.codes = torch.zeros(1, anchors, 4)
        self.logits = torch.full((1, anchors, outputs), -20.0)
        self.logits[..., -1] = others
        self.logits[0, anchor, label] = 20.0

    def forward(self, levels: list[Tensor]) -> dict[str, Tensor]:
        return {"cls_logits": self.logits, "bbox_regression": self.codes}


@pytest.mark.parametrize("kind", MAKERS)
def test_boxes_are_in_pixels_of_the_image(kind: str) -> None:
    detector = MAKERS[kind]().eval()
    is_ssd = kind == "ssdlite"
    sizes = (
        ((4, 4), (2, 2), (1, 1), (1, 1), (1, 1), (1, 1))
        if is_ssd
        else ((8, 8), (4, 4), (2, 2), (1, 1), (1, 1))
    )
    anchors = detector.rules.anchors(sizes)
    centre = torch.tensor([32.0, 32.0]).repeat(2)
    anchor = int((anchors - centre).abs().sum(dim=1).argmin())
    detector.head = SureOf(len(anchors), 4 if is_ssd else 3, anchor, 1, 0.0 if is_ssd else -20.0)
    image = torch.zeros(3, 32, 128) if is_ssd else torch.zeros(3, 128, 128)
    (found,) = detector([image])
    assert found["labels"].tolist() == [1]
    scale = torch.tensor([2.0, 0.5, 2.0, 0.5] if is_ssd else [2.0] * 4)
    torch.testing.assert_close(found["boxes"][0], anchors[anchor].clamp(0, 64) * scale)


def test_detectors_take_images_of_any_size(detector: Detector) -> None:
    images = [torch.rand(3, 50, 90), torch.rand(3, 70, 40)]
    found = detector.eval()(images)
    assert [set(item) for item in found] == [{"boxes", "labels", "scores"}] * 2
    for item, (height, width) in zip(found, ((50, 90), (70, 40)), strict=True):
        assert (item["boxes"] >= 0).all()
        assert (item["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([[5.0, 5, 5, 20]], [0], "image 1 has a box without width or height"),
        ([[5.0, 5, 15, 20]], [3], "image 1 has a label outside 0 to 2"),
        ([[5.0, 5, 15, 20]], [0, 1], r"image 1 has boxes \(1, 4\) and labels \(2,\)"),
    ],
)
def test_impossible_targets_are_said(boxes: list[list[float]], labels: list[int], message: str) -> None:
    images, targets = pictures()
    targets[1] = {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}
    with pytest.raises(TenfoldError, match=message):
        small_ssdlite().train()(images, targets)


def test_what_cannot_be_learned_from_is_said() -> None:
    images, targets = pictures()
    with pytest.raises(TenfoldError, match="needs targets"):
        small_ssdlite().train()(images)
    with pytest.raises(TenfoldError, match="at least 2 images"):
        small_ssdlite().train()(images[:1], targets[:1])
    with pytest.raises(TenfoldError, match="multiples of 32, not 300"):
        small_ssdlite(size=300)


# -- recipe ----------------------------------------------------------------------------------------------


def test_learning_rate_follows_a_cosine_by_epoch_to_the_reported_value() -> None:
    rates = [detection_learning_rate(epoch, 10_000, RETINANET_RECIPE) for epoch in range(12)]
    assert rates[0] == 2e-4
    assert rates[6] == pytest.approx(1e-4)
    assert rates[11] == pytest.approx(3.407e-6, rel=1e-3)
    assert detection_learning_rate(120, 10**6, SSDLITE_RECIPE) == pytest.approx(0.0)


def test_learning_rate_warms_up_from_a_thousandth_in_500_updates() -> None:
    rates = [detection_learning_rate(0, step, SSDLITE_RECIPE) for step in (0, 250, 500, 501)]
    assert rates == pytest.approx([1.2e-6, 1.2e-3 * 0.5005, 1.2e-3, 1.2e-3])


def test_decay_spares_what_the_authors_call_norm_and_nothing_else() -> None:
    detector = build_retinanet("emo_1m")
    without, with_decay = detection_parameter_groups(detector, 0.05)
    assert (without["weight_decay"], with_decay["weight_decay"]) == (0.0, 0.05)
    assert {"backbone.model.stages.2.1.norm.bias", "backbone.model.stages.1.0.depthwise.norm.weight"} <= set(
        without["names"]
    )
    assert all(".norm." in name for name in without["names"])
    assert {"backbone.model.stages.2.1.attention.qk.bias", "neck.extra.0.bias"} <= set(with_decay["names"])
    assert not any(
        name.startswith(("backbone.model.stem.", "backbone.model.stages.0.")) for name in with_decay["names"]
    )

    detector = build_ssdlite("emo_1m")
    without, with_decay = detection_parameter_groups(detector, 0.05)
    assert "backbone.model.stem.block.depthwise.norm.weight" in without["names"]
    assert "backbone.model.stem.norm.weight" in with_decay["names"]  # the authors' stage0.0.convs.0.1
    assert not any(name.startswith(("neck.", "head.")) for name in without["names"])  # their bn
    assert len(without["names"]) + len(with_decay["names"]) == len(list(detector.parameters()))


def test_an_epoch_sees_every_image_as_often_and_processes_share_the_batches() -> None:
    recipe = DetectionRecipe(epochs=1, repeats=5, batch_size=4, lr=1e-3)
    batches = training_batches(7, recipe, seed=0, epoch=0)
    seen = [index for batch in batches for index in batch]
    assert {len(batch) for batch in batches} == {4}
    assert sorted(seen[:35]) == sorted(list(range(7)) * 5)
    assert seen[35:] == seen[:1]
    halves = [training_batches(7, recipe, 0, 0, rank, 2) for rank in range(2)]
    for batch, first, second in zip(batches, *halves, strict=True):
        assert sorted(batch) == sorted(first + second)
    assert batches != training_batches(7, recipe, seed=0, epoch=1)
    with pytest.raises(TenfoldError, match="3 processes cannot share batches of 4"):
        training_batches(7, recipe, 0, 0, 0, 3)


# -- COCO ------------------------------------------------------------------------------------------------


def draw_shapes(folder: Path, count: int = 6, size: tuple[int, int] = (96, 80)) -> Path:
    """Images with rectangles and circles beside their annotations; the last image has none, and one has a crowd."""
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number in range(count):
        picture = Image.new("RGB", size, (128, 128, 128))
        draw = ImageDraw.Draw(picture)
        for half in range(2 if number < count - 1 else 0):
            label = (number + half) % 3
            width, height = rng.integers(20, 40, 2).tolist()
            x, y = half * 48 + int(rng.integers(0, 8)), int(rng.integers(0, size[1] - height))
            shape = draw.ellipse if label == 1 else draw.rectangle
            shape((x, y, x + width - 1, y + height - 1), fill=COLOURS[label])
            boxes.append(
                {"image_id": 10 * number, "category_id": CATEGORIES[label], "bbox": [x, y, width, height]}
            )
        picture.save(folder / f"{number}.png")
        images.append({"id": 10 * number, "file_name": f"{number}.png", "width": size[0], "height": size[1]})
    boxes.append({"image_id": 10, "category_id": 3, "bbox": [0, 0, 90, 70], "iscrowd": 1})
    boxes = [{"id": number, **box} for number, box in enumerate(boxes)]
    return write_json(
        folder, {"images": images, "annotations": boxes, "categories": [{"id": k} for k in CATEGORIES]}
    )


def write_json(folder: Path, content: Any) -> Path:
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return draw_shapes(tmp_path)


def test_boxes_are_corners_and_classes_count_from_zero(annotations: Path) -> None:
    data = CocoBoxes(annotations.parent, annotations)
    assert (len(data), data.num_classes, data.category_ids) == (6, 3, [3, 7, 90])
    for number in range(5):
        image, target = data[number]
        assert image.shape == (3, 80, 96)
        assert target["labels"].tolist() == [number % 3, (number + 1) % 3]
        for box, label in zip(target["boxes"], target["labels"], strict=True):
            x, y = ((box[:2] + box[2:]) / 2).int().tolist()
            torch.testing.assert_close(image[:, y, x], torch.tensor(COLOURS[label]) / 255)


def test_images_without_boxes_are_left_out_of_training_only(annotations: Path) -> None:
    data = CocoBoxes(annotations.parent, annotations, only_with_boxes=True)
    assert data.image_ids == [0, 10, 20, 30, 40]
    image, target = CocoBoxes(annotations.parent, annotations)[5]
    assert image.shape == (3, 80, 96)
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)


def test_boxes_end_at_the_image_and_have_a_pixel_at_least(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    path = write_json(
        tmp_path,
        {
            "images": [{"id": 1, "file_name": "a.png"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [30, -10, 20, 30]},
                {"id": 2, "image_id": 1, "category_id": 1, "bbox": [50, 50, 20, 30]},
                {"id": 3, "image_id": 1, "category_id": 1, "bbox": [5, 5, 0.5, 9]},
            ],
            "categories": [{"id": 1}],
        },
    )
    _, target = CocoBoxes(tmp_path, path)[0]
    assert target["boxes"].tolist() == [[30, 0, 40, 20]]
    assert target["labels"].tolist() == [0]


def test_augmentations_of_ssdlite_keep_boxes_on_their_shapes(annotations: Path) -> None:
    data = CocoBoxes(annotations.parent, annotations, ssdlite_transforms(64), only_with_boxes=True)
    plain = data[0][0]
    torch.manual_seed(0)
    for repeat in range(40):
        image, target = data[repeat % 5]
        assert image.shape == (3, 64, 64) and image.dtype == torch.float32
        assert image.min() >= 0 and image.max() <= 1
        boxes = target["boxes"]
        assert 1 <= len(boxes) == len(target["labels"])
        assert (boxes >= 0).all() and (boxes <= 64).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert type(image) is Tensor and type(boxes) is Tensor
    assert not torch.equal(plain, data[0][0])


def test_flips_of_retinanet_take_the_boxes_along(annotations: Path) -> None:
    data = CocoBoxes(annotations.parent, annotations, retinanet_transforms())
    plain, target = CocoBoxes(annotations.parent, annotations)[0]
    torch.manual_seed(0)
    seen = set()
    for _ in range(12):
        image, found = data[0]
        flipped = not torch.equal(image, plain)
        seen.add(flipped)
        torch.testing.assert_close(image, plain.flip(2) if flipped else plain)
        mirrored = torch.tensor([96.0, 0, 96, 0]) - target["boxes"][:, [2, 1, 0, 3]] * torch.tensor(
            [1.0, -1, 1, -1]
        )
        torch.testing.assert_close(found["boxes"], mirrored if flipped else target["boxes"])
    assert seen == {True, False}


def test_the_truth_has_an_average_precision_of_one(
    annotations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = CocoBoxes(annotations.parent, annotations)
    results = []
    for number, image_id in enumerate(data.image_ids):
        _, target = data[number]
        found = {**target, "scores": torch.ones(len(target["labels"]))}
        results += coco_results(found, image_id, data.category_ids)
    metrics = evaluate(results, data.coco)
    assert metrics["AP"] == metrics["AP50"] == metrics["AP75"] == pytest.approx(1.0)
    assert metrics["AP_large"] == -1  # there are none
    assert capsys.readouterr().out == ""


def test_wrong_boxes_have_a_lower_average_precision(annotations: Path) -> None:
    data = CocoBoxes(annotations.parent, annotations)
    results = []
    for number, image_id in enumerate(data.image_ids):
        _, target = data[number]
        found = {
            "boxes": target["boxes"] + torch.tensor([0.0, 0, 12, 0]),
            "labels": target["labels"],
            "scores": torch.ones(len(target["labels"])),
        }
        results += coco_results(found, image_id, data.category_ids)
    metrics = evaluate(results, data.coco)
    assert metrics["AP50"] == pytest.approx(1.0)
    assert 0 < metrics["AP"] < 0.7
    assert evaluate([], data.coco)["AP"] == 0


@pytest.mark.parametrize("kind", MAKERS)
def test_a_detector_learns_from_files_and_is_judged(kind: str, annotations: Path, cpu: Fabric) -> None:
    transforms = ssdlite_transforms(64) if kind == "ssdlite" else retinanet_transforms()
    data = CocoBoxes(annotations.parent, annotations, transforms, only_with_boxes=True)
    recipe = DetectionRecipe(epochs=4, repeats=2, batch_size=4, lr=2e-3, warmup_iterations=3)
    detector = MAKERS[kind]()
    network, optimizer = cpu.setup(detector, detection_optimizer(detector, recipe))
    torch.manual_seed(0)
    history = []
    for epoch in range(recipe.epochs):
        batches = training_loader(data, recipe, cpu, seed=0, epoch=epoch)
        assert len(batches) == 3
        history.append(train_epoch(network, optimizer, batches, recipe, epoch, cpu))
    assert history[-1]["loss"] < history[0]["loss"]
    last = history[-1]
    assert last["loss"] == pytest.approx(last["classification"] + last["bbox_regression"])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-3 * 0.5 * (1 + math.cos(math.pi * 3 / 4)))
    validation = CocoBoxes(annotations.parent, annotations)
    detector.rules = replace(detector.rules, min_score=0.0, detections=5)
    results = detect(network, validation, cpu, batch_size=4)
    assert [result["image_id"] for result in results] == [
        10 * number for number in range(6) for _ in range(5)
    ]
    assert {result["category_id"] for result in results} <= set(CATEGORIES)
    assert 0 <= evaluate(results, validation.coco)["AP"] <= 1


def test_a_diverging_run_is_said(annotations: Path, cpu: Fabric) -> None:
    data = CocoBoxes(annotations.parent, annotations, ssdlite_transforms(64), only_with_boxes=True)
    recipe = DetectionRecipe(epochs=1, repeats=1, batch_size=5, lr=1e30, warmup_iterations=0)
    detector = small_ssdlite()
    with torch.no_grad():
        next(detector.head.parameters()).fill_(math.nan)
    network, optimizer = cpu.setup(detector, detection_optimizer(detector, recipe))
    with pytest.raises(TenfoldError, match="the loss is no number any more in epoch 0"):
        train_epoch(network, optimizer, training_loader(data, recipe, cpu, 0, 0), recipe, 0, cpu)


GOOD: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
    "categories": [{"id": 1}],
}


def changed_box(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "annotations": [{**GOOD["annotations"][0], **changes}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ([], "has no list of images"),
        ({**GOOD, "categories": None}, "has no list of categories"),
        ({**GOOD, "images": [{"id": 1}]}, "'file_name' is missing"),
        (changed_box(image_id=2), "a box is in image 2, which is not listed"),
        (changed_box(category_id=2), "a box is of category 2, which is not listed"),
        (changed_box(bbox=[1, 2, 3]), r"the box \[1, 2, 3\] in image 1 is not x, y, width, height"),
        (changed_box(bbox=[1, 2, 3, "a"]), "of the wrong kind"),
        (changed_box(bbox=[1, 2, math.nan, 3]), "is not x, y, width, height"),
    ],
)
def test_malformed_annotations_are_said(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(TenfoldError, match=message):
        load_annotations(write_json(tmp_path, content))


def test_missing_and_damaged_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match=r"there is no file .*; give the annotations"):
        load_annotations(tmp_path / "none.json")
    path = write_json(tmp_path, GOOD)
    with pytest.raises(TenfoldError, match=r"there is no folder .*none; give the one"):
        CocoBoxes(tmp_path / "none", path)
    data = CocoBoxes(tmp_path, path)
    with pytest.raises(TenfoldError, match=r"there is no image .*a\.png"):
        data[0]
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(TenfoldError, match=r"a\.png cannot be read"):
        data[0]
    with pytest.raises(TenfoldError, match="has no image with boxes"):
        CocoBoxes(tmp_path, write_json(tmp_path, {**GOOD, "annotations": []}), only_with_boxes=True)
