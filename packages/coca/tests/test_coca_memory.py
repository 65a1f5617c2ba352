"""What the memories keep, draw, and put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tenfold.coca.memory import ReservoirMemory, TaskMemory
from tenfold.shared.logging import TenfoldError


def items(first: int, count: int) -> dict[str, Tensor]:
    ids = torch.arange(first, first + count)
    pixels = (ids[:, None, None, None] % 256).expand(count, 1, 2, 2).to(torch.uint8)
    return {"id": ids, "images": pixels, "logits": ids[:, None] / torch.tensor([3.0, 7.0])}


def filled(size: int, count: int, seed: int = 0) -> ReservoirMemory:
    memory = ReservoirMemory(size, seed)
    memory.insert(items(0, count))
    return memory


def one_by_one(size: int, count: int, seed: int) -> tuple[list[int], np.random.RandomState]:
    """Reservoir sampling: slot n while there is room, then a slot drawn from all items seen, if there is such."""
    generator = np.random.RandomState(seed)
    slots: list[int] = []
    for item in range(count):
        if item < size:
            slots.append(item)
        elif (slot := generator.randint(0, item + 1)) < size:
            slots[slot] = item
    return slots, generator


@given(
    size=st.integers(1, 12),
    batches=st.lists(st.integers(0, 25), min_size=1, max_size=8),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_batches_are_kept_as_if_items_came_one_by_one(size: int, batches: list[int], seed: int) -> None:
    memory = ReservoirMemory(size, np.random.RandomState(seed))
    for number, count in enumerate(batches):
        memory.insert(items(sum(batches[:number]), count))
    expected, _ = one_by_one(size, sum(batches), seed)
    assert memory["id"].tolist() == expected
    assert memory.seen == sum(batches) and len(memory) == len(expected)


def test_insertion_draws_no_more_than_one_number_for_each_late_item() -> None:
    generator = np.random.RandomState(3)
    memory = ReservoirMemory(7, generator)
    memory.insert(items(0, 50))
    assert generator.randint(1 << 30) == one_by_one(7, 50, 3)[1].randint(1 << 30)


def test_the_fields_of_an_item_stay_together() -> None:
    memory = filled(10, 90)
    for kept, expected in ((memory.take(np.arange(10)), items(0, 90)), (memory.draw(4), items(0, 90))):
        for name in ("images", "logits"):
            assert torch.equal(kept[name], expected[name][kept["id"]])


def test_every_item_is_kept_equally_often() -> None:
    size, count, runs = 10, 60, 1500
    kept = np.zeros(count)
    for seed in range(runs):
        memory = ReservoirMemory(size, seed)
        for batch in torch.arange(count).split(16):
            memory.insert({"id": batch})
        kept[memory["id"].numpy()] += 1
    probability = size / count
    deviation = np.sqrt(runs * probability * (1 - probability))
    assert np.abs(kept - runs * probability).max() < 5 * deviation
    assert ((kept - runs * probability) ** 2).mean() < 2 * deviation**2


def test_a_draw_holds_different_items() -> None:
    memory = filled(40, 100)
    for _ in range(20):
        drawn = memory.draw(30)["id"].tolist()
        assert len(set(drawn)) == 30 and set(drawn) <= set(memory["id"].tolist())


def test_every_item_may_be_drawn() -> None:
    memory = filled(15, 100)
    drawn = torch.cat([memory.draw(5)["id"] for _ in range(60)])
    assert set(drawn.tolist()) == set(memory["id"].tolist())


def test_a_draw_is_smaller_where_there_are_fewer_items() -> None:
    memory = filled(20, 6)
    assert sorted(memory.draw(32)["id"].tolist()) == [0, 1, 2, 3, 4, 5]


def test_stored_items_do_not_change_with_what_was_offered() -> None:
    offered = items(0, 5)
    memory = ReservoirMemory(5)
    memory.insert(offered)
    for values in offered.values():
        values.zero_()
    assert torch.equal(memory["logits"], items(0, 5)["logits"])


def test_drawn_items_can_be_changed_without_changing_the_memory() -> None:
    memory = filled(5, 5)
    memory.draw(5)["logits"].zero_()
    assert torch.equal(memory["logits"], items(0, 5)["logits"])


def test_logits_are_stored_without_their_gradient() -> None:
    memory = ReservoirMemory(3)
    memory.insert({"logits": torch.ones(2, 4, requires_grad=True)})
    assert not memory.draw(2)["logits"].requires_grad


@pytest.mark.parametrize("kind", [ReservoirMemory, TaskMemory])
@pytest.mark.parametrize("size", [0, -3])
def test_a_memory_without_room_is_refused_in_one_sentence(kind: type, size: int) -> None:
    with pytest.raises(TenfoldError, match=rf"^a memory holds at least 1 image, not {size}\b[^\n]*$"):
        kind(size)


def test_fields_are_kept_in_the_types_asked_for() -> None:
    memory = ReservoirMemory(4, dtypes={"logits": torch.float16})
    memory.insert(items(0, 4))
    assert {name: value.dtype for name, value in memory.draw(2).items()} == {
        "id": torch.int64,
        "images": torch.uint8,
        "logits": torch.float16,
    }
    assert torch.equal(memory["logits"], items(0, 4)["logits"].half())


def through_a_file(state: dict[str, Any], path: Path) -> dict[str, Any]:
    torch.save(state, path)
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


@pytest.mark.parametrize("seen", [0, 5, 50])
def test_a_stored_reservoir_goes_on_identically(seen: int, tmp_path: Path) -> None:
    memory, copy = ReservoirMemory(12, 1), ReservoirMemory(12, 2)
    memory.insert(items(0, seen))
    memory.draw(3)
    copy.load_state_dict(through_a_file(memory.state_dict(), tmp_path / "memory.pt"))
    for one in (memory, copy):
        one.insert(items(seen, 30))
    assert (copy.seen, len(copy)) == (memory.seen, len(memory))
    assert torch.equal(copy["id"], memory["id"]) and torch.equal(copy["logits"], memory["logits"])
    assert torch.equal(copy.draw(8)["images"], memory.draw(8)["images"])


def test_a_stored_reservoir_goes_on_identically_within_the_process() -> None:
    memory, copy = filled(12, 50), ReservoirMemory(12, 2)
    copy.load_state_dict(memory.state_dict())
    copy.insert(items(50, 30))
    assert copy["id"].tolist() == one_by_one(12, 80, 0)[0]


def test_a_loaded_reservoir_shares_nothing_with_the_one_it_came_from() -> None:
    memory, copy = filled(12, 50), ReservoirMemory(12, 2)
    copy.load_state_dict(memory.state_dict())
    copy.insert(items(1000, 500))
    assert memory["id"].tolist() == one_by_one(12, 50, 0)[0]


def test_a_reservoir_of_another_size_is_refused() -> None:
    with pytest.raises(
        TenfoldError, match=r"^the stored memory is for 12 images, not 11; make one of that size$"
    ):
        ReservoirMemory(11).load_state_dict(filled(12, 50).state_dict())


def task(number: int, count: int) -> dict[str, Tensor]:
    return {"id": 100 * number + torch.arange(count), "labels": torch.full((count,), number)}


def test_tasks_have_equal_shares_and_keep_their_most_important_images() -> None:
    memory = TaskMemory(31)
    for number in range(3):
        memory.add(task(number, 40))
    assert len(memory) == 30
    assert memory["id"].tolist() == [100 * number + place for number in range(3) for place in range(10)]


def test_parts_are_shortened_as_tasks_come() -> None:
    memory, sizes = TaskMemory(24), []
    for number in range(4):
        memory.add(task(number, 40))
        sizes.append([len(part["id"]) for part in memory.parts])
    assert sizes == [[24], [12, 12], [8, 8, 8], [6, 6, 6, 6]]


def test_a_task_with_few_images_keeps_them_all() -> None:
    memory = TaskMemory(20)
    memory.add(task(0, 3))
    memory.add(task(1, 40))
    assert memory["labels"].tolist() == [0] * 3 + [1] * 10


def test_more_tasks_than_images_are_refused() -> None:
    memory = TaskMemory(2)
    memory.add(task(0, 5))
    memory.add(task(1, 5))
    with pytest.raises(TenfoldError, match=r"^a memory of 2 images cannot be shared by 3 tasks[^\n]*$"):
        memory.add(task(2, 5))
    assert memory["labels"].tolist() == [0, 1]


def test_task_memory_draws_different_items_of_all_parts() -> None:
    memory = TaskMemory(12)
    memory.add(task(0, 9))
    memory.add(task(1, 9))
    drawn = memory.take(memory.draw_slots(50))
    assert sorted(drawn["id"].tolist()) == memory["id"].tolist()
    assert torch.equal(drawn["labels"], drawn["id"] // 100)
    assert len(set(memory.draw_slots(7).tolist())) == 7


def test_a_stored_task_memory_goes_on_identically(tmp_path: Path) -> None:
    memory, copy = TaskMemory(12, 1), TaskMemory(12, 2)
    memory.add(task(0, 20))
    memory.add(task(1, 20))
    memory.draw_slots(3)
    copy.load_state_dict(through_a_file(memory.state_dict(), tmp_path / "memory.pt"))
    for one in (memory, copy):
        one.add(task(2, 20))
    assert torch.equal(copy["id"], memory["id"])
    assert copy.draw_slots(5).tolist() == memory.draw_slots(5).tolist()
