"""CMT: the fusion head's forward pass, a training step and sparse convolution against plain ways of doing them.

The plain head is what the equations say, step by step: matrices are inverted one by one on the host, every pixel and
every query in every camera sends 64 points through the first layer, attention stores its scores, heads and losses are
computed layer by layer, and matching copies to the host once for each layer and sample. Both sides have the same
weights and inputs, and are checked to agree before they are timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tenfold.cmt.box_coding import box_codes, encode_boxes
from tenfold.cmt.config import CLASSES, HeadConfig, LidarConfig, LossConfig
from tenfold.cmt.denoising import Denoising, prepare_denoising
from tenfold.cmt.head import CmtHead
from tenfold.cmt.losses import detection_losses
from tenfold.cmt.sparse_encoder import SparseEncoder, plan_encoder

RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
IMAGE, STRIDE, CAMERAS, MAP = (160, 400), 16, 6, 48
CONFIG = HeadConfig(dropout=0.0)
LOSSES = LossConfig()
WEIGHTS = torch.tensor(LOSSES.code_weights)
BOXES = (14, 20)


# -- the plain head --------------------------------------------------------------------------------------


def sinusoid(points: Tensor, features: int) -> Tensor:
    parts = []
    for axis in (1, 0):
        columns = []
        for number in range(features):
            divisor = 2 * (number // 2) / features + 1
            angle = points[..., axis] * 2 * math.pi / divisor
            columns.append(angle.sin() if number % 2 == 0 else angle.cos())
        parts.append(torch.stack(columns, dim=-1))
    return torch.cat(parts, dim=-1)


def ray_points(pixels: Tensor, depth_scale: Tensor, image2lidar: Tensor) -> Tensor:
    """[N, 3 * 64] normalised points on the rays of pixels [N, 2]."""
    depths = 1 + (RANGE[3] - 1) / CONFIG.depth_bins * torch.arange(CONFIG.depth_bins)
    homogeneous = torch.cat(
        (
            pixels[:, None] * depths[:, None],
            (depth_scale * depths)[..., None],
            torch.ones(len(pixels), len(depths), 1),
        ),
        dim=-1,
    )
    points = (image2lidar @ homogeneous[..., None])[..., :3, 0]
    low, high = torch.tensor(RANGE[:3]), torch.tensor(RANGE[3:])
    return ((points - low) / (high - low)).flatten(1)


def plain_positions(head: CmtHead, matrices: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of all tokens [B, T, D] and embeddings of all queries [B, Q, D]."""
    tokens, queries = [], []
    y, x = torch.meshgrid((torch.arange(MAP) + 0.5) / MAP, (torch.arange(MAP) + 0.5) / MAP, indexing="ij")
    cells = torch.stack((x, y), dim=-1).view(-1, 2)
    height, width = IMAGE[0] // STRIDE, IMAGE[1] // STRIDE
    v, u = torch.meshgrid(torch.arange(height) * STRIDE, torch.arange(width) * STRIDE, indexing="ij")
    pixels = torch.stack((u, v), dim=-1).view(-1, 2).float()
    for sample in range(len(matrices)):
        parts = [head.bev_embedding(sinusoid(cells, CONFIG.hidden))]
        embedded = head.bev_embedding(sinusoid(points[sample], CONFIG.hidden))
        metric = points[sample] * head.extent + head.low
        for camera in range(CAMERAS):
            matrix = matrices[sample, camera].float()
            inverse = torch.from_numpy(np.linalg.inv(matrices[sample, camera].numpy())).float()
            parts.append(head.rv_embedding(ray_points(pixels, torch.ones(len(pixels), 1), inverse)))
            seen = metric @ matrix[:3, :3].T + matrix[:3, 3]
            depth = seen[:, 2:].detach()
            seen = seen / torch.where(depth > 0, depth + 1e-6, depth - 1e-6)
            visible = (depth[:, 0] > 0) & (seen[:, 0] >= 0) & (seen[:, 0] < IMAGE[1])
            visible = visible & (seen[:, 1] >= 0) & (seen[:, 1] < IMAGE[0])
            found = head.rv_embedding(ray_points(seen[:, :2], seen[:, 2:], inverse))
            embedded = embedded + found * visible[:, None]
        tokens.append(torch.cat(parts))
        queries.append(embedded)
    return torch.stack(tokens), torch.stack(queries)


