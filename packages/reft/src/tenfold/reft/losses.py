"""Mask2Former's losses at points, for all prediction layers and images at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.reft.batches import Batch
from tenfold.reft.config import LossConfig
from tenfold.reft.mask2former import Predictions
from tenfold.reft.matching import Assignment, assign, matching_cost


def dice_loss(point_logits: Tensor, point_labels: Tensor, num_masks: Tensor | float) -> Tensor:
    """``sum_n (1 - (2 sum p t + 1) / (sum p + sum t + 1)) / num_masks``.

    Args:
        point_logits: [N, P].
        point_labels: from 0 to 1, [N, P].
        num_masks: by which the sum is divided.
    """
    return dice_of_masks(point_logits, point_labels).sum() / num_masks


def mask_bce_loss(point_logits: Tensor, point_labels: Tensor, num_masks: Tensor | float) -> Tensor:
    """Sum over masks of the mean binary cross-entropy over points, by ``num_masks``; arguments as above."""
    return bce_of_masks(point_logits, point_labels).sum() / num_masks


def dice_of_masks(point_logits: Tensor, point_labels: Tensor) -> Tensor:
    """Dice of each mask, [..., P] to [...]."""
    probabilities = point_logits.sigmoid()
    overlap = (probabilities * point_labels).sum(-1)
    return 1 - (2 * overlap + 1) / (probabilities.sum(-1) + point_labels.sum(-1) + 1)


def bce_of_masks(point_logits: Tensor, point_labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of each mask, [..., P] to [...]."""
    return F.binary_cross_entropy_with_logits(point_logits, point_labels, reduction="none").mean(-1)


def classification_loss(class_logits: Tensor, targets: Tensor, no_object_weight: float) -> Tensor:
    """Weighted mean cross-entropy of every layer.

    Args:
        class_logits: [..., B, Q, classes + 1].
        targets: [..., B, Q]; the last class is "no object".
        no_object_weight: by which those count; the others count 1.

    Returns:
        [...].
    """
    last = class_logits.shape[-1] - 1
    entropy = F.cross_entropy(class_logits.float().flatten(0, -2), targets.flatten(), reduction="none")
    weights = torch.where(targets == last, no_object_weight, 1.0)
    weighted = entropy.view_as(weights) * weights
    return weighted.sum((-1, -2)) / weights.sum((-1, -2))


@dataclass(frozen=True)
class SetLosses:
    """Losses of a batch, summed over layers, and the assignment they rest on."""

    total: Tensor
    class_loss: Tensor
    mask_loss: Tensor
    dice_loss: Tensor
    assignment: Assignment


def set_losses(
    predictions: Predictions,
    batch: Batch,
    config: LossConfig,
    num_masks: Tensor,
    generator: torch.Generator | None = None,
) -> SetLosses:
    """Match every layer's queries with the instances and compare them.

    Args:
        predictions: of the batch.
        batch: on the same device.
        config: weights and points.
        num_masks: instances of a process in the mean, at least 1.
        generator: of the points, on the device; torch's own by default.
    """
    with torch.autocast(batch.images.device.type, enabled=False):
        embeddings, features = predictions.mask_embeddings.float(), predictions.mask_features.float()
        with torch.no_grad():
            points = matching_points(batch, features, config, generator)
            at_points = sample(features, points)  # [B, m, P]
            cost = matching_cost(
                predictions.class_logits,
                batch.labels[None].expand(len(embeddings), -1, -1),
                torch.einsum("lbqm,bmp->lbqp", embeddings, at_points),
                sample(batch.masks.float(), points)[None],
                config,
            )
            found = assign(cost, batch.present)
        mask, dice = mask_losses(embeddings, features, batch, found, config, num_masks, generator)
        targets = query_targets(found, batch.labels, predictions.class_logits.shape)
        classes = classification_loss(predictions.class_logits, targets, config.no_object_weight).sum()
    total = config.class_weight * classes + config.mask_weight * mask + config.dice_weight * dice
    return SetLosses(total, classes, mask, dice, found)


