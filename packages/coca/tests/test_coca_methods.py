"""What each method does in a step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tenfold.coca.augmentation import Preprocessing
from tenfold.coca.image_sets import ImageSet
from tenfold.coca.learner import Learner
from tenfold.coca.memory import ReservoirMemory, TaskMemory
from tenfold.coca.methods import METHODS, StepBatch, coca_step_loss
from tenfold.coca.methods.fdr import function_distance
from tenfold.coca.methods.gradient_projection import project, project_onto_cone
from tenfold.coca.methods.icarl import herd
from tenfold.coca.methods.ocd_net import OcdNet, contrastive_distillation_loss, response_distillation_loss
from tenfold.shared.accelerator import AcceleratorConfig, make_fabric

MakeLearner = Callable[..., Learner]
MakeImages = Callable[..., ImageSet]


def feed(learner: Learner, images: ImageSet, batch_size: int = 8) -> None:
    """Two tasks of two classes each, in order."""
    for classes in ((0, 1), (2, 3)):
        task = images.of_classes(classes)
        learner.begin_task(classes)
        for batch in torch.arange(len(task)).split(batch_size):
            learner.observe(task.images[batch], task.labels[batch])
        learner.end_task(task.images, task.labels)


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.network.state_dict().items()}


@pytest.mark.parametrize("network", ["mlp", "resnet18"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_two_tasks_with_every_network(
    method: str, network: str, make_learner: MakeLearner, small_sets: Any
) -> None:
    learner = make_learner(method, network, alpha=0.3, lr=0.05)
    before = weights(learner)
    feed(learner, small_sets.train)
    after = weights(learner)
    assert learner.steps == 12
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
    assert all(torch.isfinite(value).all() for value in after.values())
    scores = learner.predict(small_sets.test.images)
    assert scores.shape == (32, 4)
    assert not scores.isnan().any()


@pytest.mark.parametrize("network", ["mlp", "resnet18"])
def test_coca_without_its_parts_is_derpp_to_the_bit(
    network: str, make_learner: MakeLearner, small_sets: Any
) -> None:
    off = {"gamma": 0.0, "contrastive_weight": 0.0, "pretext_weight": 0.0}
    bare, derpp = make_learner("CoCa", network, **off), make_learner("DER++", network)
    for learner in (bare, derpp):
        feed(learner, small_sets.train)
    for name, value in weights(derpp).items():
        torch.testing.assert_close(weights(bare)[name], value, rtol=0, atol=0)
    torch.testing.assert_close(bare.memory["logits"], derpp.memory["logits"], rtol=0, atol=0)


@pytest.mark.parametrize(
    "part",
    [{"gamma": 0.0}, {"contrastive_weight": 0.0}, {"pretext_weight": 0.0}, {"omega": 0.5, "gamma": 0.5}],
)
def test_each_part_of_coca_changes_what_is_learned(
    part: dict[str, float], make_learner: MakeLearner, small_sets: Any
) -> None:
    whole, without = make_learner("CoCa"), make_learner("CoCa", **part)
    for learner in (whole, without):
        feed(learner, small_sets.train)
    assert not torch.equal(weights(whole)["classifier.weight"], weights(without)["classifier.weight"])


def test_stored_logits_are_those_from_before_the_step(make_learner: MakeLearner, small_sets: Any) -> None:
    learner = make_learner("DER++", preprocessing=Preprocessing())
    images, labels = small_sets.train.images[:8], small_sets.train.labels[:8]
    expected = learner.predict(images)
    learner.observe(images, labels)
    torch.testing.assert_close(learner.memory["logits"], expected)


def test_methods_of_one_seed_begin_with_the_same_weights(make_learner: MakeLearner) -> None:
    first = weights(make_learner("SGD"))
    for method in METHODS:
        for name, value in weights(make_learner(method)).items():
            assert torch.equal(value, first[name]), (method, name)


def test_heads_that_a_method_does_not_use_stay_as_they_are(
    make_learner: MakeLearner, small_sets: Any
) -> None:
    learner = make_learner("CoCa", contrastive_weight=0.0)
    before = weights(learner)
    feed(learner, small_sets.train)
    after = weights(learner)
    assert torch.equal(before["projection_head.3.weight"], after["projection_head.3.weight"])
    assert not torch.equal(before["pretext_head.3.weight"], after["pretext_head.3.weight"])


class NoWaiting(TorchDispatchMode):
    """Fails at operations that make the host wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        assert name not in {
            "aten::_local_scalar_dense",
            "aten::nonzero",
            "aten::masked_select",
            "aten::is_nonzero",
            "aten::equal",
            "aten::_unique2",
            "aten::bincount",
        }, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("GEM", "JOINT")])
