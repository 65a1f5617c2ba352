"""The loops: what each method changes, what may be seen, and that a kill does no harm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch_geometric.nn import GATConv

from tenfold.reliant.batches import FullBatches
from tenfold.reliant.bias import bias_surrogate
from tenfold.reliant.config import FRAMEWORKS, DistillationConfig, SamplingConfig, TeacherConfig
from tenfold.reliant.fairness_metrics import evaluate_predictions
from tenfold.reliant.graphs import FairGraph
from tenfold.reliant.knowledge import SoftLabels, knowledge_distance
from tenfold.reliant.label_propagation import LabelPropagationStudent
from tenfold.reliant.node_output import NodeOutput
from tenfold.reliant.profiles import METHODS, PROTOCOLS
from tenfold.reliant.proxies import BiasProxies, student_input_dim
from tenfold.reliant.selection import BestEpoch
from tenfold.reliant.sgc_student import build_sgc_student
from tenfold.reliant.training import BiasTerm, all_metrics, bias_roles, distill, train_teacher
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run

AKD = replace(FRAMEWORKS["akd"], epochs=12, lr=0.01)
CPF = replace(FRAMEWORKS["cpf"], epochs=12, num_layers=4)
CONFIGS = {"akd": AKD, "cpf": CPF}


class Killed(BaseException):
    """As a signal would, it passes every ``except Exception``."""


class GATStudent(nn.Module):
    """An architecture that the paper does not have: torch_geometric's graph attention, logits only."""

    def __init__(self, input_dim: int, classes: int = 2) -> None:
        super().__init__()
        self.first = GATConv(input_dim, 8, heads=2, add_self_loops=False)
        self.second = GATConv(16, classes, add_self_loops=False)

    def forward(self, features: torch.Tensor, topology: Any) -> torch.Tensor:
        values = self.first(features, topology.edge_index).relu()
        return self.second(values, topology.edge_index)