def plain_attention(
    attention: Any, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None
) -> Tensor:
    wq, wk, wv = attention.in_proj_weight.chunk(3)
    bq, bk, bv = attention.in_proj_bias.chunk(3)

    def split(values: Tensor) -> Tensor:
        return values.unflatten(-1, (attention.heads, -1)).transpose(1, 2)

    q, k, v = split(F.linear(query, wq, bq)), split(F.linear(key, wk, bk)), split(F.linear(value, wv, bv))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if blocked is not None:
        scores = scores.masked_fill(blocked, float("-inf"))
    return attention.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def plain_task(head: CmtHead, states: list[Tensor], points: Tensor) -> list[dict[str, Tensor]]:
    """Outputs of every layer, one head after another."""
    start = torch.special.logit(points.clamp(1e-5, 1 - 1e-5))
    found = []
    for layer, state in enumerate(states):
        outputs = {}
        for name in ("center", "height", "dim", "rot", "vel", "cls_logits"):
            parts = head.task_heads[0].get_submodule(name)
            first = parts["0"].weight.chunk(CONFIG.layers)[layer]
            scale, shift = (one.chunk(CONFIG.layers)[layer] for one in (parts["1"].weight, parts["1"].bias))
            last, bias = (one.chunk(CONFIG.layers)[layer] for one in (parts["3"].weight, parts["3"].bias))
            hidden = F.conv1d(state.transpose(1, 2), first)
            hidden = F.layer_norm(hidden.transpose(1, 2), (CONFIG.task_channels,), scale, shift, 1e-6).relu()
            outputs[name] = F.conv1d(hidden.transpose(1, 2), last, bias).transpose(1, 2)
        outputs["center"] = (outputs["center"] + start[..., :2]).sigmoid() * head.extent[:2] + head.low[:2]
        outputs["height"] = (outputs["height"] + start[..., 2:]).sigmoid() * head.extent[2:] + head.low[2:]
        found.append(outputs)
    return found


def plain_forward(
    head: CmtHead, bev: Tensor, images: Tensor, matrices: Tensor, noised: Denoising | None = None
) -> list[dict[str, Tensor]]:
    batch = len(bev)
    points = head.reference_points.weight.expand(batch, -1, -1)
    blocked = None
    if noised is not None:
        points = torch.cat((noised.points, points), dim=1)
        blocked = torch.zeros(points.shape[1], points.shape[1], dtype=torch.bool)
        blocked[noised.size :, : noised.size] = True
        most = noised.size // noised.groups
        for group in range(noised.groups):
            own = slice(group * most, (group + 1) * most)
            blocked[own, : group * most] = True
            blocked[own, (group + 1) * most : noised.size] = True
    points = torch.special.logit(points.clamp(1e-5, 1 - 1e-5)).sigmoid()
    cells = F.relu(head.shared_conv.bn(head.shared_conv.conv(bev))).flatten(2).transpose(1, 2)
    seen = images.unflatten(0, (batch, CAMERAS)).permute(0, 1, 3, 4, 2).flatten(1, 3)
    tokens = torch.cat((cells, seen), dim=1)
    positions, embedded = plain_positions(head, matrices, points)
    state, states = torch.zeros_like(embedded), []
    for layer in head.transformer.decoder.layers:
        itself, across = (one.attn for one in layer.attentions)
        read = plain_attention(itself, state + embedded, state + embedded, state, blocked)
        state = layer.norms[0](state + read)
        read = plain_attention(across, state + embedded, tokens + positions, tokens, None)
        state = layer.norms[1](state + read)
        state = layer.norms[2](state + layer.ffns[0](state))
        states.append(head.transformer.decoder.post_norm(state))
    return plain_task(head, states, points)


# -- the plain losses ------------------------------------------------------------------------------------


def plain_focal(logits: Tensor, labels: Tensor) -> Tensor:
    targets = F.one_hot(labels, len(CLASSES) + 1)[:, : len(CLASSES)].float()
    chance = logits.sigmoid()
    right = chance * targets + (1 - chance) * (1 - targets)
    weight = 0.25 * targets + 0.75 * (1 - targets)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (weight * (1 - right) ** 2 * losses).sum()


