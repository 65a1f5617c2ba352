"""What both detectors share: EMO as a backbone, anchors and boxes, the choice of boxes, and training.

The rules are those of the authors' configurations, which are not torchvision's: boxes are matched otherwise, both
losses are divided by the positives of a batch, and boxes are chosen by level before non-maximum suppression.
``tenfold.emo.ssdlite`` and ``tenfold.emo.retinanet`` build the detectors, ``tenfold.emo.coco`` has their data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from tenfold.emo.checkpoints import load_weights, official_name
from tenfold.emo.model import EMO, build_model
from tenfold.shared.logging import TenfoldError

NUM_CLASSES = 80
"""Of COCO."""
WINDOW_SIZES = {"emo_5m": 10}
"""Of networks whose windows have not 7 pixels a side in detection."""
BACKGROUND, IGNORED = -1, -2
"""Instead of the class of an anchor."""
MAX_LOG_SCALE = math.log(1000 / 16)
"""Largest logarithm of the factor between sides of a box and of its anchor."""

Sizes = tuple[tuple[int, int], ...]
"""Height and width of every level."""
Target = dict[str, Tensor]
"""``boxes`` [n, 4], corners x1, y1, x2, y2 in pixels of the image, and ``labels`` [n], classes from 0."""
Losses = dict[str, Tensor]
"""``classification`` and ``bbox_regression``."""


# -- backbone --------------------------------------------------------------------------------------------


class Backbone(nn.Module):
    """EMO without its last norm and its head.

    Args:
        model: its norm and head are taken away.
        stages: from 1, whose maps are shown.
        norm_eval: batch norms keep to their running statistics while training; their weights and biases still learn.
        frozen_stages: last stage that learns nothing and stays in evaluation mode, with all before it; 0 is the stem,
            -1 none.

    Shapes:
        [B, 3, H, W] to one map for each stage, [B, C, H / stride, W / stride], strides 4, 8, 16, 32.
    """

    def __init__(
        self, model: EMO, stages: Sequence[int], norm_eval: bool = True, frozen_stages: int = -1
    ) -> None:
        super().__init__()
        self.indices = [stage - 1 for stage in stages]
        model.prune_intermediate_layers(self.indices, prune_norm=True)
        self.model = model
        self.channels = [model.architecture.widths[index] for index in self.indices]
        self.norm_eval, self.frozen_stages = norm_eval, frozen_stages
        for module in self._frozen():
            module.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.model.forward_intermediates(images, self.indices, intermediates_only=True)
        assert isinstance(maps, list)
        return maps

    def train(self, mode: bool = True) -> Backbone:
        """Training mode, but for batch norms and frozen stages."""
        super().train(mode)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        return [self.model.stem, *self.model.stages][: self.frozen_stages + 1]


def build_backbone_model(name: str, drop_path: float | None = None, weights: Path | None = None) -> EMO:
    """A network without head, with the windows of detection.

    Args:
        name: emo_1m, emo_2m, emo_5m or emo_6m.
        drop_path: stochastic depth of the last block; by default the classifier's.
        weights: file of a network trained on ImageNet; by default weights are random.

    Raises:
        TenfoldError: there is no such network, or the file does not fit it.
    """
    window_size = WINDOW_SIZES.get(name, 7)
    model = build_model(name, num_classes=0, drop_path=drop_path, window_sizes=[window_size] * 4)
    if weights is not None:
        load_weights(model, weights)
    return model


# -- anchors and boxes -----------------------------------------------------------------------------------


def encode_boxes(boxes: Tensor, anchors: Tensor, deviations: Sequence[float]) -> Tensor:
    """Shift of the centre by the anchor's sides and logarithm of the ratio of sides, by their deviations.

    Args:
        boxes: [n, 4], corners.
        anchors: [n, 4], corners.
        deviations: standard deviations of x, y, width and height.

    Returns:
        [n, 4].
    """
    centre, sides = _centre_and_sides(boxes)
    anchor_centre, anchor_sides = _centre_and_sides(anchors)
    code = torch.cat(((centre - anchor_centre) / anchor_sides, (sides / anchor_sides).log()), dim=1)
    return code / code.new_tensor(deviations)


def decode_boxes(codes: Tensor, anchors: Tensor, deviations: Sequence[float]) -> Tensor:
    """The boxes of codes, [n, 4]: what :func:`encode_boxes` was given."""
    codes = codes * codes.new_tensor(deviations)
    anchor_centre, anchor_sides = _centre_and_sides(anchors)
    centre = anchor_centre + codes[:, :2] * anchor_sides
    half = anchor_sides * codes[:, 2:].clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() / 2
    return torch.cat((centre - half, centre + half), dim=1)


def _centre_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]


def match_anchors(iou: Tensor, positive_iou: float, negative_iou: float, all_ties: bool) -> Tensor:
    """The box that each anchor is to find.

    An anchor takes the box that it overlaps most, from ``positive_iou`` on. Every box gets its best anchor, however
    little they overlap; of several boxes with the same best anchor, the last one does.

    Args:
        iou: intersection over union, [boxes, anchors].
        positive_iou: from which an anchor is positive.
        negative_iou: below which it is background; it is ignored in between.
        all_ties: a box gets all anchors that are equally good, and not the first of them only.

    Returns:
        [anchors], number of the box, or ``BACKGROUND``, or ``IGNORED``.
    """
    if not len(iou):
        return torch.full(iou.shape[1:], BACKGROUND, device=iou.device)
    overlap, box = iou.max(dim=0)
    box = box.masked_fill(overlap < positive_iou, IGNORED).masked_fill(overlap < negative_iou, BACKGROUND)
    if all_ties:
        is_best = iou == iou.max(dim=1, keepdim=True).values
    else:
        is_best = torch.zeros_like(iou, dtype=torch.bool).scatter_(1, iou.argmax(dim=1, keepdim=True), True)
    numbers = torch.arange(len(iou), dtype=torch.int32, device=iou.device)[:, None]
    claimed = torch.where(is_best & (iou > 0), numbers, -1).amax(dim=0).long()
    return torch.where(claimed >= 0, claimed, box)


# -- detector --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rules:
    """What makes a detector of logits and box codes."""

    anchors: Callable[[Sizes], Tensor]
    """[anchors, 4], corners in pixels, by level."""
    deviations: tuple[float, float, float, float]
    """Of the box codes."""
    positive_iou: float
    negative_iou: float
    all_ties: bool
    """Of :func:`match_anchors`."""
    loss: Callable[[Tensor, Tensor, Tensor, Tensor], Losses]
    """Of logits [B, anchors, outputs], box codes [B, anchors, 4], classes [B, anchors], or ``BACKGROUND`` or
    ``IGNORED``, and the codes that positive anchors are to have, [positives, 4]."""
    scores: Callable[[Tensor], Tensor]
    """Logits [..., outputs] to scores [..., classes]."""
    min_score: float
    """Of boxes that are kept."""
    nms_iou: float
    """From which the weaker of two boxes of one class is dropped."""
    detections: int
    """Kept in an image."""
    candidates: int = 1000
    """Pairs of box and class of each level before non-maximum suppression."""


class Detector(nn.Module):
    """Finds boxes of classes.

    Args:
        backbone: images to maps.
        neck: maps to levels.
        head: levels to ``cls_logits`` [B, anchors, outputs] and ``bbox_regression`` [B, anchors, 4].
        transform: normalises, resizes and pads images of values from 0 to 1.
        rules: of anchors, losses and choice.
        num_classes: labels are from 0 to one less.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: nn.Module,
        head: nn.Module,
        transform: GeneralizedRCNNTransform,
        rules: Rules,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.head, self.transform = backbone, neck, head, transform
        self.rules, self.num_classes = rules, num_classes

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> Losses | list[Target]:
        """Losses while training, otherwise the boxes that were found.

        Args:
            images: of any sizes, [3, H, W], values from 0 to 1, not normalised.
            targets: of each image; needed while training only.

        Returns:
            ``classification`` and ``bbox_regression``; or for each image ``boxes`` [n, 4] in its pixels, ``labels`` [n]
            and ``scores`` [n], the best first.

        Raises:
            TenfoldError: there are no targets to learn from, or a box or label of them is impossible.
        """
        original_sizes = [tuple(image.shape[-2:]) for image in images]
        if self.training:
            targets = checked_targets(targets, self.num_classes)
        batch, targets = self.transform(list(images), targets if self.training else None)
        levels = self.neck(self.backbone(batch.tensors))
        output = self.head(levels)
        logits, codes = output["cls_logits"].float(), output["bbox_regression"].float()
        sizes = tuple((level.shape[2], level.shape[3]) for level in levels)
        anchors = placed_anchors(self.rules.anchors, sizes, logits.device)
        if targets is not None:
            labels, wanted = zip(*(assign(anchors, target, self.rules) for target in targets), strict=True)
            return self.rules.loss(logits, codes, torch.stack(labels), torch.cat(wanted))
        found = self._choose(self.rules.scores(logits), codes, anchors, sizes, batch.image_sizes)
        return self.transform.postprocess(found, batch.image_sizes, original_sizes)  # type: ignore[no-any-return]

    def _choose(
        self,
        scores: Tensor,
        codes: Tensor,
        anchors: Tensor,
        sizes: Sizes,
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Target]:
        """The boxes of each image, level by level."""
        cells = [height * width for height, width in sizes]
        counts = [len(anchors) // sum(cells) * count for count in cells]
        levels = anchors.split(counts)
        return [
            choose_boxes(image_scores.split(counts), image_codes.split(counts), levels, size, self.rules)
            for image_scores, image_codes, size in zip(scores, codes, image_sizes, strict=True)
        ]


@lru_cache(maxsize=64)
def placed_anchors(make: Callable[[Sizes], Tensor], sizes: Sizes, device: torch.device) -> Tensor:
    """Anchors on a device, [anchors, 4]: made and copied once for each size of images."""
    with torch.inference_mode(False):  # they may be made while detecting and be learned with afterwards
        return make(sizes).to(device)


def checked_targets(targets: Sequence[Target] | None, num_classes: int) -> list[Target]:
    """Targets that can be learned from.

    Raises:
        TenfoldError: there are none, or a box or label of them is impossible.
    """
    if targets is None:
        raise TenfoldError("a detector in training mode needs targets; give them, or call eval() to detect")
    for number, target in enumerate(targets):
        boxes, labels = target["boxes"], target["labels"]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) != len(labels):
            raise TenfoldError(
                f"image {number} has boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)}; give [n, 4] and [n]"
            )
        if not (boxes[:, 2:] > boxes[:, :2]).all():
            raise TenfoldError(f"image {number} has a box without width or height; leave it out")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise TenfoldError(
                f"image {number} has a label outside 0 to {num_classes - 1}; build the detector with more classes"
            )
    return list(targets)