def test_a_step_never_waits_for_the_device(method: str, make_learner: MakeLearner, small_sets: Any) -> None:
    learner = make_learner(method)
    feed(learner, small_sets.train)
    with NoWaiting():
        learner.learn(small_sets.train.images[:8], small_sets.train.labels[:8])


@pytest.mark.parametrize(
    "settings", [{}, {"views": "scale-rotate"}, {"diagonal": "mask"}, {"merge_draws": True}]
)
def test_the_loss_of_coca_compiles_into_one_graph(
    settings: dict[str, Any], make_learner: MakeLearner, small_sets: Any
) -> None:
    learner = make_learner("CoCa", "resnet18", **settings)
    feed(learner, small_sets.train)
    batch = learner.prepare(small_sets.train.images[:8], small_sets.train.labels[:8])
    network, config = learner.network, learner.config

    def loss(batch: StepBatch) -> Tensor:
        return coca_step_loss(network, batch, config).loss

    state = copy.deepcopy(network.state_dict())
    eager = loss(batch)
    network.load_state_dict(state)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(batch)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


def test_a_compiled_network_learns_the_same(make_learner: MakeLearner, small_sets: Any) -> None:
    eager, compiled = make_learner("CoCa"), make_learner("CoCa", compile_network=True)
    for learner in (eager, compiled):
        for start in range(0, 24, 8):
            learner.observe(
                small_sets.train.images[start : start + 8], small_sets.train.labels[start : start + 8]
            )
    for name, value in weights(eager).items():
        torch.testing.assert_close(weights(compiled)[name], value, rtol=1e-4, atol=1e-5)


def test_losses_stay_in_fp32_under_autocast(make_learner: MakeLearner, small_sets: Any) -> None:
    fabric = make_fabric(AcceleratorConfig(device="cpu", precision="bf16-mixed"), broadcast_buffers=False)
    fabric.launch()
    learner = make_learner("CoCa")
    mixed = Learner(learner.config, 4, (3, 8, 8), learner.preprocessing, learner.network_config, 0, fabric)
    feed(mixed, small_sets.train)
    assert mixed.memory["logits"].dtype == torch.float32
    batch = mixed.prepare(small_sets.train.images[:8], small_sets.train.labels[:8])
    step = coca_step_loss(mixed.method.model, batch, mixed.config)
    assert step.loss.dtype == torch.float32
    assert torch.isfinite(step.loss)


def test_merged_draws_share_their_batch_statistics(make_learner: MakeLearner, small_sets: Any) -> None:
    apart, merged = (make_learner("CoCa", "resnet18", merge_draws=flag) for flag in (False, True))
    for learner in (apart, merged):
        feed(learner, small_sets.train)
    updates = [int(weights(learner)["backbone.bn1.num_batches_tracked"]) for learner in (apart, merged)]
    assert updates == [12 * 4 - 2, 12 * 2]  # the first batch has no draws; one of four passes is over views


def test_task_boundaries_leave_logits_of_other_tasks_alone(
    make_learner: MakeLearner, small_sets: Any
) -> None:
    off = {"gamma": 0.0, "contrastive_weight": 0.0, "pretext_weight": 0.0}
    learner = make_learner("CoCa", task_boundaries=True, **off)
    before = weights(learner)["classifier.weight"]
    learner.begin_task((2, 3))
    task = small_sets.train.of_classes((2, 3))
    learner.observe(task.images[:8], task.labels[:8])
    after = weights(learner)["classifier.weight"]
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2:], after[2:])


