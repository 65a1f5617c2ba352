"""Decoder, task heads and the whole head: against torch's attention and grouped convolutions, and what sees what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.cmt.config import HeadConfig, LossConfig, Modality
from tenfold.cmt.decoder import Attention, Decoder
from tenfold.cmt.denoising import Denoising, prepare_denoising
from tenfold.cmt.detector import Cmt
from tenfold.cmt.head import CmtHead, Predictions, first_points
from tenfold.cmt.task_heads import OUTPUTS, TaskHead
from tenfold.shared.logging import TenfoldError

pytestmark = pytest.mark.usefixtures("cpu")

WIDTH, HEADS, INNER, LAYERS = 16, 4, 32, 3
RANGE = (-8.0, -6.0, -5.0, 8.0, 6.0, 3.0)
IMAGE = (32, 64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stirred(module: nn.Module, seed: int = 0) -> Any:
    """All parameters at random, so that no bias is zero and no gain one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name != "reference_points.weight":
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


# -- attention and decoder -------------------------------------------------------------------------------


def torchs_attention(attention: Attention) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    theirs.load_state_dict(attention.state_dict())
    return theirs.eval()


def blocked(queries: int) -> Tensor:
    """A mask of queries that may look at those before them and at themselves."""
    return torch.ones(queries, queries, dtype=torch.bool).triu(1)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torchs(masked: bool) -> None:
    attention = stirred(Attention(WIDTH, HEADS, 0.0))
    query, key, value = noise(2, 5, WIDTH), noise(2, 5, WIDTH, seed=1), noise(2, 5, WIDTH, seed=2)
    mask = blocked(5) if masked else None
    expected, _ = torchs_attention(attention)(query, key, value, attn_mask=mask)
    found = attention(query, key, value, None if mask is None else ~mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def plain_decoder(
    decoder: Decoder, query_position: Tensor, tokens: Tensor, position: Tensor, mask: Tensor
) -> Tensor:
    """Section 1.4 with torch's own modules."""
    target, outputs = torch.zeros_like(query_position), []
    for layer in decoder.layers:
        itself, across = (torchs_attention(named.attn) for named in layer.attentions)  # type: ignore[union-attr]
        norms, feedforward = layer.norms, layer.ffns[0].layers  # type: ignore[union-attr,index]
        placed = target + query_position
        target = norms[0](target + itself(placed, placed, target, attn_mask=mask)[0])  # type: ignore[index]
        read = across(target + query_position, tokens + position, tokens)[0]
        target = norms[1](target + read)  # type: ignore[index]
        inner = F.linear(target, feedforward[0][0].weight, feedforward[0][0].bias).relu()  # type: ignore[index]
        target = norms[2](target + F.linear(inner, feedforward[1].weight, feedforward[1].bias))  # type: ignore[index]
        outputs.append(decoder.post_norm(target))
    return torch.stack(outputs)


def test_the_decoder_is_torchs_attentions_and_norms_in_post_norm_order() -> None:
    decoder = stirred(Decoder(WIDTH, HEADS, INNER, LAYERS, 0.1)).eval()
    positions, tokens, token_positions = (
        noise(2, 7, WIDTH),
        noise(2, 20, WIDTH, seed=1),
        noise(2, 20, WIDTH, seed=2),
    )
    found = decoder(positions, tokens, token_positions, ~blocked(7))
    expected = plain_decoder(decoder, positions, tokens, token_positions, blocked(7))
    assert found.shape == (LAYERS, 2, 7, WIDTH)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_decoder_are_those_of_torchs_modules() -> None:
    decoder = stirred(Decoder(WIDTH, HEADS, INNER, 2, 0.0)).eval()
    gradients = []
    for run in (decoder, lambda *given: plain_decoder(decoder, *given[:3], ~given[3])):
        inputs = [noise(1, 5, WIDTH), noise(1, 9, WIDTH, seed=1), noise(1, 9, WIDTH, seed=2)]
        inputs = [one.requires_grad_() for one in inputs]
        (run(*inputs, ~blocked(5)) * noise(2, 1, 5, WIDTH, seed=3)).sum().backward()
        gradients.append([one.grad for one in inputs])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_values_that_are_no_numbers_leave_the_decoder_as_numbers() -> None:
    decoder = Decoder(WIDTH, HEADS, INNER, 1, 0.0).eval()
    tokens = noise(1, 4, WIDTH)
    tokens[0, 0, 0] = float("nan")
    assert decoder(noise(1, 3, WIDTH), tokens, torch.zeros(1, 4, WIDTH)).isfinite().all()


# -- dropout ---------------------------------------------------------------------------------------------


def test_dropout_takes_both_attention_branches_and_not_the_feed_forward_layer() -> None:
    """With certain dropout nothing but norms and the feed-forward layer is left."""
    decoder = stirred(Decoder(WIDTH, HEADS, INNER, 1, 1.0)).train()
    found = decoder(noise(1, 5, WIDTH), noise(1, 9, WIDTH, seed=1), torch.zeros(1, 9, WIDTH))
    layer = decoder.layers[0]
    target = layer.norms[1](layer.norms[0](torch.zeros(1, 5, WIDTH)))
    target = decoder.post_norm(layer.norms[2](target + layer.ffns[0].layers(target)))
    torch.testing.assert_close(found[0], target)


def attentions(dropout: float) -> tuple[Attention, Attention]:
    layer = stirred(Decoder(WIDTH, HEADS, INNER, 1, dropout)).layers[0]
    return layer.attentions[0].attn, layer.attentions[1].attn


def test_dropout_takes_weights_of_self_attention_in_training() -> None:
    itself, _ = attentions(0.5)
    values = noise(1, 6, WIDTH)
    torch.manual_seed(0)
    assert not torch.allclose(itself.train()(values, values, values), itself.eval()(values, values, values))


def test_dropout_spares_weights_of_cross_attention() -> None:
    """Pitfall 6: the value meant for them lands elsewhere in the released code."""
    _, across = attentions(0.5)
    query, tokens = noise(1, 6, WIDTH), noise(1, 9, WIDTH, seed=1)
    assert torch.equal(across.train()(query, tokens, tokens), across.eval()(query, tokens, tokens))


def test_an_evaluated_decoder_repeats_itself() -> None:
    decoder = stirred(Decoder(WIDTH, HEADS, INNER, 2, 0.5)).eval()
    given = (noise(1, 5, WIDTH), noise(1, 9, WIDTH, seed=1), noise(1, 9, WIDTH, seed=2))
    assert torch.equal(decoder(*given), decoder(*given))


# -- task heads ------------------------------------------------------------------------------------------


def plain_task_head(head: TaskHead, queries: Tensor, name: str) -> Tensor:
    """Section 1.5: grouped Conv1d on [B, L * D, Q], norm of each layer's channels at each place, ReLU, Conv1d."""
    state, kernel = head.state_dict(), head.kernel
    layers, batch, count, _ = queries.shape
    values = queries.permute(1, 0, 3, 2).flatten(1, 2)
    values = F.conv1d(values, state[f"{name}.0.weight"], padding=kernel // 2, groups=layers)
    grouped = values.view(batch, layers, -1, count)
    mean = grouped.mean(2, keepdim=True)
    variance = (grouped - mean).square().mean(2, keepdim=True)
    values = ((grouped - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
    values = values * state[f"{name}.1.weight"][:, None] + state[f"{name}.1.bias"][:, None]
    values = F.conv1d(
        values.relu(), state[f"{name}.3.weight"], state[f"{name}.3.bias"], padding=kernel // 2, groups=layers
    )
    return values.view(batch, layers, -1, count).permute(1, 0, 3, 2)


@pytest.mark.parametrize("kernel", [1, 3])
def test_task_heads_are_grouped_convolutions_over_queries(kernel: int) -> None:
    head, queries = stirred(TaskHead(WIDTH, LAYERS, 8, kernel)), noise(LAYERS, 2, 7, WIDTH)
    found = head(queries)
    assert list(found) == ["center", "height", "dim", "rot", "vel", "cls_logits"]
    for name, size in OUTPUTS.items():
        assert found[name].shape == (LAYERS, 2, 7, size)
        torch.testing.assert_close(found[name], plain_task_head(head, queries, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients_of_task_heads_are_those_of_grouped_convolutions(kernel: int) -> None:
    head = stirred(TaskHead(WIDTH, 2, 8, kernel))
    gradients = []
    for run in (
        lambda given: head(given),
        lambda given: {n: plain_task_head(head, given, n) for n in OUTPUTS},
    ):
        queries = noise(2, 1, 5, WIDTH).requires_grad_()
        outputs = run(queries)
        sum((outputs[n] * noise(*outputs[n].shape, seed=3)).sum() for n in OUTPUTS).backward()  # type: ignore[union-attr]
        gradients.append(queries.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_kernels_of_one_see_no_neighbour_and_those_of_three_do() -> None:
    changes = []
    for kernel in (1, 3):
        head, queries = stirred(TaskHead(WIDTH, 1, 8, kernel)), noise(1, 1, 9, WIDTH)
        changed = queries.clone()
        changed[0, 0, 4] += 1
        moved = (head(queries)["vel"] - head(changed)["vel"]).abs().amax(-1)[0, 0] > 1e-7
        changes.append(moved.nonzero().flatten().tolist())
    assert changes == [[4], [2, 3, 4, 5, 6]]


def test_each_decoder_layer_has_task_heads_of_its_own() -> None:
    head = stirred(TaskHead(WIDTH, 2, 8))
    same = noise(1, 1, 5, WIDTH).expand(2, -1, -1, -1)
    found = head(same)
    assert all(not torch.allclose(found[name][0], found[name][1]) for name in OUTPUTS)


def test_classes_begin_near_a_tenth() -> None:
    bias = TaskHead(WIDTH, 2, 8).state_dict()["cls_logits.3.bias"]
    torch.testing.assert_close(bias, torch.full((20,), -2.19))


# -- the whole head --------------------------------------------------------------------------------------


def head_of(modality: Modality = "fusion", seed: int = 0, stir: bool = True, **changes: Any) -> CmtHead:
    shape: dict[str, Any] = {
        "hidden": WIDTH,
        "heads": HEADS,
        "feedforward": INNER,
        "layers": 2,
        "queries": 9,
        "depth_bins": 8,
        "task_channels": 8,
    }
    torch.manual_seed(seed)
    head = CmtHead(HeadConfig(**{**shape, **changes}), modality, RANGE, 6)
    return (stirred(head) if stir else head).eval()


def matrices(batch: int = 2) -> Tensor:
    """Two cameras of each sample, ahead and to the left, [B, 2, 4, 4]."""
    ahead = torch.tensor(
        [[32.0, -20, 0, 0], [16, 0, -20, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64
    )
    left = torch.tensor([[20.0, 32, 0, 0], [0, 16, -20, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    return torch.stack((ahead, left)).repeat(batch, 1, 1, 1)


def inputs(modality: Modality = "fusion", batch: int = 2) -> tuple[Any, ...]:
    bev = noise(batch, 6, 4, 6) if modality != "camera" else None
    features = noise(2 * batch, WIDTH, 2, 4, seed=1) if modality != "lidar" else None
    return bev, features, None if features is None else matrices(batch), IMAGE


def noised(head: CmtHead, seed: int = 0) -> Denoising:
    """Two boxes in the first sample and one in the second; three groups."""
    boxes = torch.zeros(2, 2, 9)
    boxes[..., :3], boxes[..., 3:6] = 2 * noise(2, 2, 3, seed=4), 2.0
    labels = torch.tensor([[1, 2], [3, -1]])
    generator = torch.Generator().manual_seed(seed)
    config = LossConfig(denoising_groups=3)
    made = prepare_denoising(boxes, labels, (2, 1), 9, head.low, head.extent, config, generator=generator)
    assert made is not None
    return made


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance, msg=name)


def differs(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return any(not torch.allclose(found[name], value, atol=1e-4) for name, value in expected.items())


@pytest.mark.parametrize("modality", ["fusion", "lidar", "camera"])
def test_predictions_have_a_row_for_each_layer_sample_and_query(modality: Modality) -> None:
    found: Predictions = head_of(modality)(*inputs(modality))
    assert {name: tuple(value.shape) for name, value in found.outputs.items()} == {
        name: (2, 2, 9, size) for name, size in OUTPUTS.items()
    }
    assert found.noised is None


def test_centres_and_heights_are_offsets_to_the_queries_points() -> None:
    """With raw outputs of zero they are the points themselves, in metres."""
    head = head_of()
    points = torch.rand(2, 9, 3, generator=torch.Generator().manual_seed(0))
    zeros = {name: torch.zeros(2, 2, 9, size) for name, size in OUTPUTS.items()}
    found = head.to_metres(zeros, points)
    metric = points * torch.tensor([16.0, 12.0, 8.0]) + torch.tensor(RANGE[:3])
    for layer in range(2):
        torch.testing.assert_close(found["center"][layer], metric[..., :2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["height"][layer], metric[..., 2:], rtol=1e-4, atol=1e-4)
    assert not found["dim"].any()


def test_learnt_queries_do_not_see_noised_ones() -> None:
    head = head_of()
    plain = head(*inputs())
    first, second = (head(*inputs(), noised(head, seed)) for seed in (0, 1))
    assert_same(first.outputs, plain.outputs)
    assert_same(second.outputs, plain.outputs)
    assert differs(first.noised, second.noised)


def with_moved(denoising: Denoising, place: int) -> Denoising:
    points = denoising.points.clone()
    points[:, place] = 1 - points[:, place]
    return Denoising(points, denoising.labels, denoising.boxes, denoising.groups, denoising.total)


def test_a_group_of_noised_queries_sees_itself_and_no_other_group() -> None:
    head = head_of()
    denoising = noised(head)
    before, after = (head(*inputs(), one).noised for one in (denoising, with_moved(denoising, 2)))
    moved = (before["dim"] - after["dim"]).abs().amax((0, 1, 3)) > 1e-5
    assert moved.tolist() == [False, False, True, True, False, False]  # groups of two


def test_noised_queries_see_the_learnt_ones() -> None:
    head = head_of()
    denoising = noised(head)
    before = head(*inputs(), denoising).noised
    with torch.no_grad():
        head.reference_points.weight.copy_(head.reference_points.weight.flip(0) * 0.5)
    assert differs(head(*inputs(), denoising).noised, before)


def test_a_kernel_of_three_leaks_the_last_noised_query_into_the_first_learnt_one() -> None:
    """Pitfall 5, kept for the released CMT-L: each of two convolutions reaches one query further."""
    head = head_of(task_kernel=3)
    plain, with_noised = head(*inputs()).outputs["dim"], head(*inputs(), noised(head)).outputs["dim"]
    moved = (plain - with_noised).abs().amax((0, 1, 3)) > 1e-5
    assert moved.tolist() == [True, True] + [False] * 7


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    head = head_of()
    bev, features, cameras, image = inputs()
    together = head(bev, features, cameras, image).outputs
    alone = head(bev[1:], features[2:], cameras[1:], image).outputs
    assert_same({name: value[:, 1:] for name, value in together.items()}, alone)


# -- switches --------------------------------------------------------------------------------------------


def with_other(head: CmtHead, part: str) -> None:
    with torch.no_grad():
        for parameter in head.get_submodule(part).parameters():
            parameter.mul_(-2)


@pytest.mark.parametrize(
    ("switch", "part"), [("bev_position", "bev_embedding"), ("image_position", "rv_embedding")]
)
def test_a_position_that_is_switched_off_is_neither_in_tokens_nor_in_queries(switch: str, part: str) -> None:
    outcomes = {}
    for on in (True, False):
        head = head_of(**{switch: on})
        before = head(*inputs()).outputs
        with_other(head, part)
        outcomes[on] = differs(head(*inputs()).outputs, before)
    assert outcomes == {True: True, False: False}


def test_without_image_positions_it_does_not_matter_where_cameras_are() -> None:
    bev, features, cameras, image = inputs()
    elsewhere = cameras.flip(1)
    for on in (True, False):
        head = head_of(image_position=on)
        found = head(bev, features, cameras, image).outputs
        assert differs(head(bev, features, elsewhere, image).outputs, found) == on


def test_free_queries_are_embedded_by_their_table() -> None:
    head = head_of(guided_queries=False)
    embedded = head.embed_queries(head.points(2), matrices(), matrices().inverse(), IMAGE)
    assert torch.equal(embedded, head.query_embedding.weight.expand(2, -1, -1))
    before = head(*inputs()).outputs
    with_other(head, "query_embedding")
    assert differs(head(*inputs()).outputs, before)


def test_guided_queries_have_no_table() -> None:
    assert not [name for name, _ in head_of().named_parameters() if name.startswith("query_embedding")]


def test_cameras_alone_still_place_queries_on_the_map() -> None:
    """Section 1.3: the query of CMT-C has both parts."""
    head = head_of("camera")
    before = head(*inputs("camera")).outputs
    with_other(head, "bev_embedding")
    assert differs(head(*inputs("camera")).outputs, before)


# -- starts ----------------------------------------------------------------------------------------------


def test_an_aligned_start_scales_positions_and_copies_keys_into_queries() -> None:
    plain, aligned = (head_of(stir=False, aligned_start=on).state_dict() for on in (False, True))
    changed = [name for name, value in plain.items() if not torch.equal(value, aligned[name])]
    queries = [f"transformer.decoder.layers.{i}.attentions.1.attn.in_proj_weight" for i in range(2)]
    assert set(changed) == {"bev_embedding.2.weight", "rv_embedding.2.weight", *queries}
    for name in ("bev_embedding.2.weight", "rv_embedding.2.weight"):
        torch.testing.assert_close(aligned[name], 5 * plain[name])
    for name in queries:
        before, after = plain[name].chunk(3), aligned[name].chunk(3)
        torch.testing.assert_close(after[0], 20 * before[1])
        assert torch.equal(after[1], before[1])
        assert torch.equal(after[2], before[2])


def test_points_on_a_grid_cover_the_map_at_half_height() -> None:
    found = first_points(HeadConfig(queries=9, query_start="grid"))
    sides = (1 / 6, 0.5, 5 / 6)
    expected = {(round(x, 5), round(y, 5), 0.5) for x in sides for y in sides}
    assert {tuple(round(value, 5) for value in row) for row in found.tolist()} == expected


def test_points_at_random_fill_the_range() -> None:
    torch.manual_seed(0)
    found = first_points(HeadConfig())
    assert found.shape == (900, 3)
    assert (found >= 0).all()
    assert (found <= 1).all()
    torch.testing.assert_close(found.mean(0), torch.full((3,), 0.5), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 30, "heads": 4}, "multiple of 4"),
        ({"task_kernel": 2}, "odd"),
        ({"queries": 10, "query_start": "grid"}, "square number"),
    ],
)
def test_heads_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TenfoldError, match=message):
        HeadConfig(**changes)


# -- precision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["fusion", "lidar", "camera"])
def test_single_precision_is_near_double_precision(modality: Modality) -> None:
    head = head_of(modality, hidden=64, depth_bins=64, layers=6, queries=50)
    bev, features, cameras, image = inputs(modality)
    if features is not None:
        features = noise(4, 64, 2, 4, seed=1)
    single = head(bev, features, cameras, image).outputs
    wide = (None if one is None else one.double() for one in (bev, features, cameras))
    double = head.double()(*wide, image).outputs
    for name, value in double.items():
        torch.testing.assert_close(single[name].double(), value, rtol=1e-3, atol=1e-3, msg=name)


def test_under_autocast_cross_attention_alone_is_narrow_and_outputs_are_single() -> None:
    head, products = head_of(), set()
    expected = head(*inputs()).outputs
    original = F.scaled_dot_product_attention

    def watched(query: Tensor, *rest: Any, **named: Any) -> Tensor:
        products.add((query.dtype, named.get("attn_mask") is None, rest[0].shape[2]))
        return original(query, *rest, **named)

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(F, "scaled_dot_product_attention", watched)
        found = head(*inputs()).outputs
    tokens = 4 * 6 + 2 * 2 * 4
    assert products == {(torch.float32, True, 9), (torch.bfloat16, True, tokens)}
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(value.isfinite().all() for value in found.values())
    assert not any(torch.equal(found[name], expected[name]) for name in OUTPUTS)


def test_a_detector_trains_under_autocast(make_detector: Callable[..., Cmt]) -> None:
    head = make_detector("lidar").pts_bbox_head.train()
    bev = noise(1, 128, 16, 16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head(bev, None, None, IMAGE).outputs
    sum(value.sum() for value in outputs.values()).backward()
    assert bev.grad is not None
    assert bev.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())