def assign(anchors: Tensor, target: Target, rules: Rules) -> tuple[Tensor, Tensor]:
    """What the anchors of an image are to say.

    Args:
        anchors: [anchors, 4].
        target: of the image, in the same pixels.
        rules: for the overlaps.

    Returns:
        Classes [anchors], or ``BACKGROUND``, or ``IGNORED``; and codes of positive anchors [positives, 4].
    """
    iou = box_iou(target["boxes"], anchors)
    labels = match_anchors(iou, rules.positive_iou, rules.negative_iou, rules.all_ties)
    positive = labels >= 0
    box = labels[positive]
    labels[positive] = target["labels"][box]
    return labels, encode_boxes(target["boxes"][box], anchors[positive], rules.deviations)


def choose_boxes(
    scores: Sequence[Tensor],
    codes: Sequence[Tensor],
    anchors: Sequence[Tensor],
    image_size: tuple[int, int],
    rules: Rules,
) -> Target:
    """The best boxes of one image, without those that a better one of the same class covers.

    Args:
        scores: of every level, [anchors, classes].
        codes: of every level, [anchors, 4].
        anchors: of every level, [anchors, 4].
        image_size: height and width, where boxes end.
        rules: for the numbers that are kept.

    Returns:
        ``boxes`` [n, 4], ``labels`` [n] and ``scores`` [n], the best first.
    """
    boxes, labels, kept_scores = [], [], []
    for level_scores, level_codes, level_anchors in zip(scores, codes, anchors, strict=True):
        pair_scores = level_scores.flatten()
        pairs = (pair_scores > rules.min_score).nonzero()[:, 0]
        best, order = pair_scores[pairs].topk(min(rules.candidates, len(pairs)))
        anchor = pairs[order] // level_scores.shape[1]
        boxes.append(decode_boxes(level_codes[anchor], level_anchors[anchor], rules.deviations))
        labels.append(pairs[order] % level_scores.shape[1])
        kept_scores.append(best)
    found = clip_boxes_to_image(torch.cat(boxes), image_size)
    has_area = (found[:, 2:] > found[:, :2]).all(dim=1)
    found, label, score = found[has_area], torch.cat(labels)[has_area], torch.cat(kept_scores)[has_area]
    kept = batched_nms(found, score, label, rules.nms_iou)[: rules.detections]
    return {"boxes": found[kept], "labels": label[kept], "scores": score[kept]}


