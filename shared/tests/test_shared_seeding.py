"""Randomness: repeatable, restorable, and the same order of an epoch whenever it is asked for."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import (
    epoch_order,
    make_generator,
    restore_rng_state,
    rng_state,
    seed_everything,
    seed_worker,
)

SEEDS = st.integers(0, 2**32 - 1)


def draw() -> list[float]:
    return [
        random.random(),
        random.gauss(),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
        float(torch.randn(())),
        float(torch.nn.functional.dropout(torch.ones(100), 0.5).sum()),
    ]


def test_the_same_seed_gives_the_same_numbers_of_python_numpy_and_torch() -> None:
    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first
    seed_everything(8)
    assert all(a != b for a, b in zip(draw()[:6], first[:6], strict=True))


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_ends_of_the_range_are_seeds(seed: int) -> None:
    seed_everything(seed)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused_in_one_sentence(seed: int) -> None:
    with pytest.raises(TenfoldError, match=f"from 0 to 4294967295, not {seed}"):
        seed_everything(seed)


def test_deterministic_is_asked_of_torch_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # so that the test leaves no trace
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seed_everything(0, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    seed_everything(0)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("draws_before", [0, 1, 5])  # 1: half of a pair of normal numbers is held back
def test_restored_generators_repeat_themselves_also_through_a_checkpoint_file(
    tmp_path: Path, draws_before: int
) -> None:
    seed_everything(1)
    for _ in range(draws_before):
        random.gauss()
        np.random.randn()
        torch.randn(1)
    torch.save(rng_state(), tmp_path / "rng.pt")
    expected = [draw() for _ in range(3)]
    draw()
    restore_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_capturing_the_state_draws_nothing() -> None:
    seed_everything(1)
    expected = draw()
    seed_everything(1)
    rng_state()
    assert draw() == expected


def test_a_state_from_a_machine_with_gpus_is_restored_on_one_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state = rng_state()
    expected = draw()
    state["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * 8
    restore_rng_state(state)
    assert draw() == expected


@pytest.mark.gpu
def test_a_state_from_a_machine_with_more_gpus_is_restored() -> None:
    state = rng_state()
    expected = torch.rand(4, device="cuda")
    state["cuda"] = [*state["cuda"], state["cuda"][0]]
    restore_rng_state(state)
    assert torch.equal(torch.rand(4, device="cuda"), expected)


@given(size=st.integers(0, 500), seed=SEEDS, epoch=st.integers(0, 10_000))
def test_the_order_of_an_epoch_is_a_permutation_that_can_be_had_again(
    size: int, seed: int, epoch: int
) -> None:
    order = epoch_order(size, seed, epoch)
    assert sorted(order.tolist()) == list(range(size))
    assert torch.equal(order, epoch_order(size, seed, epoch))


@given(seed=SEEDS, epoch=st.integers(0, 10_000))
def test_orders_differ_between_epochs_and_between_seeds(seed: int, epoch: int) -> None:
    order = epoch_order(100, seed, epoch)
    assert not torch.equal(order, epoch_order(100, seed, epoch + 1))
    assert not torch.equal(order, epoch_order(100, (seed + 1) % 2**32, epoch))


def test_the_order_neither_reads_nor_moves_the_global_generator() -> None:
    torch.manual_seed(1)
    first = epoch_order(50, 3, 0)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(epoch_order(50, 3, 0), first)


def test_generators_of_their_own_do_not_disturb_each_other() -> None:
    expected = torch.rand(3, generator=make_generator(5))
    one, other = make_generator(5), make_generator(5)
    torch.rand(10, generator=other)
    assert torch.equal(torch.rand(3, generator=one), expected)


class Noise(Dataset[Any]):
    """Items that NumPy and Python draw, as augmentations do."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([np.random.rand(), random.random()])


def test_workers_of_a_loader_draw_different_and_repeatable_numbers() -> None:
    def epoch() -> torch.Tensor:
        loader = DataLoader(
            Noise(),
            batch_size=4,
            num_workers=2,
            worker_init_fn=seed_worker,
            generator=make_generator(4),
            multiprocessing_context="fork",
        )
        return torch.cat(list(loader))

    first = epoch()
    assert len(first.unique()) == 16
    assert torch.equal(epoch(), first)
