"""The network against transformers' own Mask2Former, its identity at the beginning, its classes and its state."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Mask2FormerForUniversalSegmentation

from tenfold.reft.backbones import backbone_config
from tenfold.reft.batches import Supports
from tenfold.reft.classifiers import CosineClassifier, fresh_rows, grown, imprinted_rows
from tenfold.reft.config import NetworkConfig, ReferenceConfig
from tenfold.reft.deformable_attention import cell_centres, deformable_attention
from tenfold.reft.mask2former import Predictions, library_config, visible_cells
from tenfold.reft.model import RefT
from tenfold.reft.references import References
from tenfold.shared.logging import TenfoldError

MakeNetwork = Callable[..., RefT]
MakeSupports = Callable[..., Supports]
OFF = ReferenceConfig("off", query="off")
SHAPES = ((3, 5), (2, 2), (1, 4))


def shaken(network: RefT, seed: int = 3) -> RefT:
    """The network with weights that are all at random, so that no part of it is zero or the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "normalization.bias", "normalization.weight")):
                buffer += 0.1 * torch.randn(buffer.shape, generator=generator)
            elif name.endswith("running_var"):
                buffer *= 1 + torch.rand(buffer.shape, generator=generator)
    return network.eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def library_twin(network: RefT) -> Mask2FormerForUniversalSegmentation:
    """Transformers' own model with the same weights; its batch norms are at inference, as ours always are."""
    config = library_config(network.network, backbone_config(network.network.backbone), network.num_classes)
    library = Mask2FormerForUniversalSegmentation(config)
    missing, unexpected = library.load_state_dict(network.state_dict(), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") or name.startswith("criterion.") for name in missing)
    library.eval()
    return library


def library_predictions(
    library: Mask2FormerForUniversalSegmentation, images: Tensor
) -> list[tuple[Any, Any]]:
    """Class logits and mask logits of every layer."""
    output = library(images, output_auxiliary_logits=True)
    found = [(one["class_queries_logits"], one["masks_queries_logits"]) for one in output.auxiliary_logits]
    return [*found, (output.class_queries_logits, output.masks_queries_logits)]


def references_of(network: RefT, supports: Supports) -> References:
    return network.refer(network.read_supports(supports), network.num_classes)


# -- deformable attention --------------------------------------------------------------------------------


def test_deformable_attention_is_a_sum_of_bilinear_values() -> None:
    heads, width, queries, points = 2, 3, 4, 2
    cells = sum(height * breadth for height, breadth in SHAPES)
    value = noise(2, cells, heads, width)
    locations = 1.6 * torch.rand(2, queries, heads, len(SHAPES), points, 2) - 0.3  # some are outside
    weights = torch.rand(2, queries, heads, len(SHAPES), points)
    expected = torch.zeros(2, queries, heads, width)
    for image, query, head, point in product(range(2), range(queries), range(heads), range(points)):
        start = 0
        for level, (height, breadth) in enumerate(SHAPES):
            x, y = (
                locations[image, query, head, level, point] * torch.tensor([breadth, height]) - 0.5
            ).tolist()
            for row, column in product(range(height), range(breadth)):
                share = max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column))
                cell = value[image, start + row * breadth + column, head]
                expected[image, query, head] += weights[image, query, head, level, point] * share * cell
            start += height * breadth
    found = deformable_attention(value, SHAPES, locations, weights)
    torch.testing.assert_close(found, expected.flatten(2), rtol=1e-4, atol=1e-5)


def test_cell_centres_go_along_rows_x_first() -> None:
    found = cell_centres([(2, 1), (1, 2)], torch.device("cpu"))
    assert found.tolist() == [[0.5, 0.25], [0.5, 0.75], [0.25, 0.5], [0.75, 0.5]]


def test_deformable_attention_compiles_to_the_same() -> None:
    given = noise(2, 23, 2, 3), torch.rand(2, 4, 2, 3, 2, 2), torch.rand(2, 4, 2, 3, 2)
    compiled = torch.compile(deformable_attention, backend="aot_eager", fullgraph=True)
    found = []
    for function in (deformable_attention, compiled):
        value, locations, weights = (tensor.clone().requires_grad_() for tensor in given)
        output = function(value, SHAPES, locations, weights)
        output.square().sum().backward()
        found.append((output, value.grad, locations.grad, weights.grad))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


