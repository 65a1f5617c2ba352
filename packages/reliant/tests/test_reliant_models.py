"""Teachers and students: sizes, initial values, what they show of themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tenfold.reliant.adversarial import Discriminators
from tenfold.reliant.checkpoints import load_official_state_dict, official_key
from tenfold.reliant.graphs import FairGraph
from tenfold.reliant.label_propagation import LabelPropagationStudent
from tenfold.reliant.node_output import as_node_output
from tenfold.reliant.sgc_student import build_sgc_student
from tenfold.reliant.teachers import build_teacher
from tenfold.shared.logging import TenfoldError

SETS = {"recidivism": (18, 18876), "credit": (13, 30000), "german": (27, 1000)}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("gcn", (5506, 5186, 6082)), ("sage", (35714, 35074, 36866)), ("sgc", (5634, 5314, 6210))],
)
def test_networks_have_the_published_sizes(kind: str, expected: tuple[int, int, int]) -> None:
    for (width, _), parameters in zip(SETS.values(), expected, strict=True):
        model = build_sgc_student(width + 2) if kind == "sgc" else build_teacher(kind, width)
        assert count(model) == parameters


def test_label_propagation_and_discriminators_have_the_published_sizes() -> None:
    for (width, num_nodes), parameters in zip(SETS.values(), (39116, 61039, 3949), strict=True):
        assert count(LabelPropagationStudent(torch.full((num_nodes,), -1), width)) == parameters
    assert count(Discriminators(2, 64)) == 142
    assert count(Discriminators(2, 128)) == 12 + 2 * 129


def test_embeddings_are_the_first_layer_after_relu_in_gcn_and_before_it_in_sage(small: FairGraph) -> None:
    topology = small.topology()
    gcn, sage = build_teacher("gcn", 7).eval(), build_teacher("sage", 7).eval()
    first = gcn.layers[0](small.features, topology)
    torch.testing.assert_close(gcn(small.features, topology).embedding, first.relu())
    first = sage.layers[0](small.features, topology)
    torch.testing.assert_close(sage(small.features, topology).embedding, first)
    assert (first < 0).any()


def test_dropout_is_on_in_training_only(small: FairGraph) -> None:
    topology = small.topology()
    known = torch.full((60,), -1)
    known[:20] = small.labels[:20]
    models = [
        build_teacher("gcn", 7),
        build_teacher("sage", 7),
        build_sgc_student(7),
        LabelPropagationStudent(known, 7),
    ]
    for model in models:
        first, second = (model.train()(small.features, topology).logits for _ in range(2))
        assert not torch.equal(first, second)
        first, second = (model.eval()(small.features, topology).logits for _ in range(2))
        assert torch.equal(first, second)


def test_initial_values_are_those_of_dgl() -> None:
    torch.manual_seed(0)
    gcn, sage, sgc = (
        build_teacher("gcn", 500, 300),
        build_teacher("sage", 500, 300),
        build_sgc_student(500, 300),
    )
    bound = (6 / 800) ** 0.5
    for weight, largest in (
        (gcn.layers[0].weight, bound),
        (sage.layers[0].fc_neigh.weight, bound * 2**0.5),
        (sgc.layers[0].fc.weight, bound),
    ):
        assert float(weight.abs().max()) == pytest.approx(largest, rel=0.01)
    assert not any(
        p.any()
        for n, p in [*gcn.named_parameters(), *sage.named_parameters(), *sgc.named_parameters()]
        if n.endswith("bias")
    )
    student = LabelPropagationStudent(torch.full((5000,), -1), 2000, ptype="tra")
    assert not student.balance.any()
    assert float(student.node_scores.std()) == pytest.approx(2**0.5 * (2 / 5001) ** 0.5, rel=0.05)


@pytest.mark.parametrize("ptype", ["ind", "tra"])
def test_label_propagation_follows_its_formula(small: FairGraph, ptype) -> None:
    known = torch.full((60,), -1)
    known[small.train] = small.labels[small.train]
    student = LabelPropagationStudent(known, 7, num_layers=4, ptype=ptype).eval()
    nn.init.normal_(student.balance)
    state = torch.full((60, 2), 0.5)
    state[small.train] = nn.functional.one_hot(small.labels[small.train], 2).float()
    scores = student.attention_scores(small.features)
    prediction = student.mlp.linears[1](student.mlp.linears[0](small.features).relu())
    for _ in range(3):
        spread = torch.zeros(60, 2)
        for v in range(60):
            sources = small.edge_index[0][small.edge_index[1] == v]
            spread[v] = scores[sources].softmax(dim=0) @ state[sources]
        weight = student.balance.sigmoid()
        new = (weight * spread + (1 - weight) * prediction).relu()
        new[small.train] = state[small.train]
        state = new
    output = student(small.features, small.topology())
    torch.testing.assert_close(output.logits, state, rtol=1e-4, atol=1e-5)
    assert output.pinned.nonzero().squeeze(1).tolist() == sorted(small.train.tolist())


def test_hidden_labels_are_no_longer_pinned_and_are_drawn_anew(small: FairGraph) -> None:
    known = torch.full((60,), -1)
    known[small.train] = small.labels[small.train]
    student = LabelPropagationStudent(known, 7, hidden_labels=0.5)
    first, second = (student.train()(small.features, small.topology()).pinned for _ in range(2))
    for pinned in (first, second):
        assert 0 < int(pinned.sum()) < len(small.train)
        assert not pinned[known < 0].any()
    assert not torch.equal(first, second)
    assert int(student.eval()(small.features, small.topology()).pinned.sum()) == len(small.train)


def test_official_keys_are_loaded_strictly() -> None:
    student = LabelPropagationStudent(torch.full((9,), -1), 4)
    state = {
        official_key(student, key): torch.randn_like(value) for key, value in student.state_dict().items()
    }
    assert {
        "alpha",
        "plp_layer.lr_alpha",
        "plp_layer.attn_l",
        "plp_layer.mlp.linears.0.weight",
    } <= state.keys()
    load_official_state_dict(student, state)
    assert torch.equal(student.balance, state["plp_layer.lr_alpha"])
    del state["alpha"]
    state["more"] = torch.zeros(1)
    state["plp_layer.attn_l"] = torch.zeros(1, 5)
    with pytest.raises(
        TenfoldError, match=r"missing alpha; unexpected more; plp_layer.attn_l has shape \(1, 5\)"
    ):
        load_official_state_dict(student, state)


def test_unknown_teachers_and_strange_outputs_are_named() -> None:
    with pytest.raises(TenfoldError, match="unknown teacher 'gat'; choose gcn or sage"):
        build_teacher("gat", 5)
    for value in ("logits", torch.zeros(5)):
        with pytest.raises(TenfoldError, match="must return logits"):
            as_node_output(value)
