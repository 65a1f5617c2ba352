"""Both references: pooling, centres, selection, lists, the attentions against loops and torch, and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tenfold.reft.batches import Supports
from tenfold.reft.config import ReferenceConfig
from tenfold.reft.model import RefT
from tenfold.reft.references import (
    FeatureReference,
    FeatureReferences,
    QueryReference,
    References,
    SupportFeatures,
    capped_rows,
    class_centres,
    masked_average_pool,
    select_queries,
)
from tenfold.shared.logging import TenfoldError

MakeNetwork = Callable[..., RefT]
MakeSupports = Callable[..., Supports]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def references_of(centres: int = 3, rows: int = 4, first_label: int = 0, seed: int = 0) -> References:
    """Three levels of centres of some classes, the first ones absent."""
    levels = tuple(noise(centres, 8, seed=seed + level) for level in range(3))
    present = torch.arange(centres) >= first_label
    levels = tuple(level * present[:, None] for level in levels)
    labels = torch.arange(rows) % (centres - first_label) + first_label
    scores = torch.rand(rows, generator=torch.Generator().manual_seed(seed))
    return References(levels, present, noise(rows, 8, seed=seed + 5), labels, scores)


# -- pooling and centres ---------------------------------------------------------------------------------


def test_pooling_weighs_each_cell_by_the_share_that_the_mask_covers() -> None:
    """The hand check of section 14: weights (1, 1/2, 0, 0)."""
    features = torch.arange(1.0, 9.0).view(1, 2, 2, 2)
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, :2, :3] = True
    torch.testing.assert_close(masked_average_pool(features, masks), torch.tensor([[4 / 3, 16 / 3]]))


def test_an_empty_mask_pools_to_zeros() -> None:
    pooled = masked_average_pool(noise(2, 5, 3, 3), torch.zeros(2, 12, 12, dtype=torch.bool))
    assert torch.equal(pooled, torch.zeros(2, 5))


def test_pooling_is_a_mean_over_covered_cells_where_sizes_do_not_divide() -> None:
    """A mask of 3 x 3 over 2 x 2 cells: cells overlap in the middle row and column, as torch's areas do."""
    masks = torch.zeros(1, 3, 3, dtype=torch.bool)
    masks[0, 0, 0] = True
    features = torch.tensor([[[[6.0, 1.0], [1.0, 1.0]]]])
    assert float(masked_average_pool(features, masks)) == pytest.approx(6.0, rel=1e-4)


def test_centres_are_means_of_their_class_and_zero_where_it_is_absent() -> None:
    pooled = torch.tensor([[1.0, 2.0], [5.0, 5.0], [3.0, 6.0]])
    centres, counts = class_centres(pooled, torch.tensor([2, 0, 2]), 4)
    assert centres.tolist() == [[5, 5], [0, 0], [2, 4], [0, 0]]
    assert counts.tolist() == [1, 0, 2, 0]


# -- selection -------------------------------------------------------------------------------------------

HALF = torch.tensor([[1, 1, 0, 0]]).expand(4, 4).bool()
"""A mask of 4 x 4 of which the left half is set."""


def masks_of_probability(*columns: tuple[float, float]) -> Tensor:
    """Logits [1, Q, 4, 4] of masks with these probabilities in the left and the right half."""
    halves = torch.tensor(columns, dtype=torch.float64).repeat_interleave(2, dim=1)[:, None].expand(-1, 4, -1)
    return torch.logit(halves, eps=1e-12)[None].float()


