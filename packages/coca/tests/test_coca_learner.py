"""A learner for a stream of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tenfold.coca.augmentation import Preprocessing
from tenfold.coca.config import LearnerConfig, NetworkConfig
from tenfold.coca.learner import Learner
from tenfold.coca.methods import METHODS
from tenfold.shared.logging import TenfoldError

MakeLearner = Callable[..., Learner]


def test_a_learner_gets_better_at_what_it_observes(make_learner: MakeLearner, small_sets: Any) -> None:
    learner = make_learner("ER", lr=0.1)
    test = small_sets.test

    def accuracy() -> float:
        return float((learner.predict(test.images).argmax(dim=1) == test.labels).float().mean())

    before = accuracy()
    for _ in range(10):
        for batch in torch.arange(96).split(16):
            learner.observe(small_sets.train.images[batch], small_sets.train.labels[batch])
    assert accuracy() > max(before, 0.5)


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), "takes images as uint8"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), r"\[B, 3, 8, 8\]"),
        (
            torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
            torch.tensor([0, 4]),
            "label 4 is not one of the 4 classes",
        ),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([-1, 0]), "label -1 is not one of"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([1]), "2 images need 2 whole numbers"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0.0, 1.0]), "whole numbers"),
    ],
)
def test_a_batch_of_another_form_is_refused_in_one_sentence(
    images: torch.Tensor, labels: torch.Tensor, sentence: str, make_learner: MakeLearner
) -> None:
    learner = make_learner("CoCa")
    with pytest.raises(TenfoldError, match=sentence):
        learner.observe(images, labels)
    assert learner.steps == 0


def test_a_memory_of_size_zero_is_refused() -> None:
    with pytest.raises(TenfoldError, match="needs a memory of at least 1 image"):
        LearnerConfig("CoCa", memory_size=0)


def test_one_image_passes_by_where_batch_norm_needs_two(make_learner: MakeLearner, small_sets: Any) -> None:
    learner = make_learner("CoCa")
    learner.observe(small_sets.train.images[:1], small_sets.train.labels[:1])
    assert (learner.steps, learner.images_seen, len(learner.memory)) == (0, 1, 0)


def test_one_image_is_learned_from_where_nothing_needs_two(
    make_learner: MakeLearner, small_sets: Any
) -> None:
    learner = make_learner("ER", "mlp")
    for place in range(3):
        learner.observe(
            small_sets.train.images[place : place + 1], small_sets.train.labels[place : place + 1]
        )
    assert (learner.steps, len(learner.memory)) == (3, 3)


def test_a_memory_too_small_for_batch_norm_is_refused(make_learner: MakeLearner) -> None:
    with pytest.raises(TenfoldError, match="draws at least 2 images from memory"):
        make_learner("CoCa", memory_size=1)


def test_nothing_is_replayed_while_the_memory_holds_one_image(
    make_learner: MakeLearner, small_sets: Any
) -> None:
    learner = make_learner("ER", "resnet18")
    learner.memory.insert({"images": small_sets.train.images[:1], "labels": small_sets.train.labels[:1]})
    batch = learner.prepare(small_sets.train.images[:8], small_sets.train.labels[:8])
    assert batch.draws == ()


def test_gem_leaves_out_only_the_task_of_which_one_image_is_left(
    make_learner: MakeLearner, small_sets: Any
) -> None:
    learner = make_learner("GEM", "resnet18", memory_size=6)
    for classes, count in (((0, 1), 20), ((2, 3), 1)):
        task = small_sets.train.of_classes(classes)
        learner.begin_task(classes)
        learner.end_task(task.images[:count], task.labels[:count])
    batch = learner.prepare(small_sets.train.images[:8], small_sets.train.labels[:8])
    assert [len(draw.labels) for draw in batch.draws] == [3]


def test_views_are_made_of_the_stream_and_the_second_draw(make_learner: MakeLearner, small_sets: Any) -> None:
    learner = make_learner("CoCa")
    learner.observe(small_sets.train.images[:8], small_sets.train.labels[:8])
    batch = learner.prepare(small_sets.train.images[8:18], small_sets.train.labels[8:18])
    assert [len(draw.labels) for draw in batch.draws] == [6, 6]
    assert batch.pretext_labels is not None and batch.boxes is not None
    assert len(batch.pretext_labels) == len(batch.boxes) == 16
    assert torch.bincount(batch.pretext_labels).tolist() == [4, 4, 4, 4]


def test_the_two_draws_are_independent(make_learner: MakeLearner, small_sets: Any) -> None:
    learner = make_learner("DER++", memory_size=48)
    learner.observe(small_sets.train.images[:48], small_sets.train.labels[:48])
    same = []
    for _ in range(20):
        batch = learner.prepare(small_sets.train.images[:8], small_sets.train.labels[:8])
        first, second = batch.draws
        same.append(len(first.images) == len(second.images) and torch.equal(first.labels, second.labels))
    assert sum(same) < 5


def test_images_are_planar_on_the_cpu_where_narrow_convolutions_are_wrong_otherwise(
    make_learner: MakeLearner, small_sets: Any
) -> None:
    batch = make_learner("ER", "resnet18").prepare(small_sets.train.images[:8], small_sets.train.labels[:8])
    assert batch.images.is_contiguous()


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_learner_goes_on_as_if_it_had_not_been_saved(
    method: str, make_learner: MakeLearner, small_sets: Any, tmp_path: Path, cpu: Any
) -> None:
    learner = make_learner(method, "resnet18")
    halves = small_sets.train.of_classes((0, 1)), small_sets.train.of_classes((2, 3))
    learner.begin_task((0, 1))
    learner.observe(halves[0].images[:8], halves[0].labels[:8])
    learner.observe(halves[0].images[8:16], halves[0].labels[8:16])
    learner.end_task(halves[0].images, halves[0].labels)
    learner.save(tmp_path / "learner.pt")
    restored = Learner.load(tmp_path / "learner.pt", cpu)
    for continued in (learner, restored):
        continued.begin_task((2, 3))
        for start in (0, 8, 16):
            continued.observe(halves[1].images[start : start + 8], halves[1].labels[start : start + 8])
        continued.end_task(halves[1].images, halves[1].labels)
    expected = learner.network.state_dict()
    for name, value in restored.network.state_dict().items():
        assert torch.equal(value, expected[name]), name
    test = small_sets.test.images
    assert torch.equal(restored.predict(test), learner.predict(test))
    assert restored.memory_report() == learner.memory_report()


def test_a_file_that_holds_no_learner_is_named(tmp_path: Path) -> None:
    torch.save({"state": 1}, tmp_path / "other.pt")
    with pytest.raises(TenfoldError, match="holds no learner"):
        Learner.load(tmp_path / "other.pt")


def test_the_memory_report_counts_classes_and_ages(make_learner: MakeLearner, small_sets: Any) -> None:
    learner = make_learner("ER", memory_size=8)
    assert learner.memory_report()["images"] == 0
    learner.observe(small_sets.train.images[:4], small_sets.train.labels[:4])
    learner.observe(small_sets.train.images[4:6], small_sets.train.labels[4:6])
    report = learner.memory_report()
    assert report == {"images": 6, "per_class": [2, 2, 1, 1], "ages": [1, 1, 1, 1, 0, 0]}


def test_half_precision_logits_halve_their_memory_and_little_else(
    make_learner: MakeLearner, small_sets: Any
) -> None:
    whole, half = make_learner("DER++"), make_learner("DER++", half_logits=True)
    for learner in (whole, half):
        for start in range(0, 32, 8):
            learner.observe(
                small_sets.train.images[start : start + 8], small_sets.train.labels[start : start + 8]
            )
    assert half.memory["logits"].dtype == torch.float16
    torch.testing.assert_close(half.memory["logits"].float(), whole.memory["logits"], rtol=1e-2, atol=1e-2)


def test_predicting_leaves_the_learner_as_it_was(make_learner: MakeLearner, small_sets: Any) -> None:
    learner = make_learner("CoCa", "resnet18")
    learner.observe(small_sets.train.images[:8], small_sets.train.labels[:8])
    before = {name: value.clone() for name, value in learner.network.state_dict().items()}
    learner.predict(small_sets.test.images)
    assert learner.network.training
    for name, value in learner.network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_predicting_in_chunks_changes_nothing(make_learner: MakeLearner, small_sets: Any) -> None:
    learner = make_learner("SGD", "resnet18")
    images = small_sets.test.images
    torch.testing.assert_close(learner.predict(images, chunk=5), learner.predict(images))
    assert learner.predict(images[:0]).shape == (0, 4)


def test_images_that_are_not_square_cannot_be_turned(cpu: Any) -> None:
    with pytest.raises(TenfoldError, match="square"):
        Learner(LearnerConfig(), 4, (3, 8, 6), Preprocessing(), NetworkConfig("mlp"), fabric=cpu)


def test_a_class_that_the_learner_was_not_made_for_cannot_be_announced(make_learner: MakeLearner) -> None:
    with pytest.raises(TenfoldError, match="there is no class 4"):
        make_learner("GEM").begin_task((3, 4))