def plain_layer_losses(
    outputs: dict[str, Tensor], boxes: list[Tensor], labels: list[Tensor], noised: Denoising
) -> Tensor:
    codes, logits = box_codes(outputs), outputs["cls_logits"]
    wanted, regressed, matched, queries = [], 0.0, 0, codes.shape[1] - noised.size
    for sample, (own, own_labels) in enumerate(zip(boxes, labels, strict=True)):
        code, logit, target = codes[sample, noised.size :], logits[sample, noised.size :], encode_boxes(own)
        with torch.no_grad():
            chance = logit.sigmoid()
            positive = -(chance + 1e-12).log() * 0.25 * (1 - chance) ** 2
            negative = -(1 - chance + 1e-12).log() * 0.75 * chance**2
            cost = 2 * (positive[:, own_labels] - negative[:, own_labels])
            cost = cost + 0.25 * torch.cdist((code * WEIGHTS)[:, :8], (target * WEIGHTS)[:, :8], p=1)
            rows, columns = linear_sum_assignment(cost.cpu().numpy())
        label = torch.full((queries,), len(CLASSES))
        label[rows] = own_labels[columns]
        wanted.append(label)
        regressed = regressed + ((code[rows] - target[columns]).abs() * WEIGHTS).sum()
        matched += len(rows)
    background = len(boxes) * queries - matched
    total = 2 * plain_focal(logits[:, noised.size :].flatten(0, 1), torch.cat(wanted))
    total = total / max(1, matched + 0.1 * background) + 0.25 * regressed / max(1, matched)
    real = noised.labels != -1
    label = torch.where(noised.labels[real] < 0, len(CLASSES), noised.labels[real])
    norm = max(1.0, noised.total * 3.14159 / 6 * 0.75**3)
    total = total + 2 * plain_focal(logits[:, : noised.size][real], label) / norm
    distance = (codes[:, : noised.size][real] - encode_boxes(noised.boxes[real])).abs() * WEIGHTS
    return total + 0.25 * distance.sum() / max(1, noised.total)