# -- against transformers --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_every_layer_predicts_what_the_library_predicts(
    make_network: MakeNetwork, size: tuple[int, int]
) -> None:
    network = shaken(make_network(OFF, decoder_layers=4, encoder_layers=2))
    images = noise(2, 3, *size)
    with torch.no_grad():
        found, expected = network(images), library_predictions(library_twin(network), images)
    assert len(found.class_logits) == len(expected) == 5
    for layer, (logits, masks) in enumerate(expected):
        torch.testing.assert_close(found.class_logits[layer], logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.masks(layer), masks, rtol=1e-4, atol=1e-3)


def test_gradients_of_all_weights_are_the_librarys(make_network: MakeNetwork) -> None:
    network = shaken(make_network(OFF))
    library = library_twin(network)
    images = noise(2, 3, 64, 64)
    found = network(images)
    ours = [(found.class_logits[layer], found.masks(layer)) for layer in range(3)]
    for predictions in (ours, library_predictions(library, images)):
        loss = torch.zeros(())
        for layer, (logits, masks) in enumerate(predictions):
            loss = loss + (logits * noise(*logits.shape, seed=layer)).sum()
            loss = loss + (masks * noise(*masks.shape, seed=layer + 10)).mean()
        loss.backward()
    expected = dict(library.named_parameters())
    for name, parameter in network.named_parameters():
        gradient = expected[name].grad
        assert parameter.grad is not None and gradient is not None, name
        error = (parameter.grad - gradient).abs().max() / gradient.abs().max().clamp(min=1e-2)
        assert error < 2e-3, f"{name}: {float(error)}"


def test_resnet_50_and_both_references_have_the_parameters_of_the_table() -> None:
    network = RefT(NetworkConfig(), ReferenceConfig(), 80)

    def count(module: nn.Module | None) -> int:
        assert module is not None
        return sum(parameter.numel() for parameter in module.parameters())

    modules = network.model.pixel_level_module
    assert count(modules.encoder) == 23_508_032
    assert count(modules.decoder) == 6_035_904
    assert count(network.model.transformer_module) + count(network.class_predictor) == 14_458_624 + 20_817
    assert count(network.feature_reference) == 592_896
    assert count(network.query_reference) == 263_680


# -- attention masks and batches -------------------------------------------------------------------------


def test_a_query_with_an_empty_mask_looks_everywhere_and_others_inside_their_mask() -> None:
    features = torch.tensor([[[1.0, -1.0, 2.0], [-1.0, -1.0, -1.0]]])  # two channels, three cells
    embeddings = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert visible_cells(embeddings, features).tolist() == [[[[True, False, True], [True, True, True]]]]


def test_empty_masks_give_finite_predictions_and_gradients(make_network: MakeNetwork) -> None:
    network = make_network(OFF).eval()
    embedder: Any = network.model.transformer_module.decoder.mask_predictor.mask_embedder
    projection: Any = network.model.pixel_level_module.decoder.mask_projection
    with torch.no_grad():  # every mask is -1 everywhere
        for parameter in (*embedder.parameters(), *projection.parameters()):
            parameter.zero_()
        [*embedder.parameters()][-1][0] = -1
        projection.bias[0] = 1
    found = network(noise(1, 3, 64, 64))
    assert (found.masks() < 0).all()
    found.class_logits.sum().backward()
    assert found.class_logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("references", [OFF, ReferenceConfig()])
def test_in_training_an_image_is_predicted_without_regard_to_the_rest_of_its_batch(
    make_network: MakeNetwork, make_supports: MakeSupports, references: ReferenceConfig
) -> None:
    network = shaken(make_network(references)).train()
    with torch.no_grad():
        given = None if references.is_off else references_of(network, make_supports())
        images = noise(3, 3, 64, 64)
        together, alone = network(images, given), network(images[1:2], given)
    torch.testing.assert_close(together.class_logits[:, 1:2], alone.class_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.masks()[1:2], alone.masks(), rtol=1e-4, atol=1e-3)


# -- references in the network ---------------------------------------------------------------------------


def with_weights_of(network: RefT, before: RefT) -> RefT:
    missing, unexpected = network.load_state_dict(before.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith(("feature_reference.", "query_reference.")) for name in missing)
    return network.eval()