def test_er_ace_does_not_push_absent_classes_away(make_learner: MakeLearner, small_sets: Any) -> None:
    lowered = {}
    first, second = (small_sets.train.of_classes(classes) for classes in ((0, 1), (2, 3)))
    for method in ("ER", "ER-ACE"):
        learner = make_learner(method, lr=0.01, preprocessing=Preprocessing())
        learner.observe(first.images[:2], first.labels[:2])
        before = learner.predict(second.images)[:, :2]
        for start in range(0, 48, 8):
            learner.observe(second.images[start : start + 8], second.labels[start : start + 8])
        lowered[method] = float((before - learner.predict(second.images)[:, :2]).mean())
    assert lowered["ER-ACE"] < lowered["ER"]


def test_a_gem_keeps_a_gradient_that_agrees() -> None:
    gradient, reference = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])
    assert torch.equal(project(gradient, reference), gradient)


def test_a_gem_makes_a_gradient_that_disagrees_orthogonal() -> None:
    gradient, reference = torch.tensor([-1.0, 2.0, 0.5]), torch.tensor([1.0, 0.5, -2.0])
    projected = project(gradient, reference)
    assert float(gradient @ reference) < 0
    assert float(projected @ reference) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(torch.linalg.cross(projected - gradient, reference), torch.zeros(3))


def test_a_gem_survives_a_reference_of_zero() -> None:
    gradient = torch.tensor([1.0, -2.0])
    assert torch.equal(project(gradient, torch.zeros(2)), gradient)


def test_gem_finds_the_nearest_gradient_in_the_cone() -> None:
    generator = torch.Generator().manual_seed(3)
    gradient = torch.randn(6, generator=generator)
    references = torch.randn(4, 6, generator=generator)
    projected = project_onto_cone(gradient, references)
    found = minimize(
        lambda w: ((w - gradient.numpy()) ** 2).sum(),
        np.zeros(6),
        constraints={"type": "ineq", "fun": lambda w: references.numpy() @ w},
        method="SLSQP",
        options={"ftol": 1e-12},
    )
    assert (references @ gradient).min() < 0
    np.testing.assert_allclose(projected.numpy(), found.x, atol=5e-3)


def test_gem_survives_references_that_repeat_or_overflow() -> None:
    reference = 30 * torch.ones(1, 50)
    repeated = reference.repeat(10, 1) + 1e-6 * torch.randn(
        10, 50, generator=torch.Generator().manual_seed(0)
    )
    projected = project_onto_cone(-reference[0] + torch.arange(50), repeated)
    assert float(projected @ reference[0]) > -1e-2 * float(reference.norm() ** 2)
    overflowed = torch.full((2, 3), torch.inf)
    assert torch.equal(project_onto_cone(torch.ones(3), overflowed), torch.ones(3))


def test_gem_keeps_a_gradient_in_the_cone() -> None:
    gradient = torch.tensor([1.0, 1.0])
    assert torch.equal(project_onto_cone(gradient, torch.eye(2), 0.5), gradient)


def test_gem_looks_at_all_that_is_remembered_of_each_task(make_learner: MakeLearner, small_sets: Any) -> None:
    learner = make_learner("GEM")
    feed(learner, small_sets.train)
    batch = learner.prepare(small_sets.train.images[:8], small_sets.train.labels[:8])
    assert [sorted(set(draw.labels.tolist())) for draw in batch.draws] == [[0, 1], [2, 3]]
    assert sum(len(draw.labels) for draw in batch.draws) == len(learner.memory)


def test_herding_brings_the_mean_of_exemplars_to_the_class_mean() -> None:
    features = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    chosen = herd(features, 10)
    assert len(set(chosen.tolist())) == 10
    mean = features.mean(dim=0)
    distances = [float((features[chosen[:rank]].mean(dim=0) - mean).norm()) for rank in (1, 3, 10)]
    at_random = float((features[:10].mean(dim=0) - mean).norm())
    assert distances[2] < distances[0]
    assert distances[2] < at_random / 2


def test_herding_takes_first_what_is_closest_to_the_mean() -> None:
    features = torch.tensor([[0.0], [10.0], [4.0]])
    assert herd(features, 3).tolist()[0] == 2  # the mean is 4.67


def test_icarl_predicts_the_class_whose_exemplars_are_nearest(
    make_learner: MakeLearner, small_sets: Any
) -> None:
    learner = make_learner("iCaRL", lr=0.05)
    feed(learner, small_sets.train)
    exemplars = learner.memory["images"], learner.memory["labels"]
    hits = (learner.predict(exemplars[0]).argmax(dim=1) == exemplars[1]).float().mean()
    assert hits > 0.6


