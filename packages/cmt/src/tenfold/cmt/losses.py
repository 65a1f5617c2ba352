"""Class and box losses after every decoder layer, of matched and of noised queries."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from tenfold.cmt.assignment import assign, column_weights, matching_costs
from tenfold.cmt.box_coding import box_codes, encode_boxes
from tenfold.cmt.config import HeadConfig, LossConfig
from tenfold.cmt.denoising import EMPTY, Denoising
from tenfold.cmt.head import Predictions

LOSSES = ("loss_cls", "loss_bbox", "dn_loss_cls", "dn_loss_bbox")
"""Rows of the losses of all layers."""
SPHERE = 3.14159 / 6
"""Volume of a sphere of diameter 1, as the released code has it."""


def focal_loss(logits: Tensor, labels: Tensor, kept: Tensor | None, config: LossConfig) -> Tensor:
    """Focal losses, summed over queries and classes, [L].

    Args:
        logits: [L, B, Q, C].
        labels: [L or 1, B, Q]; negative is background.
        kept: [B, Q], which queries count; None is all.
        config: alpha and gamma.
    """
    classes = torch.arange(logits.shape[-1], device=logits.device)
    targets = (labels[..., None] == classes).to(logits.dtype).expand_as(logits)
    losses: Tensor = sigmoid_focal_loss(logits, targets, config.focal_alpha, config.focal_gamma)
    if kept is not None:
        losses = losses * kept[..., None]
    return losses.flatten(1).sum(1)


def box_loss(codes: Tensor, targets: Tensor, kept: Tensor, weights: Tensor) -> Tensor:
    """Weighted L1 losses, summed over boxes and columns, [L]; rows of targets that are not finite are left out.

    Args:
        codes: [L, B, N, 10].
        targets: [L or 1, B, N, 10].
        kept: [L or 1, B, N], which rows count.
        weights: [10].
    """
    kept = kept & targets.isfinite().all(-1)
    distances = (codes - torch.where(kept[..., None], targets, 0)).abs() * weights
    return torch.where(kept[..., None], distances, 0).flatten(1).sum(1)


def detection_losses(
    predictions: Predictions,
    boxes: Tensor,
    labels: Tensor,
    counts: tuple[int, ...],
    config: LossConfig,
    head: HeadConfig,
    denoising: Denoising | None = None,
    fabric: Fabric | None = None,
) -> Tensor:
    """All losses with their weights; training minimises their sum.

    Classes and boxes are normalised by the counts of this process, the noised boxes by the mean count of all processes.

    Args:
        predictions: of all decoder layers.
        boxes: [B, G, 9].
        labels: [B, G], negative behind the last box of a sample.
        counts: boxes of each sample.
        config: weights.
        head: the order of outputs.
        denoising: the noised queries, if there are any.
        fabric: of several processes.

    Returns:
        [4, L]: the rows of :data:`LOSSES` for each layer; those of denoising are 0 without it.
    """
    codes, logits = box_codes(predictions.outputs, head.regression_order), predictions.outputs["cls_logits"]
    weights = column_weights(config.code_weights, codes.device)
    targets = encode_boxes(boxes)
    found = assign(matching_costs(codes.detach(), logits.detach(), targets, labels, config), counts)
    layers, batch, queries, _ = codes.shape
    # Boxes that no query stands for write to a place behind the last query.
    places = torch.where(found.matched, found.queries, queries)
    wanted = labels.new_full((layers, batch, queries + 1), EMPTY).scatter(
        2, places, labels.expand(layers, -1, -1)
    )
    background = batch * queries - found.count
    class_norm = max(1.0, found.count + config.background_weight * background)
    class_losses = focal_loss(logits, wanted[..., :queries], None, config) * (
        config.class_weight / class_norm
    )
    taken = codes.gather(2, found.queries[..., None].expand(-1, -1, -1, codes.shape[-1]))
    box_losses = box_loss(taken, targets[None], found.matched, weights) * (
        config.box_weight / max(1, found.count)
    )
    rows = [class_losses, box_losses]
    # All processes ask for the mean, also one whose samples have no box.
    noised = mean_over_processes(0 if denoising is None else denoising.total, fabric, codes.device)
    if denoising is None or predictions.noised is None:
        rows += [torch.zeros_like(class_losses)] * 2
    else:
        rows += denoising_losses(predictions.noised, denoising, config, head, weights, noised)
    return torch.nan_to_num(torch.stack(rows))


def denoising_losses(
    outputs: dict[str, Tensor],
    denoising: Denoising,
    config: LossConfig,
    head: HeadConfig,
    weights: Tensor,
    box_norm: Tensor | int,
) -> list[Tensor]:
    """Class and box losses of noised queries, [L] each; a query too far from its box still learns the box.

    Args:
        outputs: of the noised queries, after every layer.
        denoising: where they come from.
        config: weights.
        head: the order of outputs.
        weights: [10], of the columns of a box.
        box_norm: what box losses are divided by.
    """
    codes, logits = box_codes(outputs, head.regression_order), outputs["cls_logits"]
    real = denoising.labels != EMPTY
    class_norm = max(1.0, denoising.total * SPHERE * config.noise_split**3)
    class_losses = focal_loss(logits, denoising.labels[None], real, config)
    box_losses = box_loss(codes, encode_boxes(denoising.boxes)[None], real[None], weights)
    return [
        class_losses * (config.denoising_weight * config.class_weight / class_norm),
        box_losses * (config.denoising_weight * config.box_weight / box_norm),
    ]


def mean_over_processes(count: int, fabric: Fabric | None, device: torch.device) -> Tensor | int:
    """A count's mean over processes, at least 1."""
    if fabric is None or fabric.world_size == 1:
        return max(1, count)
    own = torch.full((), float(count), device=device)
    return fabric.all_reduce(own, reduce_op="mean").clamp(min=1)  # type: ignore[union-attr]


def by_released_names(losses: Tensor) -> dict[str, Tensor]:
    """Losses [4, L] under the names of the released code: those of the last layer plain, the others ``d0.`` and on."""
    layers = losses.shape[1]
    return {
        f"{'' if layer == layers - 1 else f'd{layer}.'}{name}": losses[row, layer]
        for layer in range(layers)
        for row, name in enumerate(LOSSES)
    }