@pytest.mark.parametrize("mode", ["reweight", "add"])
def test_a_new_feature_reference_changes_nothing(
    make_network: MakeNetwork, make_supports: MakeSupports, mode: Any
) -> None:
    plain = shaken(make_network(OFF))
    network = with_weights_of(make_network(ReferenceConfig(mode, query="off"), seed=1), plain)
    images = noise(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = network(images, references_of(network, make_supports())), plain(images)
    assert torch.equal(found.class_logits, expected.class_logits)
    assert torch.equal(found.masks(), expected.masks())


def test_a_new_query_reference_repeats_the_last_prediction(
    make_network: MakeNetwork, make_supports: MakeSupports
) -> None:
    network = make_network(ReferenceConfig()).eval()
    with torch.no_grad():
        found = network(noise(2, 3, 64, 64), references_of(network, make_supports()))
    torch.testing.assert_close(found.class_logits[-1], found.class_logits[-2], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.masks(-1), found.masks(-2), rtol=1e-2, atol=1e-2)


def predicted(network: RefT, references: References | None) -> Predictions:
    with torch.no_grad():
        found: Predictions = network(noise(2, 3, 64, 64), references)
    return found


def test_linked_after_the_last_layer_one_prediction_joins_those_of_mask2former(
    make_network: MakeNetwork, make_supports: MakeSupports
) -> None:
    plain = shaken(make_network(OFF))
    network = with_weights_of(make_network(ReferenceConfig("off"), seed=1), plain)
    shaken_reference = network.query_reference
    assert shaken_reference is not None
    nn.init.normal_(shaken_reference.attention.out_proj.weight)
    found, before = predicted(network, references_of(network, make_supports())), predicted(plain, None)
    assert torch.equal(found.class_logits[:-1], before.class_logits)
    assert not torch.allclose(found.class_logits[-1], before.class_logits[-1], atol=1e-2)


def test_linked_after_all_layers_every_prediction_but_that_of_the_learned_queries_changes(
    make_network: MakeNetwork, make_supports: MakeSupports
) -> None:
    plain = shaken(make_network(OFF))
    network = with_weights_of(make_network(ReferenceConfig("off", query="all"), seed=1), plain)
    assert network.query_reference is not None
    nn.init.normal_(network.query_reference.attention.out_proj.weight)
    found, before = predicted(network, references_of(network, make_supports())), predicted(plain, None)
    assert found.class_logits.shape == before.class_logits.shape
    assert torch.equal(found.class_logits[0], before.class_logits[0])
    changes = (found.class_logits - before.class_logits).abs().amax((1, 2, 3))
    assert (changes[1:] > 1e-2).all()


def test_supports_pass_without_references(make_network: MakeNetwork, make_supports: MakeSupports) -> None:
    network, other = shaken(make_network(ReferenceConfig())), make_network(ReferenceConfig()).eval()
    other.load_state_dict(network.state_dict())
    shaken_otherwise = shaken(make_network(ReferenceConfig()), seed=8)
    for name in ("feature_reference", "query_reference"):
        getattr(other, name).load_state_dict(getattr(shaken_otherwise, name).state_dict())
    with torch.no_grad():
        found, expected = network.read_supports(make_supports()), other.read_supports(make_supports())
    assert torch.equal(found.queries, expected.queries)
    assert all(map(torch.equal, found.pooled, expected.pooled))


def test_supports_in_chunks_give_what_they_give_at_once(
    make_network: MakeNetwork, make_supports: MakeSupports
) -> None:
    network, supports = make_network().eval(), make_supports((0, 1, 4, 4, 6))
    chunks = [
        Supports(supports.images[part], supports.masks[part], supports.labels[part])
        for part in (slice(0, 2), slice(2, 4), slice(4, 5))
    ]
    with torch.no_grad():
        expected = network.read_supports(supports)
    found = network.read_all(chunks, torch.device("cpu"))
    torch.testing.assert_close(found.queries, expected.queries, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-4, atol=1e-4)
    assert found.labels.tolist() == [0, 1, 4, 4, 6]


def test_a_network_with_references_asks_for_supports(make_network: MakeNetwork) -> None:
    with pytest.raises(TenfoldError, match="refers to supports"):
        make_network()(noise(1, 3, 64, 64))
    with pytest.raises(TenfoldError, match="no support example"):
        make_network().read_all([], torch.device("cpu"))


# -- classes ---------------------------------------------------------------------------------------------


def test_cosine_logits_are_scaled_cosines() -> None:
    classifier = CosineClassifier(3, 2, 20.0)
    classifier.weight = nn.Parameter(torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 1.0]]))
    found = classifier(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.5]]))
    expected = torch.tensor([[20.0, 0.0], [0.0, 20 / 2**0.5]])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_new_classes_come_after_the_base_classes_whose_logits_stay(
    make_network: MakeNetwork, kind: str
) -> None:
    network = make_network(OFF, classifier=kind)
    queries, rows = noise(5, 32), noise(3, 32, seed=1)
    before = network.class_predictor(queries).detach()
    network.grow(rows, keep_base=True)
    after = network.class_predictor(queries)
    assert network.num_classes == 10
    torch.testing.assert_close(after[:, :7], before[:, :7])
    torch.testing.assert_close(after[:, -1], before[:, -1])
    if kind == "linear":
        expected = queries @ rows.T
    else:
        expected = 20 * nn.functional.cosine_similarity(queries[:, None], rows[None], dim=-1)
    torch.testing.assert_close(after[:, 7:10], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_new_classes_in_the_place_of_base_classes_keep_no_object_alone(
    make_network: MakeNetwork, kind: str
) -> None:
    network = make_network(OFF, classifier=kind)
    queries = noise(5, 32)
    before = network.class_predictor(queries).detach()
    network.grow(noise(3, 32), keep_base=False)
    after = network.class_predictor(queries)
    assert after.shape == (5, 4)
    torch.testing.assert_close(after[:, -1], before[:, -1])


def test_a_classifier_grows_by_at_least_one_class() -> None:
    with pytest.raises(TenfoldError, match="at least one class"):
        grown(nn.Linear(4, 3), torch.zeros(0, 4), keep_base=True)


def test_imprinted_rows_are_means_of_normalised_queries() -> None:
    queries = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, -3.0]])
    rows = imprinted_rows(queries, torch.tensor([1, 1, 0]), 2)
    torch.testing.assert_close(rows, torch.tensor([[0.0, -1.0], [0.5, 0.5]]), rtol=1e-4, atol=1e-4)


