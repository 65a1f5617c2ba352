"""The generation loop: GFKD, its baselines, its options, and that it can be repeated and resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tenfold.gfkd.config import GenerationConfig
from tenfold.gfkd.generation import (
    GENERATION_METHODS,
    GraphGenerator,
    TeacherObjective,
    chunk_seed,
    chunk_sizes,
)
from tenfold.gfkd.graphs import GraphSet
from tenfold.gfkd.models import GraphClassifier, build_model
from tenfold.shared.logging import TenfoldError

CONFIG = GenerationConfig(num_graphs=16, min_nodes=4, max_nodes=9)


def generator(teacher: GraphClassifier, config: GenerationConfig = CONFIG, **options: Any) -> GraphGenerator:
    learned = GENERATION_METHODS[options.pop("method", "GFKD")]
    seeds: Sequence[int] = options.pop("seeds", [0])
    return GraphGenerator(teacher, config, learned, seeds, **options)


def advance(made: GraphGenerator, steps: int) -> torch.Tensor:
    return torch.stack([made.step() for _ in range(steps)])


def assert_equal(first: GraphSet, second: GraphSet) -> None:
    for name, value in first.state_dict().items():
        other = second.state_dict()[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


def test_the_same_seed_gives_the_same_graphs_and_another_seed_others(teacher: GraphClassifier) -> None:
    first, second, other = (generator(teacher, seeds=[seed]) for seed in (3, 3, 4))
    for made in (first, second, other):
        advance(made, 8)
    assert_equal(first.graphs(3), second.graphs(3))
    assert not torch.equal(first.graphs(3).node_counts, other.graphs(4).node_counts)


@pytest.mark.parametrize("estimator", ["arm", "reinforce", "straight-through"])
def test_a_seed_does_not_depend_on_the_seeds_beside_it(teacher: GraphClassifier, estimator: Any) -> None:
    config = replace(CONFIG, estimator=estimator)
    together = generator(teacher, config, seeds=[5, 6, 7])
    losses = advance(together, 5)
    for index, seed in enumerate((5, 6, 7)):
        alone = generator(teacher, config, seeds=[seed])
        torch.testing.assert_close(advance(alone, 5)[:, 0], losses[:, index], rtol=1e-4, atol=1e-5)
        assert torch.equal(alone.graphs(seed).edges, together.graphs(seed).edges)
        state, joint = alone.state_dict(seed), together.state_dict(seed)
        for name in ("structure_logits", "feature_logits"):
            torch.testing.assert_close(state[name], joint[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"undirected": True}, {"estimator": "reinforce"}, {"per_graph_bn": True}]
)
def test_going_on_from_a_stored_state_changes_nothing(
    teacher: GraphClassifier, changes: dict[str, Any]
) -> None:
    config = replace(CONFIG, lr_decay_every=5, **changes)
    undisturbed = generator(teacher, config, seeds=[1, 2])
    expected = advance(undisturbed, 9)
    stopped = generator(teacher, config, seeds=[1, 2])
    advance(stopped, 4)
    states = {seed: stopped.state_dict(seed) for seed in (1, 2)}
    advance(stopped, 2)  # a stored state is a copy
    resumed = generator(teacher, config, seeds=[1, 2])
    for seed, state in states.items():
        resumed.load_state_dict(seed, state)
    assert torch.equal(advance(resumed, 5), expected[4:])
    assert torch.equal(resumed.best_loss, undisturbed.best_loss)
    for seed in (1, 2):
        assert_equal(resumed.graphs(seed), undisturbed.graphs(seed))


def test_a_seed_stored_in_one_batch_goes_on_in_another(teacher: GraphClassifier) -> None:
    expected = generator(teacher, seeds=[8])
    reference = advance(expected, 7)[4:, 0]
    joint = generator(teacher, seeds=[7, 8, 9])
    advance(joint, 4)
    alone = generator(teacher, seeds=[8])
    alone.load_state_dict(8, joint.state_dict(8))
    torch.testing.assert_close(advance(alone, 3)[:, 0], reference, rtol=1e-4, atol=1e-5)


def test_learning_more_reaches_a_lower_objective(teacher: GraphClassifier) -> None:
    config = replace(CONFIG, num_graphs=32, min_nodes=10, max_nodes=20)
    final = {}
    for method in GENERATION_METHODS:
        made = generator(teacher, config, method=method)
        before = made.current_loss()
        advance(made, 60)
        final[method] = float(made.current_loss())
        assert method == "RandG" or final[method] < 0.9 * float(before)
    assert final["GFKD"] < final["DeepInvG"] < final["RandG"]


def test_deepinvg_keeps_the_structure_and_randg_everything(teacher: GraphClassifier) -> None:
    begun = generator(teacher, method="RandG")
    begun.current_loss()
    random = begun.graphs(0)
    for method in ("RandG", "DeepInvG", "GFKD"):
        made = generator(teacher, method=method)
        advance(made, 25)
        graphs = made.graphs(0)
        assert torch.equal(graphs.node_counts, random.node_counts) and torch.equal(
            graphs.labels, random.labels
        )
        assert torch.equal(graphs.edges, random.edges) == (method != "GFKD")
        if method == "RandG":
            assert torch.equal(graphs.nodes, random.nodes)


def test_the_first_step_is_adams_on_the_gradient_of_the_objective(teacher: GraphClassifier) -> None:
    made = generator(teacher, method="DeepInvG")
    before = made.feature_logits.detach().clone().requires_grad_()
    _, topology = made.current_structure()
    loss = made.objective.feature_loss(before, before.softmax(dim=1), topology, one_hot=True)
    reference = torch.optim.Adam([before], lr=CONFIG.feature_lr)
    loss.sum().backward()
    reference.step()
    assert torch.equal(made.step(), loss.detach())
    torch.testing.assert_close(made.feature_logits.detach(), before.detach())


def test_the_structure_step_sees_the_features_after_their_step(teacher: GraphClassifier) -> None:
    made, seen = generator(teacher), []
    original = made.objective.structure_values

    def watch(features: Any, adjacencies: Any) -> Any:
        seen.append(features[0].clone())
        return original(features, adjacencies)

    made.objective.structure_values = watch  # type: ignore[method-assign]
    initial = made.feature_logits.detach().softmax(dim=1)
    made.step()
    torch.testing.assert_close(seen[0], made.feature_logits.detach().softmax(dim=1), rtol=0, atol=0)
    assert not torch.equal(seen[0], initial)


def test_structure_values_are_each_graphs_cross_entropy_plus_the_shared_distance(
    teacher: GraphClassifier,
) -> None:
    made = generator(teacher, replace(CONFIG, bn_weight=0.5))
    adjacency, topology = made.current_structure()
    features = made.features(adjacency).detach()
    (values,) = made.objective.structure_values([features], [adjacency])
    trace = teacher.trace(features, topology)
    cross_entropy = torch.nn.functional.cross_entropy(trace.logits, made.objective.labels, reduction="none")
    shared = values - cross_entropy
    torch.testing.assert_close(shared, shared[:1].expand(len(shared)), rtol=1e-4, atol=1e-4)
    total = made.loss(adjacency, topology) - CONFIG.onehot_weight * 2
    torch.testing.assert_close(values.mean(), total[0].detach(), rtol=1e-3, atol=1e-4)


def test_per_graph_distance_is_that_of_the_graph_alone(teacher: GraphClassifier) -> None:
    made = generator(teacher, replace(CONFIG, num_graphs=3, per_graph_bn=True, bn_weight=0.5))
    adjacency, _ = made.current_structure()
    features = made.features(adjacency).detach()
    values, again = made.objective.structure_values([features] * 2, [adjacency] * 2)
    torch.testing.assert_close(values, again, rtol=1e-6, atol=1e-6)
    counts = made.layout.node_counts
    for index, (part, size) in enumerate(zip(features.split(counts.tolist()), counts.tolist(), strict=True)):
        layout = type(made.layout)(counts[index : index + 1])
        single = TeacherObjective(teacher, layout, made.objective.labels[index : index + 1], [1], 0.5, 0.0)
        (expected,) = single.structure_values([part], [adjacency[index : index + 1, :size, :size]])
        torch.testing.assert_close(values[index], expected[0], rtol=1e-4, atol=1e-4)


def test_learning_rates_fall_together(teacher: GraphClassifier) -> None:
    made = generator(teacher, replace(CONFIG, lr_decay_every=2, structure_lr=5.0))
    rates = []
    for _ in range(5):
        made.step()
        rates.append(
            (made.structure_optimizer.param_groups[0]["lr"], made.feature_optimizer.param_groups[0]["lr"])
        )
    expected = [(5.0, 0.01)] * 2 + [(0.5, 0.001)] * 2 + [(0.05, 0.0001)]
    assert rates == [pytest.approx(pair) for pair in expected]


def test_best_pair_keeps_one_iteration_and_official_the_last_features(teacher: GraphClassifier) -> None:
    # features that run away make an early iteration the best
    config = replace(CONFIG, feature_lr=3.0, onehot_weight=5.0, keep="official")
    official, pair = generator(teacher, config), generator(teacher, replace(config, keep="best-pair"))
    losses, snapshots = [], []
    for _ in range(12):
        adjacency, _ = pair.current_structure()
        snapshots.append((adjacency.clone(), pair.feature_logits.detach().clone()))
        losses.append(float(pair.step()))
        official.step()
    best = min(range(12), key=losses.__getitem__)
    assert float(pair.best_loss) == losses[best]
    assert torch.equal(pair.best_adjacency, snapshots[best][0])
    assert torch.equal(pair.graphs(0).nodes, snapshots[best][1].argmax(dim=1))
    assert torch.equal(official.graphs(0).edges, pair.graphs(0).edges)
    assert torch.equal(official.graphs(0).nodes, official.feature_logits.detach().argmax(dim=1))


def test_undirected_graphs_are_symmetric(teacher: GraphClassifier) -> None:
    for estimator in ("arm", "reinforce", "straight-through"):
        made = generator(teacher, replace(CONFIG, undirected=True, estimator=estimator))
        advance(made, 5)
        assert torch.equal(made.best_adjacency, made.best_adjacency.transpose(1, 2))
        torch.testing.assert_close(made.structure_logits, made.structure_logits.transpose(1, 2))


def test_graphs_are_discrete_with_one_loop_for_every_node(teacher: GraphClassifier) -> None:
    made = generator(teacher, seeds=[0, 1])
    advance(made, 3)
    graphs = made.graphs(1)
    assert len(graphs) == 16 and (graphs.num_features, graphs.num_classes) == (7, 2)
    assert graphs.node_counts.min() >= 4 and graphs.node_counts.max() <= 9
    loops = graphs.edges[:, graphs.edges[0] == graphs.edges[1]]
    assert loops.shape[1] == int(graphs.node_counts.sum()) == len(graphs.nodes)
    assert graphs.packed_edges().unique(dim=1).shape[1] == int(graphs.edge_counts.sum())
    assert graphs.nodes.dtype == torch.int64 and 0 <= int(graphs.nodes.min()) <= int(graphs.nodes.max()) < 7


def test_degree_features_are_the_nearest_known_in_degree_and_nothing_is_learned() -> None:
    known = torch.tensor([1, 3, 4, 10])
    made = generator(build_model("gcn3_32", 4, 2), replace(CONFIG, features="degree"), known_degrees=known)
    before = made.feature_logits.detach().clone()
    advance(made, 4)
    assert torch.equal(made.feature_logits.detach(), before)
    graphs = made.graphs(0)
    targets = graphs.packed_edges()[1]
    degrees = torch.bincount(targets, minlength=len(graphs.nodes))
    distance = (degrees[:, None] - known).abs()
    assert torch.equal(distance.gather(1, graphs.nodes[:, None]).squeeze(1), distance.min(dim=1).values)


def test_degree_features_drop_the_entropy_term() -> None:
    known = torch.arange(1, 5)
    losses = [
        generator(
            build_seeded("gcn3_32", 4),
            replace(CONFIG, features="degree", onehot_weight=weight),
            known_degrees=known,
        ).current_loss()
        for weight in (0.0, 10.0)
    ]
    assert torch.equal(*losses)


def build_seeded(name: str, features: int) -> GraphClassifier:
    torch.manual_seed(0)
    return build_model(name, features, 2)


@pytest.mark.parametrize("estimator", ["arm", "reinforce", "straight-through"])
def test_degree_structure_is_learned_by_every_estimator(estimator: Any) -> None:
    config = replace(CONFIG, features="degree", estimator=estimator)
    made = generator(build_model("gin3_32", 4, 2), config, known_degrees=torch.arange(1, 5), seeds=[0, 1])
    before = made.structure_logits.clone()
    advance(made, 2)
    assert not torch.equal(made.structure_logits, before) and torch.isfinite(made.structure_logits).all()


def test_continuous_features_are_learned_as_they_are(teacher: GraphClassifier) -> None:
    made = generator(teacher, replace(CONFIG, features="continuous"))
    losses = advance(made, 30)
    assert losses[-1] < losses[0]
    nodes = made.graphs(0).nodes
    assert nodes.is_floating_point() and torch.equal(nodes, made.best_feature_logits)


def test_every_backend_generates_the_same(teacher: GraphClassifier) -> None:
    expected = advance(generator(teacher), 3)
    torch.testing.assert_close(advance(generator(teacher, backend="pyg"), 3), expected, rtol=1e-4, atol=1e-5)


def test_straight_through_needs_the_dense_backend(teacher: GraphClassifier) -> None:
    with pytest.raises(TenfoldError, match="needs --backend dense"):
        generator(teacher, replace(CONFIG, estimator="straight-through"), backend="pyg")


def test_chunks_cover_all_graphs_with_seeds_of_their_own() -> None:
    assert chunk_sizes(replace(CONFIG, num_graphs=131, graphs_per_batch=50)) == [50, 50, 31]
    assert chunk_sizes(replace(CONFIG, num_graphs=131)) == [131]
    assert chunk_seed(4, 0) == 4
    assert len({chunk_seed(seed, chunk) for seed in range(100) for chunk in range(100)}) == 10_000


@pytest.mark.parametrize(
    "changes", [{"min_nodes": 10, "max_nodes": 9}, {"min_nodes": 0}, {"num_graphs": 0}, {"lr_decay_every": 0}]
)
def test_impossible_sizes_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(TenfoldError, match="must be at least"):
        replace(CONFIG, **changes)