def test_queries_are_selected_by_soft_dice_with_the_mask() -> None:
    logits = masks_of_probability((0.5, 0.5), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
    classes, label = torch.zeros(1, 4, 3), torch.tensor([1])
    scores, index = select_queries(logits, classes, HALF[None], label, 3, "mask")
    # 2 overlap / (sum of the prediction + sum of the mask + 1) with 8 cells in the mask
    assert index.tolist() == [[1, 3, 0]]
    torch.testing.assert_close(scores, torch.tensor([[16 / 17, 16 / 25, 8 / 17]]))


def test_queries_are_selected_by_the_probability_of_the_class_or_by_the_product() -> None:
    logits = masks_of_probability((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))
    probabilities = torch.tensor([[[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.0, 0.9, 0.1]]])
    given = logits, probabilities.log(), HALF[None], torch.tensor([1])
    scores, index = select_queries(*given, 2, "class")
    assert index.tolist() == [[2, 1]]
    torch.testing.assert_close(scores, torch.tensor([[0.9, 0.5]]))
    scores, index = select_queries(*given, 3, "product")
    assert index.tolist() == [[1, 0, 2]]
    torch.testing.assert_close(scores, torch.tensor([[0.5 * 8 / 17, 0.1 * 16 / 17, 0.0]]))


def test_masks_are_compared_at_the_size_of_the_prediction() -> None:
    logits = masks_of_probability((1.0, 0.0), (0.0, 1.0))
    large = HALF.repeat_interleave(4, 0).repeat_interleave(4, 1)
    found, expected = (
        select_queries(logits, torch.zeros(1, 2, 2), mask[None], torch.tensor([0]), 2, "mask")
        for mask in (large, HALF)
    )
    assert torch.equal(found[0], expected[0])


def test_no_more_queries_are_kept_than_there_are() -> None:
    scores, _ = select_queries(
        noise(1, 3, 4, 4), torch.zeros(1, 3, 2), HALF[None], torch.tensor([0]), 5, "mask"
    )
    assert scores.shape == (1, 3)


def read(network: RefT, supports: Supports, imprinting: bool = False) -> SupportFeatures:
    with torch.no_grad():
        return network.eval().read_supports(supports, imprinting)


@pytest.mark.parametrize("selection", ["class", "product"])
def test_a_network_keeps_queries_by_its_own_rule(
    make_network: MakeNetwork, make_supports: MakeSupports, selection: Any
) -> None:
    network, by_mask = make_network(ReferenceConfig(selection=selection)), make_network(ReferenceConfig())
    with torch.no_grad():  # one query is sure to be of class 1
        for one in (network, by_mask):
            one.class_predictor.weight[1] *= 30
    supports = make_supports((1, 1))
    found, other = read(network, supports), read(by_mask, supports)
    probabilities = network.class_predictor(found.queries).softmax(-1)[..., 1]
    if selection == "class":
        torch.testing.assert_close(found.scores, probabilities.detach())
    assert not torch.equal(found.queries, other.queries)


@pytest.mark.parametrize(
    "references",
    [ReferenceConfig(selection="class", class_embedding=True), ReferenceConfig("off", query="off")],
)
def test_for_imprinting_queries_are_kept_by_their_masks_as_they_are(
    make_network: MakeNetwork, make_supports: MakeSupports, references: ReferenceConfig
) -> None:
    """The classifier may not know the classes yet: their labels lie beyond its rows."""
    found = read(make_network(references), make_supports((8, 7)), imprinting=True)
    expected = read(make_network(ReferenceConfig()), make_supports((0, 1)))
    assert torch.equal(found.queries, expected.queries)
    assert torch.equal(found.scores, expected.scores)


# -- lists of support queries ----------------------------------------------------------------------------


def kept_of(labels: list[int], scores: list[float], max_rows: int) -> list[tuple[int, float]]:
    """Classes and scores of the rows that are kept, in order; rows are their own scores."""
    values = torch.tensor(scores)
    rows, found, kept = capped_rows(values[:, None], torch.tensor(labels), values, max_rows)
    assert torch.equal(rows[:, 0], kept)
    return sorted(zip(found.tolist(), [round(value, 3) for value in kept.tolist()], strict=True))


def test_a_short_list_stays_whole() -> None:
    found = kept_of([1, 1, 0, 0], [0.9, 0.1, 0.8, 0.2], 4)
    assert found == [(0, 0.2), (0, 0.8), (1, 0.1), (1, 0.9)]


def test_a_long_list_has_the_best_rows_of_each_class_in_equal_number() -> None:
    found = kept_of([3, 3, 0, 0, 3, 3, 3], [0.7, 0.3, 0.2, 0.1, 0.9, 0.4, 0.6], 5)
    assert found == [(0, 0.1), (0, 0.2), (3, 0.7), (3, 0.9)]


def test_every_class_keeps_a_row() -> None:
    assert kept_of([0, 0, 4, 4, 9], [0.5, 0.6, 0.8, 0.7, 0.1], 2) == [(0, 0.6), (4, 0.8), (9, 0.1)]


def test_rows_of_an_example_are_its_kept_queries_with_its_class() -> None:
    queries, scores = noise(2, 3, 4), torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.7, 0.6]])
    rows, labels, listed = SupportFeatures((), queries, scores, torch.tensor([5, 2])).rows
    assert torch.equal(rows[4], queries[1, 1])
    assert labels.tolist() == [5, 5, 5, 2, 2, 2]
    assert listed.tolist() == scores.flatten().tolist()