def test_icarl_shortens_every_class_equally(make_learner: MakeLearner, small_sets: Any) -> None:
    learner = make_learner("iCaRL")
    feed(learner, small_sets.train)
    assert torch.bincount(learner.memory["labels"]).tolist() == [3, 3, 3, 3]


def test_function_distance_is_that_of_probabilities() -> None:
    first, second = torch.tensor([[0.0, 100.0]]), torch.tensor([[100.0, 0.0]])
    assert float(function_distance(first, second)) == pytest.approx(2**0.5)
    assert float(function_distance(first, first + 7)) == pytest.approx(0, abs=1e-6)


def test_fdr_remembers_the_outputs_of_the_end_of_a_task(make_learner: MakeLearner, small_sets: Any) -> None:
    learner = make_learner("FDR")
    task = small_sets.train.of_classes((0, 1))
    learner.begin_task((0, 1))
    learner.observe(task.images[:8], task.labels[:8])
    learner.end_task(task.images, task.labels)
    torch.testing.assert_close(learner.memory["logits"], learner.predict(learner.memory["images"]))


def test_the_teacher_of_ocd_net_averages_the_network(make_learner: MakeLearner, small_sets: Any) -> None:
    learner = make_learner("OCD-Net", teacher_update_rate=1.0)
    assert isinstance(learner.method, OcdNet)
    start = weights(learner)["classifier.weight"]
    learner.observe(small_sets.train.images[:8], small_sets.train.labels[:8])
    teacher = learner.method._teacher.classifier.weight
    mean = (start + weights(learner)["classifier.weight"]) / 2  # momentum of the first step is 1 - 1/2
    torch.testing.assert_close(teacher, mean)


def test_ocd_net_predicts_with_its_teacher(make_learner: MakeLearner, small_sets: Any) -> None:
    learner = make_learner("OCD-Net", teacher_update_rate=0.0)
    before = learner.predict(small_sets.test.images)
    feed(learner, small_sets.train)
    assert torch.equal(learner.predict(small_sets.test.images), before)


def test_images_whose_label_the_teacher_doubts_are_imitated_less() -> None:
    outputs, labels = torch.zeros(1, 2), torch.tensor([0])
    sure = response_distillation_loss(outputs, torch.tensor([[5.0, -5.0]]), labels)
    unsure = response_distillation_loss(outputs, torch.tensor([[-5.0, 5.0]]), labels)
    assert float(sure) == pytest.approx(float(25 * torch.sigmoid(torch.tensor(10.0))))
    assert float(unsure) < 0.01


def test_contrastive_distillation_includes_the_image_itself() -> None:
    sphere = torch.eye(3)
    loss = contrastive_distillation_loss(sphere, sphere, torch.arange(3), 0.5)
    assert float(loss) == pytest.approx(float(torch.log(torch.exp(torch.tensor(2.0)) + 2) - 2))


def test_a_teacher_that_is_never_updated_stays_as_it_was(make_learner: MakeLearner, small_sets: Any) -> None:
    learner = make_learner("OCD-Net", teacher_update_rate=0.0)
    assert isinstance(learner.method, OcdNet)
    before = learner.method._teacher.classifier.weight.clone()
    feed(learner, small_sets.train)
    assert torch.equal(learner.method._teacher.classifier.weight, before)


def test_methods_keep_the_kind_of_memory_that_they_are_published_with(make_learner: MakeLearner) -> None:
    kinds = {method: type(make_learner(method).memory) for method in METHODS}
    assert {name for name, kind in kinds.items() if kind is TaskMemory} == {"A-GEM", "GEM", "iCaRL", "FDR"}
    assert {name for name, kind in kinds.items() if kind is type(None)} == {"SGD", "JOINT"}
    assert kinds["CoCa"] is ReservoirMemory


@pytest.mark.parametrize("method", ["GEM", "A-GEM", "FDR", "iCaRL"])
def test_a_method_with_boundaries_says_that_it_was_not_told(
    method: str, make_learner: MakeLearner, small_sets: Any
) -> None:
    with pytest.raises(Exception, match="call begin_task first"):
        make_learner(method).observe(small_sets.train.images[:8], small_sets.train.labels[:8])
