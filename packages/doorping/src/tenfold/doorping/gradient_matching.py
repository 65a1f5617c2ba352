"""Gradient matching: how far the gradients of synthetic images are from those of real ones, all classes at once.

Source: Zhao et al., Dataset Condensation with Gradient Matching (ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tenfold.shared.logging import TenfoldError

Metric = Literal["ours", "mse", "cos"]
Gradients = dict[str, Tensor]

_EPSILON = 1e-6
IMAGES_AT_ONCE = 4096
"""Real images whose gradients are taken at once; more classes than fit are taken in turn, which bounds the memory."""
PIXELS_BY_CLASS = 16384
"""Pixels of a class's batch from which a CPU is faster class by class: grouped convolutions are slow there."""


def layer_distance(synthetic: Tensor, real: Tensor) -> Tensor:
    """Sum over rows of 1 - cosine of two gradients of one parameter; a scalar.

    Rows are the first axis with all others flattened: one for each output of a layer. Biases and other vectors count
    nothing.

    Raises:
        TenfoldError: the shapes differ.
    """
    return _row_distances(synthetic[None], real[None]).squeeze(0)


def _row_distances(synthetic: Tensor, real: Tensor) -> Tensor:
    """:func:`layer_distance` of K pairs, [K, *shape] to [K]."""
    if synthetic.shape != real.shape:
        raise TenfoldError(
            f"gradients of different shapes cannot be compared: {list(synthetic.shape)} and {list(real.shape)}"
        )
    if synthetic.ndim <= 2:
        return synthetic.new_zeros(len(synthetic))
    a, b = synthetic.flatten(2), real.flatten(2)
    product: Tensor = a.norm(dim=2) * b.norm(dim=2) + _EPSILON
    return (1 - (a * b).sum(dim=2) / product).sum(dim=1)


def match_loss(
    synthetic_grads: Sequence[Tensor], real_grads: Sequence[Tensor], metric: Metric = "ours"
) -> Tensor:
    """Distance between two lists of gradients, one for each parameter; a scalar.

    Args:
        synthetic_grads: of the synthetic images' loss.
        real_grads: of the real images' loss, of the same shapes.
        metric: ``ours``, the sum of :func:`layer_distance`; ``mse``, the sum of squared differences of all tensors;
            ``cos``, 1 - cosine of all tensors as one vector.
    """
    pairs = [(a[None], b[None]) for a, b in zip(synthetic_grads, real_grads, strict=True)]
    return _distances(pairs, metric).squeeze(0)


def _distances(pairs: Sequence[tuple[Tensor, Tensor]], metric: Metric) -> Tensor:
    """Distances of K pairs of gradients whose tensors are [K, *shape], [K]."""
    if metric == "ours":
        return torch.stack([_row_distances(a, b) for a, b in pairs]).sum(dim=0)
    synthetic, real = (torch.cat([pair[side].flatten(1) for pair in pairs], dim=1) for side in (0, 1))
    if metric == "mse":
        return (synthetic - real).square().sum(dim=1)
    if metric == "cos":
        product: Tensor = synthetic.norm(dim=1) * real.norm(dim=1) + _EPSILON
        return 1 - (synthetic * real).sum(dim=1) / product
    raise TenfoldError(f"unknown distance {metric!r}; choose ours, mse or cos")


