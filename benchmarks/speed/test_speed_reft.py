"""RefT: Mask2Former's step by this package against transformers' own modules, whole and in its parts.

Both sides have the same weights and inputs, and are checked to agree before they are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerHungarianMatcher,
    Mask2FormerLoss,
    multi_scale_deformable_attention,
)

from tenfold.reft.backbones import backbone_config
from tenfold.reft.batches import Batch
from tenfold.reft.config import LossConfig, NetworkConfig, ReferenceConfig
from tenfold.reft.deformable_attention import deformable_attention
from tenfold.reft.losses import set_losses
from tenfold.reft.mask2former import Predictions, library_config, quiet_library
from tenfold.reft.matching import assign, matching_cost
from tenfold.reft.model import RefT
from tenfold.reft.references import FeatureReference, References
from tenfold.reft.suites import OFF

IMAGES, INSTANCES, CLASSES, SIZE = 2, 6, 60, 256
NETWORK = NetworkConfig("small", 128, 8, 3, 512, 9, 512, 100)
LOSSES = LossConfig(num_points=4096)


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@pytest.fixture(scope="module")
def network() -> RefT:
    torch.manual_seed(0)
    return RefT(NETWORK, OFF, CLASSES).freeze_batch_norm().eval()


@pytest.fixture(scope="module")
def library(network: RefT) -> Mask2FormerForUniversalSegmentation:
    """The library's network with the same weights, batch norms at inference."""
    with quiet_library():
        config = library_config(NETWORK, backbone_config("small"), CLASSES)
        config.train_num_points = LOSSES.num_points
        made = Mask2FormerForUniversalSegmentation(config)
    missing, unexpected = made.load_state_dict(network.state_dict(), strict=False)
    assert not unexpected
    assert all("num_batches_tracked" in name or name.startswith("criterion") for name in missing)
    return made.eval()


@pytest.fixture(scope="module")
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=generator)
    masks = torch.zeros(IMAGES, INSTANCES, SIZE, SIZE, dtype=torch.bool)
    for image in range(IMAGES):
        for place in range(INSTANCES):
            top, left = torch.randint(SIZE // 2, (2,), generator=generator).tolist()
            masks[image, place, top : top + 60, left : left + 90] = True
    labels = torch.randint(CLASSES, (IMAGES, INSTANCES), generator=generator)
    return Batch(images, masks, labels)


@pytest.fixture(scope="module")
def predictions(network: RefT, batch: Batch) -> Predictions:
    with torch.no_grad():
        found: Predictions = network(batch.images)
    return found


def all_masks(predictions: Predictions) -> Tensor:
    return torch.einsum("lbqm,bmhw->lbqhw", predictions.mask_embeddings, predictions.mask_features)


# -- parts -----------------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="reft")
def test_deformable_attention_against_the_stacked_formulation(measure_ratio: Callable[..., Any]) -> None:
    shapes = [(16, 16), (32, 32), (64, 64)]
    cells = sum(height * width for height, width in shapes)
    value = torch.randn(1, cells, 8, 32, requires_grad=True)
    locations = torch.rand(1, cells, 8, 3, 4, 2, requires_grad=True)
    weights = torch.randn(1, cells, 8, 12).softmax(-1).view(1, cells, 8, 3, 4).requires_grad_()

    def ours() -> Tensor:
        return deformable_attention(value, shapes, locations, weights)

    def theirs() -> Tensor:
        return multi_scale_deformable_attention(value, shapes, locations, weights)  # type: ignore[arg-type]

    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-5)
    measure_ratio(
        lambda: torch.autograd.grad(ours().sum(), (value, locations, weights)),
        lambda: torch.autograd.grad(theirs().sum(), (value, locations, weights)),
        reference="transformers' deformable attention, forward and backward",
        peer="transformers",
        unit="512 px",
    )


@pytest.mark.benchmark(group="reft")
def test_matching_against_a_loop_over_layers_and_images(
    measure_ratio: Callable[..., Any], predictions: Predictions, batch: Batch
) -> None:
    layers = len(predictions.queries)
    matcher = Mask2FormerHungarianMatcher(2.0, 5.0, 5.0, LOSSES.num_points)
    masks = all_masks(predictions)
    points = torch.rand(IMAGES, LOSSES.num_points, 2)

    def ours() -> Any:
        from tenfold.reft.losses import sample

        at_points = sample(predictions.mask_features, points)
        cost = matching_cost(
            predictions.class_logits,
            batch.labels[None].expand(layers, -1, -1),
            torch.einsum("lbqm,bmp->lbqp", predictions.mask_embeddings, at_points),
            sample(batch.masks.float(), points)[None],
            LOSSES,
        )
        return assign(cost, batch.present)

    def theirs() -> Any:
        return [
            matcher(masks[layer], predictions.class_logits[layer], list(batch.masks), list(batch.labels))
            for layer in range(layers)
        ]

    found, expected = ours(), theirs()
    agreeing = [
        int(found.queries[layer, image, target]) == int(query)
        for layer in range(layers)
        for image, (queries, targets) in enumerate(expected[layer])
        for query, target in zip(queries, targets, strict=True)
    ]
    assert sum(agreeing) / len(agreeing) > 0.5  # the points are random on both sides
    measure_ratio(
        ours, theirs, reference="transformers' matcher, layer by layer", peer="transformers", unit="batches"
    )


