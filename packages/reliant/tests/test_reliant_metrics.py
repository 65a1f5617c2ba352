"""Fairness and utility against fairlearn and scikit-learn."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from fairlearn.metrics import demographic_parity_difference, equal_opportunity_difference
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from tenfold.reliant.fairness_metrics import (
    equal_opportunity,
    evaluate_predictions,
    is_degenerate,
    statistical_parity,
)


def balanced(seed: int, groups: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predictions, labels and groups in which every (group, label) occurs."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (80,), generator=generator)
    sensitive = torch.randint(0, groups, (80,), generator=generator)
    labels[: 2 * groups] = torch.arange(2).repeat(groups)
    sensitive[: 2 * groups] = torch.arange(groups).repeat_interleave(2)
    return torch.randint(0, 2, (80,), generator=generator), labels, sensitive


@given(seed=st.integers(0, 10_000), groups=st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_fairness_agrees_with_fairlearn(seed: int, groups: int) -> None:
    predictions, labels, sensitive = balanced(seed, groups)
    arrays = (labels.numpy(), predictions.numpy())
    assert statistical_parity(predictions, sensitive) == pytest.approx(
        demographic_parity_difference(*arrays, sensitive_features=sensitive.numpy())
    )
    assert equal_opportunity(predictions, labels, sensitive) == pytest.approx(
        equal_opportunity_difference(*arrays, sensitive_features=sensitive.numpy())
    )


def test_utility_agrees_with_scikit_learn() -> None:
    _, labels, sensitive = balanced(5)
    logits = torch.randn(80, 2)
    metrics = evaluate_predictions(logits, labels, sensitive)
    predictions, scores = logits.argmax(dim=1).numpy(), logits.softmax(dim=1)[:, 1].numpy()
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    assert metrics["f1"] == pytest.approx(f1_score(labels, predictions))
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert metrics["positive_rate"] == pytest.approx(predictions.mean())
    assert metrics["minority_rate"] == pytest.approx(min(predictions.mean(), 1 - predictions.mean()))


def test_more_classes_take_the_largest_difference() -> None:
    sensitive = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    predictions = torch.tensor([0, 1, 2, 2, 0, 0, 0, 1])
    assert statistical_parity(predictions, sensitive) == pytest.approx(0.5)
    labels = torch.tensor([0, 0, 2, 2, 0, 0, 2, 2])
    labels[[1, 7]] = 1
    assert equal_opportunity(predictions, labels, sensitive) == pytest.approx(1.0)
    metrics = evaluate_predictions(torch.eye(3)[predictions], labels, sensitive)
    assert metrics["minority_rate"] == pytest.approx(1 - 4 / 8)
    assert metrics["accuracy"] == pytest.approx(np.mean(predictions.numpy() == labels.numpy()))


def test_a_group_without_such_nodes_is_nan_and_said(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tenfold")
    logger.addHandler(caplog.handler)
    try:
        predictions, sensitive = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
        assert math.isnan(equal_opportunity(predictions, torch.tensor([1, 1, 0]), sensitive))
        assert "equal opportunity is not defined here" in caplog.text
        assert math.isnan(statistical_parity(predictions, torch.zeros(3, dtype=torch.int64)))
    finally:
        logger.removeHandler(caplog.handler)


def test_the_same_answer_for_everyone_is_fair_and_degenerate() -> None:
    _, labels, sensitive = balanced(0)
    metrics = evaluate_predictions(torch.tensor([1.0, 0.0]).expand(80, 2), labels, sensitive)
    assert metrics["delta_sp"] == 0 and metrics["delta_eo"] == 0
    assert is_degenerate(metrics)
    assert not is_degenerate(evaluate_predictions(torch.randn(80, 2), labels, sensitive))