class GradientMatcher:
    """The gradients of a network for all classes at once.

    Gradients are taken of what the distance looks at alone: ``ours`` ignores vectors such as biases, so none of theirs
    are computed.

    Args:
        model: its parameters and buffers as they are; batch norms in evaluation mode.
        metric: the distance.
    """

    def __init__(self, model: nn.Module, metric: Metric = "ours") -> None:
        self.metric = metric
        parameters = {name: value.detach() for name, value in model.named_parameters()}
        self._matched = {
            name: value for name, value in parameters.items() if metric != "ours" or value.ndim > 1
        }
        fixed = {name: value for name, value in parameters.items() if name not in self._matched}
        buffers = dict(model.named_buffers())

        def loss(matched: Gradients, images: Tensor, label: Tensor, weights: Tensor) -> Tensor:
            logits = functional_call(model, (matched, fixed, buffers), (images,))
            each = F.cross_entropy(logits, label.expand(len(images)), reduction="none")
            return (each * weights).sum() / weights.sum()

        self._gradient: Callable[..., Gradients] = grad(loss)

    def gradients(
        self, images: Tensor, labels: Tensor, weights: Tensor | None = None, chunk_size: int | None = None
    ) -> Gradients:
        """Gradients of every class's mean cross entropy.

        Args:
            images: [K, B, C, H, W].
            labels: of every class, int64 [K].
            weights: [K, B], 0 for images that fill a batch up; all count alike without it.
            chunk_size: classes taken at once; all without it.

        Returns:
            Name of a parameter to [K, *its shape].
        """
        if weights is None:
            weights = images.new_ones(images.shape[:2])
        batched = vmap(self._gradient, in_dims=(None, 0, 0, 0), chunk_size=chunk_size)
        found: Gradients = batched(self._matched, images, labels, weights)
        return found

    def real_gradients(self, images: Tensor, labels: Tensor, weights: Tensor | None = None) -> Gradients:
        """:meth:`gradients` of real images, a bounded number at a time; on a CPU class by class if they are large."""
        if (
            images.device.type == "cpu"
            and images.shape[1] * images.shape[-1] * images.shape[-2] >= PIXELS_BY_CLASS
        ):
            weights = images.new_ones(images.shape[:2]) if weights is None else weights
            found = [
                self._gradient(self._matched, *each) for each in zip(images, labels, weights, strict=True)
            ]
            return {name: torch.stack([gradients[name] for gradients in found]) for name in self._matched}
        return self.gradients(images, labels, weights, max(1, IMAGES_AT_ONCE // images.shape[1]))

    def losses(self, synthetic: Tensor, labels: Tensor, real_gradients: Gradients) -> Tensor:
        """Distance of every class, [K], differentiable in the synthetic images [K, ipc, C, H, W]."""
        found = self.gradients(synthetic, labels)
        return _distances([(found[name], real_gradients[name]) for name in found], self.metric)


def matching_step(
    model: nn.Module,
    synthetic_images: Tensor,
    real_batches: Tensor | Sequence[Tensor],
    ipc: int,
    metric: Metric = "ours",
) -> tuple[Tensor, Tensor]:
    """One step of gradient matching for all classes.

    Args:
        model: a network with K logits or more.
        synthetic_images: [K * ipc, C, H, W], ``ipc`` of every class in the order of the classes.
        real_batches: of every class, [K, B, C, H, W] or a list of [B_c, C, H, W].
        ipc: synthetic images of a class.
        metric: the distance.

    Returns:
        The matching loss of every class, [K], and the gradient of their sum with respect to the synthetic images.

    Raises:
        TenfoldError: the numbers of images do not fit.
    """
    real, weights = padded(real_batches)
    if len(synthetic_images) != len(real) * ipc:
        raise TenfoldError(
            f"{len(synthetic_images)} synthetic images are not {ipc} for each of {len(real)} classes"
        )
    matcher = GradientMatcher(model, metric)
    labels = torch.arange(len(real), device=real.device)
    synthetic = synthetic_images.detach().requires_grad_()
    targets = matcher.real_gradients(real, labels, weights)
    losses = matcher.losses(synthetic.unflatten(0, (-1, ipc)), labels, targets)
    (gradient,) = torch.autograd.grad(losses.sum(), synthetic)
    return losses.detach(), gradient


def padded(batches: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Batches of different sizes as one tensor [K, B, ...], and weights [K, B] that are 0 where it was filled up."""
    if isinstance(batches, Tensor):
        return batches, batches.new_ones(batches.shape[:2])
    longest = max(len(batch) for batch in batches)
    images = torch.stack(
        [F.pad(batch, (0, 0) * (batch.ndim - 1) + (0, longest - len(batch))) for batch in batches]
    )
    weights = images.new_zeros(len(batches), longest)
    for row, batch in zip(weights, batches, strict=True):
        row[: len(batch)] = 1
    return images, weights