# -- inputs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head() -> CmtHead:
    torch.manual_seed(0)
    return CmtHead(CONFIG, "fusion", RANGE).eval()


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Map, image features and cameras around the car."""
    generator = torch.Generator().manual_seed(0)
    height, width = IMAGE[0] // STRIDE, IMAGE[1] // STRIDE
    bev = torch.randn(len(BOXES), 512, MAP, MAP, generator=generator)
    images = torch.randn(len(BOXES) * CAMERAS, CONFIG.hidden, height, width, generator=generator)
    matrices = torch.eye(4, dtype=torch.float64).repeat(CAMERAS, 1, 1)
    focal = IMAGE[1] * 0.8
    for camera in range(CAMERAS):
        angle = camera * math.pi / 3
        forward = torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64)
        right = torch.tensor([math.sin(angle), -math.cos(angle), 0.0], dtype=torch.float64)
        down = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)
        matrices[camera, :3, :3] = torch.stack(
            (
                focal * right + IMAGE[1] / 2 * forward,
                focal * down + IMAGE[0] / 2 * forward,
                forward,
            )
        )
        matrices[camera, :3, 3] = torch.tensor([0.5, 0.3, 0.1], dtype=torch.float64)
    return bev, images, matrices.expand(len(BOXES), -1, -1, -1).contiguous()


@pytest.fixture(scope="module")
def truth() -> tuple[Tensor, Tensor]:
    """Boxes [B, G, 9] and labels [B, G]."""
    generator = torch.Generator().manual_seed(1)
    boxes = torch.randn(len(BOXES), max(BOXES), 9, generator=generator)
    boxes[..., :2] = (18 * boxes[..., :2]).clamp(-50, 50)
    boxes[..., 3:6] = (0.3 * boxes[..., 3:6]).exp() * torch.tensor([4.0, 1.9, 1.6])
    labels = torch.randint(len(CLASSES), (len(BOXES), max(BOXES)), generator=generator)
    for sample, count in enumerate(BOXES):
        boxes[sample, count:], labels[sample, count:] = 0, -1
    return boxes, labels


# -- comparisons -----------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="cmt")
def test_decoder_forward(
    measure_ratio: Callable[..., Any], head: CmtHead, inputs: tuple[Tensor, ...]
) -> None:
    bev, images, matrices = inputs

    @torch.no_grad()
    def ours() -> Any:
        return head(bev, images, matrices, IMAGE).outputs

    @torch.no_grad()
    def theirs() -> Any:
        return plain_forward(head, bev, images, matrices)

    expected = theirs()
    for name, value in ours().items():
        torch.testing.assert_close(value[-1], expected[-1][name], rtol=1e-3, atol=5e-3)
    measure_ratio(
        ours,
        theirs,
        rounds=3,
        reference="the fusion head step by step, forward, two samples",
        unit="900 queries",
    )


@pytest.mark.benchmark(group="cmt")
def test_training_step(
    measure_ratio: Callable[..., Any], head: CmtHead, inputs: tuple[Tensor, ...], truth: tuple[Tensor, Tensor]
) -> None:
    bev, images, matrices = inputs
    boxes, labels = truth
    samples = [boxes[sample, :count] for sample, count in enumerate(BOXES)]
    classes = [labels[sample, :count] for sample, count in enumerate(BOXES)]

    def noised() -> Denoising:
        generator = torch.Generator().manual_seed(2)
        made = prepare_denoising(
            boxes, labels, BOXES, CONFIG.queries, head.low, head.extent, LOSSES, generator=generator
        )
        assert made is not None
        return made

    def ours() -> Tensor:
        prepared = noised()
        predictions = head(bev, images, matrices, IMAGE, prepared)
        return detection_losses(predictions, boxes, labels, BOXES, LOSSES, CONFIG, prepared).sum()

    def theirs() -> Tensor:
        prepared = noised()
        layers = plain_forward(head, bev, images, matrices, prepared)
        return torch.stack([plain_layer_losses(one, samples, classes, prepared) for one in layers]).sum()

    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-2)

    def step(losses: Callable[[], Tensor]) -> None:
        head.zero_grad()
        losses().backward()

    measure_ratio(
        lambda: step(ours),
        lambda: step(theirs),
        rounds=3,
        reference="the fusion head and its losses step by step, forward and backward, two samples",
        unit="900 queries",
    )


def voxels(count: int) -> tuple[Tensor, Tensor, LidarConfig]:
    """A cloud like that of a street: surfaces rather than noise."""
    generator = torch.Generator().manual_seed(0)
    lidar = LidarConfig(cells=(256, 256, 40), backend="torch")
    centres = torch.rand(count // 60, 3, generator=generator) * torch.tensor([20.0, 240.0, 240.0])
    spread = torch.rand(len(centres), 90, 3, generator=generator) * torch.tensor([8.0, 10.0, 4.0])
    cells = torch.unique((centres[:, None] + spread).flatten(0, 1).int(), dim=0)
    cells = cells[(cells >= 0).all(1) & (cells < torch.tensor([40, 256, 256])).all(1)][:count]
    return torch.randn(len(cells), 5, generator=generator), cells.int(), lidar


@pytest.mark.benchmark(group="cmt")
def test_sparse_encoder_against_spconv(measure_ratio: Callable[..., Any]) -> None:
    pytest.importorskip("spconv", exc_type=ImportError)
    features, cells, lidar = voxels(6000)
    torch.manual_seed(0)
    mine = SparseEncoder(lidar)
    peer = SparseEncoder(LidarConfig(cells=lidar.cells, backend="spconv"))
    peer.load_state_dict(mine.state_dict())
    numbered = F.pad(cells, (1, 0))

    def ours() -> None:
        mine(features, numbered, 1, plan_encoder(cells, lidar)).sum().backward()

    def theirs() -> None:
        peer(features, numbered, 1).sum().backward()

    with torch.no_grad():
        torch.testing.assert_close(
            mine(features, numbered, 1), peer(features, numbered, 1), rtol=1e-3, atol=1e-3
        )
    measure_ratio(
        ours,
        theirs,
        reference="spconv, forward and backward, with its indices",
        peer="spconv",
        unit="6000 voxels",
    )