def test_a_network_caps_the_list_of_its_support_queries(
    make_network: MakeNetwork, make_supports: MakeSupports
) -> None:
    network = make_network(ReferenceConfig(top_k=4, max_rows=6)).eval()
    with torch.no_grad():
        found = network.refer(network.read_supports(make_supports((0, 0, 5))), 7)
    assert found.row_labels.tolist() == [0, 0, 0, 5, 5, 5]
    assert found.present.tolist() == [True, False, False, False, False, True, False]


# -- caches ----------------------------------------------------------------------------------------------


def test_base_classes_of_an_earlier_stage_come_before_the_new_ones() -> None:
    base, new = references_of(3, rows=5), references_of(5, rows=4, first_label=3, seed=20)
    joined = new.with_base(base, 9)
    for level, theirs, own in zip(joined.centres, base.centres, new.centres, strict=True):
        assert torch.equal(level, torch.cat((theirs, own[3:])))
    assert joined.present.tolist() == [True] * 5
    assert torch.equal(joined.rows, torch.cat((base.rows, new.rows)))
    assert joined.row_labels.tolist() == base.row_labels.tolist() + new.row_labels.tolist()


def test_base_and_new_classes_share_the_list_evenly() -> None:
    joined = references_of(5, rows=4, first_label=3, seed=20).with_base(references_of(3, rows=12), 10)
    assert joined.row_labels.bincount().tolist() == [2] * 5
    assert len(joined.rows) == len(joined.row_scores) == 10


def test_a_cache_is_read_from_its_file_as_it_was(tmp_path: Path) -> None:
    cache = references_of(4, first_label=1)
    torch.save(cache.state_dict(), tmp_path / "cache.pt")
    again = References.from_state_dict(torch.load(tmp_path / "cache.pt", weights_only=True))
    assert all(map(torch.equal, again.centres, cache.centres))
    assert len(again.centres) == 3
    for name in ("present", "rows", "row_labels", "row_scores"):
        assert torch.equal(getattr(again, name), getattr(cache, name))


# -- reference one ---------------------------------------------------------------------------------------


def random_feature_reference(mode: Any, width: int = 6) -> FeatureReference:
    reference = FeatureReference(width, mode)
    with torch.no_grad():
        for index, parameter in enumerate(reference.parameters()):
            parameter.copy_(0.5 * noise(*parameter.shape, seed=index))
    return reference


@pytest.mark.parametrize("mode", ["reweight", "add"])
def test_every_location_is_referred_to_the_mixture_of_present_classes(mode: Any) -> None:
    reference = random_feature_reference(mode)
    features, centres = noise(2, 6, 2, 3, seed=20), noise(4, 6, seed=21)
    present = torch.tensor([True, False, True, True])
    expected = torch.empty_like(features)
    for image in range(2):
        for row in range(2):
            for column in range(3):
                x = features[image, :, row, column]
                query = reference.query.weight @ x + reference.query.bias
                scores, values = [], []
                for centre, seen in zip(centres, present.tolist(), strict=True):
                    if seen:
                        key = reference.key.weight @ centre + reference.key.bias
                        scores.append((query @ key).item() / math.sqrt(6))
                        values.append(reference.value.weight @ centre + reference.value.bias)
                key = reference.key.weight @ reference.background[0] + reference.key.bias
                scores.append((query @ key).item() / math.sqrt(6))
                values.append(torch.zeros(6))
                exponents = [math.exp(score) for score in scores]
                found = torch.zeros(6)
                for exponent, value in zip(exponents, values, strict=True):
                    found = found + exponent / sum(exponents) * value
                expected[image, :, row, column] = x * (1 + found.tanh()) if mode == "reweight" else x + found
    torch.testing.assert_close(reference(features, centres, present), expected, rtol=1e-4, atol=1e-5)


