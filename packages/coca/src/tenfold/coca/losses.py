"""The losses of CoCa and of the rehearsal methods it builds on.

Symbols: B stream images, m images of a draw from memory, C classes, P projection dimensions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, mse_loss

from tenfold.shared.logging import TenfoldError

Diagonal = float | Literal["mask"]


def supervised_contrastive_loss(
    view_a: Tensor,
    view_b: Tensor,
    labels: Tensor | None = None,
    temperature: float = 0.07,
    base_temperature: float | None = None,
) -> Tensor:
    """L_sc: images of one class come together on the sphere, others apart (Khosla et al. 2020).

    Each of the 2N views is an anchor. With similarities ``s = F Fᵀ / temperature`` its loss is the mean of
    ``-log softmax(s)`` over the other views of its class, where the softmax leaves out the anchor itself.

    Args:
        view_a: [N, P], each of length 1.
        view_b: [N, P], another view of the same images.
        labels: [N]; without them only the two views of one image belong together (SimCLR).
        temperature: tau.
        base_temperature: the loss is scaled by temperature / base_temperature; by default by 1.

    Returns:
        Mean over the 2N anchors.
    """
    size = len(view_a)
    features = torch.cat([view_a, view_b])
    similarities = features @ features.t() / temperature
    itself = torch.eye(2 * size, dtype=torch.bool, device=features.device)
    if labels is None:
        labels = torch.arange(size, device=features.device)
    labels = torch.cat([labels, labels])
    positives = (labels[:, None] == labels) & ~itself
    log_probabilities = log_softmax(similarities.masked_fill(itself, -torch.inf), dim=1)
    per_anchor = -log_probabilities.masked_fill(~positives, 0).sum(dim=1) / positives.sum(dim=1)
    scale = 1.0 if base_temperature is None else temperature / base_temperature
    return scale * per_anchor.mean()


def relation_affinity(
    projection: Tensor, diagonal: Diagonal = 0.1, affinity_temperature: float = 1.0
) -> Tensor:
    """A: how much of each image's output the others take over, from their similarity.

    Args:
        projection: [m, P], each of length 1.
        diagonal: subtracted from an image's similarity to itself; "mask" leaves itself out.
        affinity_temperature: 1 in the authors' code, which makes the rows nearly uniform.

    Returns:
        [m, m], rows sum to 1.
    """
    similarity = projection @ projection.t()
    itself = torch.eye(len(projection), device=projection.device, dtype=projection.dtype)
    if diagonal == "mask":
        similarity = similarity.masked_fill(itself.bool(), -torch.inf)
    else:
        similarity = similarity - diagonal * itself
    return (similarity / affinity_temperature).softmax(dim=1)


@torch.no_grad()
def ensemble_outputs(
    outputs: Tensor,
    projection: Tensor,
    omega: float = 0.1,
    diagonal: Diagonal = 0.1,
    affinity_temperature: float = 1.0,
) -> Tensor:
    """O~ = (1 - omega) (I - omega A)⁻¹ o: outputs that have passed along the relations until nothing changes.

    Args:
        outputs: o, [m, C].
        projection: [m, P], each of length 1.
        omega: share that is taken over from others in each round, below 1.
        diagonal: of :func:`relation_affinity`.
        affinity_temperature: of :func:`relation_affinity`.

    Returns:
        [m, C], without gradient.
    """
    affinity = relation_affinity(projection, diagonal, affinity_temperature)
    identity = torch.eye(len(affinity), device=affinity.device, dtype=affinity.dtype)
    # solve_ex: the check in solve would make the host wait for the device; rows of A sum to 1, so omega < 1 suffices.
    solution: Tensor = torch.linalg.solve_ex(identity - omega * affinity, outputs.to(affinity.dtype)).result
    return (1 - omega) * solution


def collaborative_distillation_loss(
    outputs: Tensor,
    reserved: Tensor,
    projection: Tensor | None,
    omega: float = 0.1,
    gamma: float = 0.01,
    diagonal: Diagonal = 0.1,
    affinity_temperature: float = 1.0,
) -> Tensor:
    """L_cd: distance of the outputs to a blend of the stored ones and the present ensemble, without alpha.

    With ``gamma = 0`` it is DER's distance to the stored outputs, and ``projection`` is not looked at.

    Args:
        outputs: o, [m, C]; the only argument that gets a gradient.
        reserved: l, [m, C], stored when the images entered the memory.
        projection: [m, P], each of length 1.
        omega: of :func:`ensemble_outputs`.
        gamma: weight of the ensemble in the target.
        diagonal: of :func:`relation_affinity`.
        affinity_temperature: of :func:`relation_affinity`.

    Raises:
        TenfoldError: projections are needed and not there.
    """
    if gamma == 0:
        return mse_loss(outputs, reserved)
    if projection is None:
        raise TenfoldError("collaborative distillation needs projections, unless gamma is 0")
    ensemble = ensemble_outputs(outputs.detach(), projection.detach(), omega, diagonal, affinity_temperature)
    return mse_loss(outputs, (1 - gamma) * reserved + gamma * ensemble)


def masked_cross_entropy(logits: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
    """Cross-entropy over some of the classes.

    Args:
        logits: [N, C].
        labels: [N], each one of ``classes``.
        classes: [C], True for those that compete; by default all.
    """
    return cross_entropy(logits if classes is None else logits.masked_fill(~classes, -torch.inf), labels)


def present_classes(labels: Tensor, num_classes: int) -> Tensor:
    """[C], True where a class occurs among the labels."""
    return membership(labels, num_classes).any(dim=0)


def membership(labels: Tensor, num_classes: int) -> Tensor:
    """[N, C], True at each label; unlike torch's ``one_hot`` it never makes the host wait to check the labels."""
    return labels[:, None] == torch.arange(num_classes, device=labels.device)


def er_loss(stream_logits: Tensor, stream_labels: Tensor, draw_logits: Tensor, draw_labels: Tensor) -> Tensor:
    """Experience replay: one cross-entropy over stream and memory images together."""
    return cross_entropy(torch.cat([stream_logits, draw_logits]), torch.cat([stream_labels, draw_labels]))


def der_loss(
    stream_logits: Tensor, stream_labels: Tensor, draw_logits: Tensor, reserved: Tensor, alpha: float
) -> Tensor:
    """Dark experience replay: stream cross-entropy, and alpha times the distance to stored outputs."""
    return cross_entropy(stream_logits, stream_labels) + alpha * mse_loss(draw_logits, reserved)


def derpp_loss(
    stream_logits: Tensor,
    stream_labels: Tensor,
    draw_logits: Tensor,
    reserved: Tensor,
    second_logits: Tensor,
    second_labels: Tensor,
    alpha: float,
    beta: float,
) -> Tensor:
    """DER++: :func:`der_loss`, and beta times the cross-entropy of a second, independent draw."""
    loss = der_loss(stream_logits, stream_labels, draw_logits, reserved, alpha)
    return loss + beta * cross_entropy(second_logits, second_labels)