def test_a_class_is_not_imprinted_without_an_example() -> None:
    with pytest.raises(TenfoldError, match=r"\[1\] have no support example"):
        imprinted_rows(torch.ones(2, 4), torch.tensor([0, 2]), 3)


def test_a_network_imprints_the_best_query_of_each_example(
    make_network: MakeNetwork, make_supports: MakeSupports
) -> None:
    network = make_network(OFF, classifier="cosine").eval()
    with torch.no_grad():
        features = network.read_supports(make_supports((8, 7, 8)), imprinting=True)
    assert (features.scores[:, 0] >= features.scores[:, 1]).all()
    best = features.queries[:, 0] / features.queries[:, 0].norm(dim=-1, keepdim=True)
    expected = torch.stack((best[1], (best[0] + best[2]) / 2))
    torch.testing.assert_close(network.imprint(features, 7, 2), expected, rtol=1e-4, atol=1e-4)


def test_fresh_rows_are_small_and_repeat_with_their_seed() -> None:
    first, second = (fresh_rows(50, 64, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert float(first.std()) == pytest.approx(0.01, rel=0.1)


# -- state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_grown_network_is_built_again_from_its_file(
    make_network: MakeNetwork, make_supports: MakeSupports, tmp_path: Path, kind: str
) -> None:
    network = shaken(make_network(ReferenceConfig("add", query="all", top_k=3), classifier=kind))
    network.grow(noise(3, 32), keep_base=True)
    path = tmp_path / "model.pt"
    torch.save({"shape": network.shape, "network": network.state_dict()}, path)
    content = torch.load(path, weights_only=True)
    again = RefT.of_shape(content["shape"])
    again.load_state_dict(content["network"])
    again.eval()
    assert again.references == network.references
    found, expected = (predicted(one, references_of(one, make_supports((0, 9)))) for one in (again, network))
    assert torch.equal(found.class_logits, expected.class_logits)
    assert torch.equal(found.masks(), expected.masks())


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"network": {"depth": 3}, "references": {}, "num_classes": 2},
        {"network": {}, "references": {}, "num_classes": "x"},
    ],
)
def test_a_foreign_file_is_refused_in_one_sentence(shape: dict[str, Any]) -> None:
    with pytest.raises(TenfoldError, match=r"no network of this package .*; give model.pt of a run"):
        RefT.of_shape(shape)


def test_a_network_has_a_class() -> None:
    with pytest.raises(TenfoldError, match="at least one class"):
        RefT(NetworkConfig(), OFF, 0)
