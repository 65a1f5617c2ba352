"""From the class and mask logits of the queries to instances, and to COCO's form of results (specification 1.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pycocotools import mask as mask_utils
from torch import Tensor

TOP_K = 100
"""Instances of an image that COCO counts."""
_EPSILON = 1e-6
_PIXELS_AT_ONCE = 1 << 24
"""Mask pixels that are enlarged together: 64 MiB of floats."""


@dataclass(frozen=True)
class Instances:
    """The best pairs of query and class of one image, in descending order of the class's probability."""

    scores: Tensor
    """[k], probability of the class times the mean probability inside the mask."""
    class_scores: Tensor
    """[k], probability of the class."""
    labels: Tensor
    """[k], classes from 0."""
    query_index: Tensor
    """[k], which query; one occurs several times with different classes."""
    query_masks: Tensor
    """[Q, H, W], bool, of all queries."""

    @property
    def masks(self) -> Tensor:
        """[k, H, W], bool."""
        return self.query_masks[self.query_index]

    @property
    def mask_areas(self) -> Tensor:
        """[k], pixels."""
        return self.query_masks.sum((1, 2))[self.query_index]


def instance_inference(class_logits: Tensor, mask_logits: Tensor, topk: int = TOP_K) -> Instances:
    """Instances of one image.

    Args:
        class_logits: [Q, K + 1], the last one for no object.
        mask_logits: [Q, H, W] at the size of the image.
        topk: pairs of query and class; all of them where there are fewer.
    """
    class_scores, labels, query_index = best_pairs(class_logits[None], topk)
    masks, confidence = binarise(mask_logits)
    scores = class_scores[0] * confidence[query_index[0]]
    return Instances(scores, class_scores[0], labels[0], query_index[0], masks)


def best_pairs(class_logits: Tensor, topk: int) -> tuple[Tensor, Tensor, Tensor]:
    """The most probable pairs of query and class, for all images at once.

    Args:
        class_logits: [B, Q, K + 1], the last one for no object.
        topk: pairs of each image; all of them where there are fewer.

    Returns:
        Probabilities, classes and queries, each [B, k], in descending order of probability.
    """
    probabilities = class_logits.float().softmax(-1)[..., :-1]
    classes = probabilities.shape[-1]
    flat = probabilities.flatten(1)
    scores, index = flat.topk(min(topk, flat.shape[1]), dim=1)
    return scores, index % classes, index.div(classes, rounding_mode="floor")


def binarise(mask_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of some queries, and how sure they are.

    Args:
        mask_logits: [n, H, W].

    Returns:
        Where the logits are positive [n, H, W], and the mean probability inside [n], which is 0 for an empty mask.
    """
    logits = mask_logits.float()
    masks = logits > 0
    inside = (logits.sigmoid() * masks).sum((1, 2))
    return masks, inside / (masks.sum((1, 2)) + _EPSILON)


@torch.inference_mode()
def detections(
    class_logits: Tensor,
    mask_logits: Tensor,
    padded_size: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
    original_sizes: Sequence[tuple[int, int]],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    topk: int = TOP_K,
) -> list[dict[str, Any]]:
    """Instances of a batch in COCO's form of results; empty masks are left out.

    Masks are enlarged to the padded images, cut to the images, and resized to the original images before they are
    judged: those of queries among the best pairs alone, each once whatever the number of its classes, and a few
    at a time.

    Args:
        class_logits: [B, Q, K + 1], the last one for no object.
        mask_logits: [B, Q, h, w], at a stride of 4 for instance.
        padded_size: height and width of the images that the network saw.
        sizes: of each image, height and width without the padding at the right and the bottom.
        original_sizes: of each image, height and width in its file.
        image_ids: numbers of the images.
        category_ids: numbers of the K classes.
        topk: most instances of an image.

    Returns:
        For each instance ``image_id``, ``category_id``, ``segmentation`` (RLE as text), ``bbox`` (the tight box of the
        mask: x, y, width, height) and ``score``.
    """
    class_scores, labels, query_index = (value.cpu() for value in best_pairs(class_logits, topk))
    results: list[dict[str, Any]] = []
    for image, image_id in enumerate(image_ids):
        used, position = query_index[image].unique(return_inverse=True)
        parts = _enlarged(
            mask_logits[image], used, padded_size, tuple(sizes[image]), tuple(original_sizes[image])
        )
        rles: list[dict[str, Any]] = []
        confidences = []
        for logits in parts:
            masks, confidence = binarise(logits)
            rles.extend(_encode(masks))
            confidences.append(confidence)
        scores = (class_scores[image] * torch.cat(confidences).cpu()[position]).tolist()
        areas, boxes = mask_utils.area(rles).tolist(), mask_utils.toBbox(rles).tolist()
        segmentations = [{"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in rles]
        results.extend(
            {
                "image_id": image_id,
                "category_id": category_ids[label],
                "segmentation": segmentations[index],
                "bbox": boxes[index],
                "score": score,
            }
            for score, label, index in zip(scores, labels[image].tolist(), position.tolist(), strict=True)
            if areas[index]
        )
    return results


def _enlarged(
    mask_logits: Tensor,
    used: Tensor,
    padded_size: tuple[int, int],
    size: tuple[int, ...],
    original_size: tuple[int, ...],
) -> Iterator[Tensor]:
    """Logits [n, H, W] at the original size of a few of the used queries at a time."""
    height, width = size
    at_once = max(
        1, _PIXELS_AT_ONCE // max(padded_size[0] * padded_size[1], original_size[0] * original_size[1])
    )
    for part in used.to(mask_logits.device).split(at_once):
        logits = _resized(mask_logits[part].float(), padded_size)[:, :height, :width]
        yield _resized(logits, original_size)


def _resized(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def _encode(masks: Tensor) -> list[dict[str, Any]]:
    """Run lengths of masks [n, H, W]. Columns come first in them, hence the transposed copy on the device."""
    columns = masks.transpose(1, 2).to(torch.uint8).contiguous().cpu().numpy()
    encoded: list[dict[str, Any]] = mask_utils.encode(columns.transpose(2, 1, 0))
    return encoded