def test_attention_is_shared_out_among_present_classes_and_background() -> None:
    reference = random_feature_reference("add")
    present = torch.tensor([False, True, True])
    weights = reference.attention(noise(2, 6, 2, 2), noise(3, 6, seed=1), present)
    assert weights.shape == (2, 4, 4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4))
    assert (weights[..., 0] == 0).all()
    assert (weights[..., 1:] > 0).all()


def test_absent_classes_neither_matter_nor_get_a_gradient() -> None:
    reference = random_feature_reference("reweight")
    features, centres = noise(1, 6, 3, 3), noise(3, 6, seed=1).requires_grad_()
    present = torch.tensor([True, False, True])
    found = reference(features, centres, present)
    found.sum().backward()
    assert centres.grad is not None
    assert (centres.grad[1] == 0).all()
    assert (centres.grad[[0, 2]] != 0).all()
    changed = centres.detach().clone()
    changed[1] += 100
    assert torch.equal(reference(features, changed, present), found)


@pytest.mark.parametrize("mode", ["reweight", "add"])
def test_without_any_class_there_is_background_alone_and_features_stay(mode: Any) -> None:
    reference, features = random_feature_reference(mode), noise(2, 6, 2, 2)
    assert torch.equal(reference(features, torch.zeros(3, 6), torch.zeros(3, dtype=torch.bool)), features)


def test_levels_are_referred_to_their_own_centres_with_their_own_weights() -> None:
    torch.manual_seed(0)
    references = FeatureReferences(8)
    for level in references.levels:
        assert isinstance(level, FeatureReference)
        nn.init.normal_(level.value.weight)
    cache = references_of(3)
    features = [noise(1, 8, side, side) for side in (1, 2, 4)]
    found = references(features, cache)
    for index in range(3):
        other = list(cache.centres)
        other[index] = other[index] + 1
        changed = references(features, replace(cache, centres=tuple(other)))
        same = [torch.equal(mine, theirs) for mine, theirs in zip(found, changed, strict=True)]
        assert same == [level != index for level in range(3)]


# -- reference two ---------------------------------------------------------------------------------------


def test_queries_are_linked_as_by_torchs_own_attention_with_rows_that_all_images_share() -> None:
    torch.manual_seed(0)
    reference = QueryReference(16, 4)
    nn.init.normal_(reference.attention.out_proj.weight)
    nn.init.normal_(reference.attention.in_proj_bias)
    queries, rows = noise(3, 5, 16), noise(7, 16, seed=1)
    linked = [
        reference.norm(image + reference.attention(image[:, None], rows[:, None], rows[:, None])[0][:, 0])
        for image in queries
    ]
    torch.testing.assert_close(reference(queries, rows), torch.stack(linked), rtol=1e-4, atol=1e-5)


def test_the_order_of_support_queries_does_not_matter() -> None:
    torch.manual_seed(0)
    reference = QueryReference(16, 4)
    nn.init.normal_(reference.attention.out_proj.weight)
    queries, rows = noise(2, 5, 16), noise(7, 16, seed=1)
    torch.testing.assert_close(reference(queries, rows.flip(0)), reference(queries, rows))


def test_a_new_query_reference_only_normalises() -> None:
    queries = noise(2, 5, 16)
    expected = nn.functional.layer_norm(queries, (16,))
    torch.testing.assert_close(QueryReference(16, 4)(queries, noise(7, 16, seed=1)), expected)


# -- options ---------------------------------------------------------------------------------------------