@pytest.mark.benchmark(group="reft")
def test_losses_against_the_library(
    measure_ratio: Callable[..., Any],
    library: Mask2FormerForUniversalSegmentation,
    predictions: Predictions,
    batch: Batch,
) -> None:
    criterion: Any = library.criterion
    assert isinstance(criterion, Mask2FormerLoss)
    num_masks = batch.present.sum().float()
    given = (predictions.mask_embeddings, predictions.mask_features, predictions.class_logits)
    embeddings, features, logits = (value.clone().requires_grad_() for value in given)

    def ours() -> Tensor:
        copied = Predictions(predictions.queries, logits, embeddings, features)
        return set_losses(copied, batch, LOSSES, num_masks).total

    def theirs() -> Tensor:
        masks = torch.einsum("lbqm,bmhw->lbqhw", embeddings, features)
        earlier = [
            {"masks_queries_logits": masks[layer], "class_queries_logits": logits[layer]}
            for layer in range(len(masks) - 1)
        ]
        found = criterion(masks[-1], logits[-1], list(batch.masks.float()), list(batch.labels), earlier)
        weights = {"cross_entropy": 2.0, "mask": 5.0, "dice": 5.0}
        total: Tensor = sum(  # type: ignore[assignment]
            weight * value
            for name, value in found.items()
            for part, weight in weights.items()
            if name.startswith(f"loss_{part}")
        )
        return total

    torch.testing.assert_close(ours(), theirs(), rtol=0.05, atol=0.0)  # random points on both sides
    measure_ratio(
        lambda: torch.autograd.grad(ours(), (embeddings, features, logits)),
        lambda: torch.autograd.grad(theirs(), (embeddings, features, logits)),
        reference="transformers' losses and matching of all layers, forward and backward",
        peer="transformers",
        unit="batches",
    )


@pytest.mark.benchmark(group="reft")
def test_query_decoder_at_inference_against_masks_at_full_size(
    measure_ratio: Callable[..., Any],
    network: RefT,
    library: Mask2FormerForUniversalSegmentation,
    batch: Batch,
) -> None:
    def ours() -> Tensor:
        with torch.no_grad():
            found: Predictions = network(batch.images)
            return found.masks()

    def theirs() -> Tensor:
        with torch.no_grad():
            masks: Tensor = library(batch.images).masks_queries_logits
            return masks

    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-2)
    measure_ratio(
        ours, theirs, reference="transformers' forward pass at inference", peer="transformers", unit="batches"
    )


@pytest.mark.benchmark(group="reft")
def test_training_step_against_the_library(
    measure_ratio: Callable[..., Any],
    network: RefT,
    library: Mask2FormerForUniversalSegmentation,
    batch: Batch,
) -> None:
    num_masks = batch.present.sum().float()

    def ours() -> None:
        network.zero_grad()
        set_losses(network(batch.images), batch, LOSSES, num_masks).total.backward()

    def theirs() -> None:
        library.zero_grad()
        found = library(batch.images, mask_labels=list(batch.masks.float()), class_labels=list(batch.labels))
        found.loss.backward()

    measure_ratio(
        ours,
        theirs,
        rounds=3,
        reference="transformers' Mask2Former, forward, losses, backward",
        peer="transformers",
        unit="batches",
    )


@pytest.mark.benchmark(group="reft")
def test_feature_reference_against_a_loop_over_images_and_levels(measure_ratio: Callable[..., Any]) -> None:
    """All classes at once, against one class after another as centres are usually compared."""
    width, classes = 256, 80
    reference = FeatureReference(width)
    torch.nn.init.xavier_uniform_(reference.value.weight)
    features, centres = torch.randn(IMAGES, width, 32, 32), torch.randn(classes, width)
    present = torch.ones(classes, dtype=torch.bool)

    def ours() -> Tensor:
        with torch.no_grad():
            found: Tensor = reference(features, centres, present)
            return found

    def theirs() -> Tensor:
        with torch.no_grad():
            keys = reference.key(torch.cat((centres, reference.background)))
            values = reference.value(centres)
            outputs = []
            for image in features:
                query = reference.query(image.flatten(1).T)
                scores = torch.stack([(query * key).sum(-1) / width**0.5 for key in keys], dim=-1).softmax(-1)
                centre = sum(scores[:, place, None] * value for place, value in enumerate(values))
                outputs.append(image * (1 + torch.tanh(centre).T.view_as(image)))  # type: ignore[arg-type, union-attr]
            return torch.stack(outputs)

    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-5)
    measure_ratio(ours, theirs, rounds=3, reference="a loop over images and classes", unit="batches")


def test_references_add_little_to_the_forward_pass(network: RefT, batch: Batch) -> None:
    """At test time centres and support queries are constants."""
    torch.manual_seed(0)
    referring = RefT(NETWORK, ReferenceConfig(), CLASSES).freeze_batch_norm().eval()
    width = NETWORK.hidden_dim
    centres = tuple(torch.randn(CLASSES, width) for _ in range(3))
    present = torch.ones(CLASSES, dtype=torch.bool)
    references = References(
        centres, present, torch.randn(512, width), torch.zeros(512).long(), torch.ones(512)
    )
    with torch.no_grad():
        plain, referred = (lambda: network(batch.images)), (lambda: referring(batch.images, references))
        plain()
        referred()
        ratio = sorted(seconds_of(referred) / seconds_of(plain) for _ in range(5))[2]
    assert ratio < 1.5