class MLPTeacher(nn.Module):
    """A teacher that never looks at an edge; returns a plain tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(7, 10), nn.Linear(10, 2)

    def forward(self, features: torch.Tensor, topology: Any) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.hidden(features).relu()
        return self.out(embedding), embedding


def biased_graph(small: FairGraph) -> FairGraph:
    """Labels lean on the group, and the group is a feature: whoever learns the labels learns the bias."""
    generator = torch.Generator().manual_seed(1)
    lean = torch.rand(60, generator=generator) < 0.75
    labels = torch.where(lean, small.sensitive, small.labels)
    features = small.features.clone()
    features[:, 1] = 2.0 * small.sensitive - 1
    return replace(small, labels=labels, features=features)


@pytest.mark.parametrize("framework", ["cpf", "akd"])
def test_every_method_leaves_a_student(
    small: FairGraph, teacher: NodeOutput, cpu: Fabric, make_run: Any, framework: str
) -> None:
    for method, changes in METHODS.items():
        config = replace(CONFIGS[framework], epochs=3, **changes)
        with make_run(method.replace(" ", "-")) as run:
            student = distill(small, teacher, config, 0, cpu, run)
        metrics = all_metrics(small, student, teacher)
        assert {"accuracy", "delta_sp", "last_delta_eo", "val_accuracy", "agreement"} <= metrics.keys()
        assert [row["step"] for row in run.history()] == [1, 2, 3]
        assert bool(student.proxies.values.any()) == config.use_proxies


def test_any_student_and_any_teacher_will_do(small: FairGraph, cpu: Fabric, make_run: Any) -> None:
    """RELIANT around a student and a teacher that the paper does not have, and it lowers the bias of both."""
    graph = biased_graph(small)
    with make_run("mlp") as run:
        teacher = train_teacher(graph, TeacherConfig(epochs=150), 0, cpu, run, build=MLPTeacher).output
    config = replace(FRAMEWORKS["cpf"], epochs=150, lr=0.01, weight_decay=5e-4)
    students = {}
    for name, changes in (("plain", METHODS["Vanilla"]), ("fair", {"alpha": 300.0})):
        with make_run(name) as run:
            students[name] = distill(
                graph, teacher, replace(config, **changes), 0, cpu, run, build=GATStudent
            )
        assert isinstance(students[name].network, GATStudent)
        assert students[name].network.first.in_channels == graph.num_features + 2
    bias = {
        name: bias_surrogate(student.last_output.logits.softmax(dim=1), graph.sensitive, graph.train)
        for name, student in students.items()
    }
    assert bias["fair"] < 0.2 * bias["plain"]
    again = students["fair"].predict(FullBatches(graph))
    torch.testing.assert_close(again.logits, students["fair"].output.logits)


def test_adversarial_distillation_says_what_it_needs(
    small: FairGraph, teacher: NodeOutput, cpu: Fabric, make_run: Any
) -> None:
    with make_run("a") as run, pytest.raises(TenfoldError, match="this student returns logits only"):
        distill(small, teacher, AKD, 0, cpu, run, build=GATStudent)
    with make_run("b") as run, pytest.raises(TenfoldError, match="this teacher returns logits only"):
        distill(small, NodeOutput(teacher.logits), AKD, 0, cpu, run)
    with (
        make_run("c") as run,
        pytest.raises(TenfoldError, match="16 columns and the student's 5; give the student"),
    ):
        distill(small, teacher, replace(AKD, hidden_dim=5), 0, cpu, run)
    with make_run("d") as run, pytest.raises(TenfoldError, match="needs a teacher"):
        distill(small, None, AKD, 0, cpu, run)


@pytest.mark.parametrize("objective", ["sp", "eo"])
@pytest.mark.parametrize("framework", ["cpf", "akd"])
def test_the_default_protocol_sees_no_group_and_no_label_outside_training(
    small: FairGraph, teacher: NodeOutput, cpu: Fabric, make_run: Any, framework: str, objective: Any
) -> None:
    """Other groups everywhere but in training, and other test labels: the student must be the same to the bit."""
    hidden = torch.ones(60, dtype=torch.bool)
    hidden[small.train] = False
    labels = small.labels.clone()
    labels[small.test] = 1 - labels[small.test]
    drawn = torch.randint(0, 2, (60,), generator=torch.Generator().manual_seed(5))
    other = replace(small, labels=labels, sensitive=torch.where(hidden, drawn, small.sensitive))
    config = replace(CONFIGS[framework], objective=objective, alpha=50.0)
    official = replace(config, **PROTOCOLS["official"][framework])
    outputs = {}
    for name, settings in (("default", config), ("official", official)):
        for graph_name, graph in (("as it is", small), ("changed", other)):
            with make_run(f"{name}-{graph_name.replace(' ', '-')}") as run:
                outputs[name, graph_name] = distill(graph, teacher, settings, 0, cpu, run).last_output.logits
    assert torch.equal(outputs["default", "as it is"], outputs["default", "changed"])
    assert not torch.equal(outputs["official", "as it is"], outputs["official", "changed"])


def test_the_bias_term_looks_where_the_protocol_says() -> None:
    assert bias_roles(AKD) == bias_roles(CPF) == ("train", "train")
    assert bias_roles(replace(AKD, bias_nodes="official")) == ("train", "all")
    assert bias_roles(replace(CPF, bias_nodes="official")) == ("unlabelled", "unlabelled")


def test_the_proxies_step_raises_bias_and_leaves_the_student_alone(small: FairGraph, cpu: Fabric) -> None:
    torch.manual_seed(0)
    student, proxies = build_sgc_student(9, 16).eval(), BiasProxies(60)
    config = replace(AKD, alpha=10.0, proxy_lr=0.05, weight_decay=0.0)
    term, batch = BiasTerm(config, proxies, student, cpu), FullBatches(small).batch

    def bias() -> float:
        with torch.no_grad():
            output = student(proxies.with_own(batch.features, None), batch.topology)
            return float(term.of_student(output, batch))

    weights = [value.clone() for value in student.parameters()]
    values = [bias()]
    for _ in range(15):
        term.proxy_step(batch)
        values.append(bias())
    assert values[-1] > 2 * values[0]
    assert all(torch.equal(a, b) for a, b in zip(weights, student.parameters(), strict=True))
    assert all(value.grad is None for value in student.parameters())


def test_proxies_join_the_features_as_said() -> None:
    features = torch.arange(12.0).view(3, 4)
    torch.manual_seed(0)
    appended, replaced = BiasProxies(3), BiasProxies(3, placement="replace-last")
    assert (student_input_dim(4), student_input_dim(4, "replace-last")) == (6, 4)
    assert ((appended.values >= 0) & (appended.values <= 1)).all()
    own = appended.with_own(features, None)
    assert torch.equal(own[:, :4], features) and torch.equal(own[:, 4:], appended.values)
    assert torch.equal(appended.with_own(features[[2]], torch.tensor([2]))[:, 4:], appended.values[[2]])
    mean = replaced.with_mean(features)
    assert torch.equal(mean[:, :2], features[:, :2])
    torch.testing.assert_close(mean[:, 2:], replaced.values.mean(dim=0).expand(3, -1))
    assert not mean.requires_grad and own.requires_grad
    assert not BiasProxies(3, enabled=False).with_own(features, None).requires_grad
    with pytest.raises(TenfoldError, match="2 features are too few to replace 2"):
        student_input_dim(2, "replace-last")


def test_plain_distillation_is_reliant_without_its_parts(
    small: FairGraph, teacher: NodeOutput, cpu: Fabric, make_run: Any
) -> None:
    """With alpha 0 the bias term changes nothing; with the proxies off, their columns are zero."""
    outputs = []
    for objective in ("sp", "eo"):
        with make_run(objective) as run:
            config = replace(AKD, objective=objective, **METHODS["Vanilla"])
            student = distill(small, teacher, config, 0, cpu, run)
        assert not student.proxies.values.any()
        outputs.append(student.last_output.logits)
    assert torch.equal(*outputs)


def test_knowledge_distance_is_a_norm_over_the_nodes() -> None:
    target, student = torch.rand(9, 3).softmax(dim=1), torch.randn(9, 3)
    nodes = torch.tensor([0, 4, 5])
    expected = sum(((student.softmax(dim=1) - target)[v] ** 2).sum() for v in nodes.tolist()) ** 0.5
    torch.testing.assert_close(knowledge_distance(student.log_softmax(dim=1), target, nodes), expected)


def test_rounded_teachers_are_those_of_a_text_file(teacher: NodeOutput) -> None:
    written = torch.tensor(
        [[float(f"{p:.4f}") for p in row] for row in teacher.logits.softmax(dim=1).tolist()]
    )
    torch.testing.assert_close(SoftLabels(teacher, 4).probabilities, written, rtol=0, atol=1e-6)


def test_the_best_epoch_is_kept_and_patience_ends_the_search() -> None:
    value = torch.zeros(1)
    best = BestEpoch({"w": value}, patience=2, newer_wins=True)
    for epoch, score in enumerate([0.1, 0.5, 0.5, 0.2, 0.3, 0.9]):
        value.fill_(float(epoch))
        best.offer(epoch, torch.tensor(score))
        assert best.is_over(epoch) == (epoch > 4)
    assert int(best.epoch) == 2 and float(best.copies["w"]) == 2  # 0.9 came too late
    older = BestEpoch({"w": value}, patience=None, newer_wins=False)
    for epoch in range(3):
        older.offer(epoch, torch.tensor(0.5))
    assert int(older.epoch) == 0 and not older.is_over(1000)
    older.offer(9, torch.tensor(torch.nan))
    assert int(older.epoch) == 0


def test_training_ends_when_patience_runs_out(small: FairGraph, cpu: Fabric, make_run: Any) -> None:
    config = replace(AKD, epochs=300, patience=5, lr=0.0, learn_from="labels", use_proxies=False, alpha=0.0)
    with make_run("patient") as run:
        trained = distill(small, None, config, 0, cpu, run)
    assert (trained.best_epoch, trained.epochs) == (1, 10)  # seen at the next look at the device


@pytest.mark.parametrize("framework", ["cpf", "akd"])
def test_the_same_seed_gives_the_same_student(
    small: FairGraph, teacher: NodeOutput, cpu: Fabric, make_run: Any, framework: str
) -> None:
    outputs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        with make_run(name) as run:
            outputs.append(distill(small, teacher, CONFIGS[framework], seed, cpu, run).last_output.logits)
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


class Interrupted(Run):
    """A run that is killed at a certain checkpoint."""

    def save_checkpoint(self, step: int, state: Any) -> None:
        super().save_checkpoint(step, state)
        if step == 20:
            raise Killed


@pytest.mark.parametrize("framework", ["cpf", "akd", "sampled akd", "teacher"])
def test_a_killed_training_goes_on_to_the_same_result(
    small: FairGraph, teacher: NodeOutput, cpu: Fabric, make_run: Any, framework: str
) -> None:
    config = replace(CONFIGS.get(framework, AKD), epochs=34, alpha=20.0)
    if framework == "sampled akd":
        config = replace(config, sampling=SamplingConfig(16, (3, 3, 3)))

    def work(run: Run) -> Any:
        with run:
            if framework == "teacher":
                return train_teacher(small, TeacherConfig(epochs=34), 3, cpu, run)
            return distill(small, teacher, config, 3, cpu, run)

    whole = make_run("whole")
    expected = work(whole)
    broken = make_run("broken")
    interrupted = Interrupted(whole.directory.parents[2], broken.key, {}, checkpoint_seconds=0.0)
    with pytest.raises(Killed):
        work(interrupted)
    assert [row["step"] for row in interrupted.history()] == list(range(1, 21))
    resumed = work(broken)
    assert broken.history() == whole.history()
    assert torch.equal(resumed.output.logits, expected.output.logits)
    assert torch.equal(resumed.last_output.logits, expected.last_output.logits)
    if framework != "teacher":
        assert torch.equal(resumed.proxies.values, expected.proxies.values)


@pytest.mark.parametrize("framework", ["cpf", "akd"])
def test_students_learn_what_the_teacher_knows(
    make_graph: Any, cpu: Fabric, make_run: Any, framework: str
) -> None:
    graph = make_graph(num_nodes=400)
    with make_run("teacher") as run:
        teacher = train_teacher(graph, TeacherConfig(epochs=100, hidden_dim=16), 0, cpu, run).output
    config = replace(CONFIGS[framework], epochs=150, weight_decay=5e-4, **METHODS["Vanilla"])
    known = torch.full((400,), -1)
    known[graph.train] = graph.labels[graph.train]

    def build(input_dim: int) -> nn.Module:  # seven features are too few to drop most of them
        if framework == "akd":
            return build_sgc_student(input_dim, 16)
        return LabelPropagationStudent(known, input_dim, num_layers=4, feature_dropout=0.2)

    with make_run(framework) as run:
        student = distill(graph, teacher, config, 0, cpu, run, build=build)
    unseen = torch.cat([graph.val, graph.test])
    decisions = [output.logits[unseen].argmax(dim=1) for output in (student.output, teacher)]
    assert (decisions[0] == decisions[1]).float().mean() > 0.75


def test_more_groups_and_classes_can_be_distilled(make_graph: Any, cpu: Fabric, make_run: Any) -> None:
    graph = make_graph(num_groups=3, num_classes=4)
    with make_run("t") as run:
        teacher = train_teacher(graph, TeacherConfig(epochs=20, hidden_dim=16), 0, cpu, run).output
    for framework in ("akd", "cpf"):
        with make_run(framework) as run:
            student = distill(graph, teacher, replace(CONFIGS[framework], epochs=3), 0, cpu, run)
        assert student.output.logits.shape == (60, 4)
        metrics = evaluate_predictions(student.output.logits, graph.labels, graph.sensitive)
        assert 0 <= metrics["delta_sp"] <= 1


def test_official_evaluation_keeps_dropout_on(
    small: FairGraph, teacher: NodeOutput, cpu: Fabric, make_run: Any
) -> None:
    with make_run("noisy") as run:
        student = distill(small, teacher, replace(AKD, evaluate_with_dropout=True), 0, cpu, run)
    noisy = [student.predict(FullBatches(small), with_dropout=True).logits for _ in range(2)]
    assert not torch.equal(*noisy)
    assert torch.equal(*[student.predict(FullBatches(small)).logits for _ in range(2)])
    assert not student.network.training


def test_both_backends_train_alike(small: FairGraph, teacher: NodeOutput, cpu: Fabric, make_run: Any) -> None:
    pytest.importorskip("dgl")
    for framework in ("akd", "cpf"):
        outputs = []
        for backend in ("pyg", "dgl"):
            with make_run(f"{framework}-{backend}") as run:
                config = replace(CONFIGS[framework], epochs=5, attention="tra")
                outputs.append(distill(small, teacher, config, 0, cpu, run, backend).last_output.logits)
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)


def test_a_compiled_student_is_the_eager_one(
    small: FairGraph, teacher: NodeOutput, cpu: Fabric, make_run: Any
) -> None:
    outputs = []
    for name, compiled in (("eager", False), ("compiled", True)):
        with make_run(name) as run:
            config = DistillationConfig(epochs=3, lr=0.01, **METHODS["Vanilla"])

            def build(input_dim: int) -> nn.Module:
                student = build_sgc_student(input_dim, 16)
                student.dropout.p = 0.0
                return student

            outputs.append(
                distill(
                    small, teacher, config, 0, cpu, run, build=build, compile_network=compiled
                ).last_output.logits
            )
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("framework", ["cpf", "akd"])
def test_mixed_precision_trains(small: FairGraph, teacher: NodeOutput, make_run: Any, framework: str) -> None:
    from tenfold.shared.accelerator import AcceleratorConfig, make_fabric

    fabric = make_fabric(AcceleratorConfig(device="cpu", precision="bf16-mixed"))
    fabric.launch()
    with make_run("bf16") as run:
        student = distill(small, teacher, replace(CONFIGS[framework], epochs=3), 0, fabric, run)
    assert student.output.logits.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("framework", ["cpf", "akd"])
def test_training_runs_on_a_gpu(small: FairGraph, teacher: NodeOutput, make_run: Any, framework: str) -> None:
    from tenfold.shared.accelerator import AcceleratorConfig, make_fabric

    fabric = make_fabric(AcceleratorConfig(device="cuda"))
    fabric.launch()
    with make_run("gpu") as run:
        student = distill(small, teacher, CONFIGS[framework], 0, fabric, run)
    assert student.output.logits.is_cuda and student.output.logits.isfinite().all()