def test_the_class_embedding_adds_the_row_of_the_class(
    make_network: MakeNetwork, make_supports: MakeSupports
) -> None:
    plain = make_network(ReferenceConfig()).eval()
    network = make_network(ReferenceConfig(class_embedding=True)).eval()
    supports = make_supports((4, 1))
    with torch.no_grad():
        found, before = network.read_supports(supports), plain.read_supports(supports)
    rows = plain.class_predictor.weight[[4, 1]].detach()
    torch.testing.assert_close(found.queries - before.queries, rows[:, None].expand(-1, 5, -1))


REACHED = [
    ReferenceConfig(),
    ReferenceConfig(query="off"),
    ReferenceConfig("off"),
    ReferenceConfig(query="all", class_embedding=True),
]
NAMES = ["both", "feature", "query", "all, with embedding"]


@pytest.mark.parametrize("references", REACHED, ids=NAMES)
def test_gradients_reach_the_support_images(
    make_network: MakeNetwork, make_supports: MakeSupports, references: ReferenceConfig
) -> None:
    network, supports = make_network(references).eval(), make_supports()
    images = supports.images.requires_grad_()
    found = network.refer(network.read_supports(replace(supports, images=images)), 7)
    used = found.centres if references.query == "off" else (found.rows,)
    torch.autograd.backward([level.square().sum() for level in used])
    assert images.grad is not None
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("references", REACHED, ids=NAMES)
def test_detached_supports_stop_gradients(
    make_network: MakeNetwork, make_supports: MakeSupports, references: ReferenceConfig
) -> None:
    network, supports = make_network(replace(references, detach_supports=True)).eval(), make_supports()
    found = network.refer(network.read_supports(supports), 7)
    assert not found.rows.requires_grad
    assert not any(level.requires_grad for level in found.centres)


def test_detached_supports_still_teach_both_references(
    make_network: MakeNetwork, make_supports: MakeSupports
) -> None:
    network = make_network(ReferenceConfig(detach_supports=True)).eval()
    found = network.refer(network.read_supports(make_supports()), 7)
    network(noise(1, 3, 64, 64), found).class_logits.square().sum().backward()
    assert network.query_reference is not None and network.feature_reference is not None
    weights = [network.query_reference.attention.out_proj.weight]
    for level in network.feature_reference.levels:
        assert isinstance(level, FeatureReference)
        weights.append(level.value.weight)
    assert all(weight.grad is not None and weight.grad.any() for weight in weights)


@pytest.mark.parametrize("changes", [{"top_k": 0}, {"max_rows": 0}])
def test_lists_of_support_queries_are_not_empty(changes: dict[str, int]) -> None:
    with pytest.raises(TenfoldError, match="at least 1"):
        ReferenceConfig(**changes)  # type: ignore[arg-type]


def of_classes(count: int, per_class: int, first: int, total: int, seed: int) -> References:
    """Random rows of ``count`` classes from ``first`` on, of ``total`` classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(first, first + count).repeat_interleave(per_class)
    present = torch.zeros(total, dtype=torch.bool)
    present[first : first + count] = True
    rows = torch.randn(len(labels), 4, generator=generator)
    return References(
        (torch.zeros(total, 4),), present, rows, labels, torch.rand(len(labels), generator=generator)
    )


def test_limited_references_keep_the_best_of_each_class() -> None:
    references = of_classes(3, 5, 0, 3, seed=0)
    kept = references.limited(2)
    for label in range(3):
        best = references.row_scores[references.row_labels == label].sort(descending=True).values[:2]
        assert kept.row_scores[kept.row_labels == label].tolist() == best.tolist()
    assert references.limited(9).rows.shape == references.rows.shape


def test_base_references_cut_to_their_share_beforehand_give_the_same_rows() -> None:
    """What iFSIS does once, so that no update has to."""
    base, novel = of_classes(6, 8, 0, 6, seed=1), of_classes(2, 3, 6, 8, seed=2)
    expected = novel.with_base(base, 32)
    found = novel.with_base(base.limited(32 // 8), 32)
    assert len(found.rows) == 6 * 4 + 2 * 3
    assert found.rows.sort(0).values.tolist() == expected.rows.sort(0).values.tolist()