def query_targets(found: Assignment, labels: Tensor, shape: torch.Size) -> Tensor:
    """Class of every query, "no object" where it stands for nothing, [L, B, Q].

    Args:
        found: the assignment.
        labels: of the instances, [B, N].
        shape: of the class logits.
    """
    layers, images, queries, classes = shape
    # One place more takes what is not matched, so that nothing is written twice.
    place = torch.where(found.matched, found.queries, queries)
    targets = torch.full((layers, images, queries + 1), classes - 1, device=labels.device)
    return targets.scatter(2, place, labels[None].expand(layers, -1, -1))[..., :queries]


def mask_losses(
    embeddings: Tensor,
    features: Tensor,
    batch: Batch,
    found: Assignment,
    config: LossConfig,
    num_masks: Tensor,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice of the matched masks of all layers.

    Masks of other queries are never computed; every image counts as many as the one with most instances.

    Args:
        embeddings: of masks, [L, B, Q, m].
        features: of masks, [B, m, h, w].
        batch: with the instances.
        found: the assignment.
        config: of the points.
        num_masks: by which sums are divided.
        generator: of the points.
    """
    layers, _, _, width = embeddings.shape
    chosen = embeddings.gather(2, found.queries[..., None].expand(-1, -1, -1, width))  # [L, B, N, m]
    images, places = found.images, found.places
    if not len(images):  # nothing to compare, but every weight still gets its (zero) gradient
        return chosen.sum() * 0 + features.sum() * 0, chosen.sum() * 0
    logits = torch.einsum("lbnm,bmhw->bnlhw", chosen, features)[images, places]  # [T, L, h, w]
    used = found.matched[:, images, places].T  # [T, L]
    flat = logits.flatten(0, 1)[:, None]
    with torch.no_grad():
        points = (
            cell_points(features, len(flat))
            if config.num_points == 0
            else uncertain_points(flat, config, generator)
        )
        instances = batch.masks[images, places][:, None].float()
        targets = sample(instances, points.reshape(len(instances), -1, 2)).view(len(instances), layers, -1)
    at_points = sample(flat, points)[:, 0].view_as(targets)
    bce = bce_of_masks(at_points, targets) * used
    dice = dice_of_masks(at_points, targets) * used
    return bce.sum() / num_masks, dice.sum() / num_masks


# -- points ----------------------------------------------------------------------------------------------


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps [B, c, h, w] at points [B, P, 2], x and y from 0 to 1; [B, c, P]."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]


def matching_points(
    batch: Batch, features: Tensor, config: LossConfig, generator: torch.Generator | None
) -> Tensor:
    """Points at which a batch is matched, the same for all layers and queries of an image, [B, P, 2]."""
    images = len(batch.images)
    if config.num_points == 0:
        return cell_points(features, images)
    return torch.rand(images, config.num_points, 2, device=features.device, generator=generator)


def cell_points(features: Tensor, count: int) -> Tensor:
    """Centres of all cells of a map [..., h, w], [count, h * w, 2]."""
    height, width = features.shape[-2:]
    y = (torch.arange(height, device=features.device) + 0.5) / height
    x = (torch.arange(width, device=features.device) + 0.5) / width
    centres = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1)
    return centres.flatten(0, 1).expand(count, -1, -1)


def uncertain_points(logits: Tensor, config: LossConfig, generator: torch.Generator | None = None) -> Tensor:
    """Points for each mask: the least certain of many, and some at random (PointRend).

    Args:
        logits: of the masks, [M, 1, h, w].
        config: how many.
        generator: of the points.

    Returns:
        [M, P, 2].
    """
    masks, device = len(logits), logits.device
    drawn = int(config.num_points * config.oversample_ratio)
    uncertain = int(config.importance_ratio * config.num_points)
    candidates = torch.rand(masks, drawn, 2, device=device, generator=generator)
    certainty = sample(logits, candidates)[:, 0].abs()
    index = certainty.topk(uncertain, dim=1, largest=False).indices
    kept = candidates.gather(1, index[..., None].expand(-1, -1, 2))
    rest = torch.rand(masks, config.num_points - uncertain, 2, device=device, generator=generator)
    return torch.cat((kept, rest), dim=1)