# -- training --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DetectionRecipe:
    """How a detector is trained: AdamW, a cosine to 0 that changes by epoch, a warm-up, no clipping."""

    epochs: int
    repeats: int
    """Passes over the training images in an epoch."""
    batch_size: int
    """Images of an update, of all devices."""
    lr: float
    """After the warm-up."""
    weight_decay: float = 0.05
    warmup_iterations: int = 500
    """Of the linear warm-up."""
    warmup_ratio: float = 0.001
    """Of the rate, where the warm-up begins."""


def detection_learning_rate(epoch: int, iteration: int, recipe: DetectionRecipe) -> float:
    """The rate of one update.

    Args:
        epoch: from 0.
        iteration: of the update, from 0 in the whole run.
        recipe: of the run.
    """
    rate = recipe.lr * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))
    missing = max(0.0, 1 - iteration / recipe.warmup_iterations) if recipe.warmup_iterations else 0.0
    return rate * (1 - missing * (1 - recipe.warmup_ratio))


def detection_parameter_groups(detector: Detector, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters without decay, then those with it, as AdamW takes them.

    The authors exempt what has ``norm`` in its name: every norm of the backbone but the stem's first, which lies in a
    plain sequence. Batch norms of neck and head are called ``bn`` by their toolbox. So these are decayed, and so are
    all biases. Each group has the ``names`` of its parameters beside them; frozen ones are in none.
    """
    without: dict[str, nn.Parameter] = {}
    with_decay: dict[str, nn.Parameter] = {}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            ours = name.removeprefix("backbone.model.")
            is_norm = ours != name and "norm" in official_name(ours, has_layer_norm=False)
            (without if is_norm else with_decay)[name] = parameter
    return [
        {"params": list(group.values()), "names": list(group), "weight_decay": decay}
        for group, decay in ((without, 0.0), (with_decay, weight_decay))
    ]


def detection_optimizer(detector: Detector, recipe: DetectionRecipe) -> torch.optim.AdamW:
    """AdamW over both groups."""
    return torch.optim.AdamW(detection_parameter_groups(detector, recipe.weight_decay), lr=recipe.lr)


def train_epoch(
    detector: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: DataLoader[tuple[list[Tensor], list[Target]]],
    recipe: DetectionRecipe,
    epoch: int,
    fabric: Fabric,
) -> dict[str, float]:
    """One epoch.

    Args:
        detector: set up by Fabric.
        optimizer: set up by Fabric.
        batches: images and targets of each update, on Fabric's device.
        recipe: of the run.
        epoch: from 0.
        fabric: launched.

    Returns:
        Means of ``loss``, ``classification`` and ``bbox_regression`` over the epoch and all processes.

    Raises:
        TenfoldError: the loss is no number any more.
    """
    detector.train()
    sums = torch.zeros(3, device=fabric.device)
    for step, (images, targets) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = detection_learning_rate(epoch, epoch * len(batches) + step, recipe)
        losses = detector(images, targets)
        total = losses["classification"] + losses["bbox_regression"]
        optimizer.zero_grad()
        fabric.backward(total)
        optimizer.step()
        sums += torch.stack((total, losses["classification"], losses["bbox_regression"])).detach()
    means = torch.as_tensor(fabric.all_reduce(sums / len(batches), reduce_op="mean")).tolist()
    if not all(math.isfinite(mean) for mean in means):
        raise TenfoldError(f"the loss is no number any more in epoch {epoch}; lower the learning rate")
    return dict(zip(("loss", "classification", "bbox_regression"), means, strict=True))
