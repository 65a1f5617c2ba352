"""What a learner remembers of its stream: a reservoir, and a memory in equal parts per task.

Images are kept as bytes, unaugmented, on the device on which the learner computes. Which slot an image goes to is drawn
on the host, so that neither insertion nor a draw makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.shared.logging import TenfoldError


class ReservoirMemory:
    """A uniform random sample of everything that was offered (reservoir sampling, Vitter 1985).

    The n-th item fills slot n while there are free ones; afterwards it replaces a random slot with probability size /
    n.

    Args:
        size: number of slots.
        rng: numpy's legacy generator, or its seed.
        device: where the items are kept.
        dtypes: types to keep fields in, by name, where not their own (half-precision logits save memory).

    Raises:
        TenfoldError: the memory would be empty.
    """

    def __init__(
        self,
        size: int,
        rng: np.random.RandomState | int = 0,
        device: torch.device | str = "cpu",
        dtypes: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        if size < 1:
            raise TenfoldError(f"a memory holds at least 1 image, not {size}; use SGD to learn without one")
        self.size = size
        self.seen = 0
        """Items offered so far."""
        self._rng = np.random.RandomState(rng) if isinstance(rng, int) else rng
        self._device = torch.device(device)
        self._dtypes = dict(dtypes or {})
        self._fields: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Slots that are filled."""
        return min(self.seen, self.size)

    def __getitem__(self, field: str) -> Tensor:
        """One field of all stored items, in order of their slots; [len(self), ...]."""
        return self._fields[field][: len(self)]

    def insert(self, items: Mapping[str, Tensor]) -> None:
        """Offer a batch, item by item in order.

        Args:
            items: fields [N, ...] by name, the same names every time.
        """
        count = len(next(iter(items.values())))
        slots = np.arange(self.seen, self.seen + count)
        late = slots >= self.size
        slots[late] = self._rng.randint(0, slots[late] + 1)
        self.seen += count
        # Of several items of a batch that meet in one slot the last stays, as if they had come one by one.
        slots, reversed_index = np.unique(slots[::-1], return_index=True)
        kept = count - 1 - reversed_index[slots < self.size]
        slots = slots[slots < self.size]
        if not self._fields:
            self._fields = {name: self._allocate(name, values) for name, values in items.items()}
        if len(slots):
            to, taken = self._to_device(slots), self._to_device(kept)
            for name, values in items.items():
                field = self._fields[name]
                field.index_copy_(0, to, values.detach()[taken].to(field.dtype))

    def draw_slots(self, count: int) -> np.ndarray:
        """Different slots at random; fewer than asked where there are fewer."""
        return self._rng.choice(len(self), size=min(count, len(self)), replace=False)

    def take(self, slots: np.ndarray) -> dict[str, Tensor]:
        """The items in some slots; fields [len(slots), ...]."""
        index = self._to_device(slots)
        return {name: field[index] for name, field in self._fields.items()}

    def draw(self, count: int) -> dict[str, Tensor]:
        """Different items at random; fewer than asked where there are fewer."""
        return self.take(self.draw_slots(count))

    def _allocate(self, name: str, values: Tensor) -> Tensor:
        dtype = self._dtypes.get(name, values.dtype)
        return torch.zeros(self.size, *values.shape[1:], dtype=dtype, device=self._device)

    def _to_device(self, index: np.ndarray) -> Tensor:
        return host_to_device(index, self._device)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain values."""
        return {
            "size": self.size,
            "seen": self.seen,
            "fields": {name: field.clone() for name, field in self._fields.items()},
            "rng": generator_state(self._rng),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave.

        Raises:
            TenfoldError: it was of a memory of another size.
        """
        _check_size(state["size"], self.size)
        self.seen = state["seen"]
        self._fields = {name: field.to(self._device, copy=True) for name, field in state["fields"].items()}
        restore_generator(self._rng, state["rng"])


class TaskMemory:
    """Equal parts for every task seen, filled when a task ends; for methods that are told where tasks end.

    Args:
        size: images in all.
        rng: numpy's legacy generator, or its seed.
        device: where they are kept.

    Raises:
        TenfoldError: the memory would be empty.
    """

    def __init__(
        self, size: int, rng: np.random.RandomState | int = 0, device: torch.device | str = "cpu"
    ) -> None:
        if size < 1:
            raise TenfoldError(f"a memory holds at least 1 image, not {size}; use SGD to learn without one")
        self.size = size
        self.rng = np.random.RandomState(rng) if isinstance(rng, int) else rng
        self._device = torch.device(device)
        self.parts: list[dict[str, Tensor]] = []
        """The fields of each task's images, most important first."""
        self._whole: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return sum(len(part["labels"]) for part in self.parts)

    def __getitem__(self, field: str) -> Tensor:
        return self._whole[field]

    @property
    def share(self) -> int:
        """Images that a task may have once one more task has ended.

        Raises:
            TenfoldError: there would be none.
        """
        share = self.size // (len(self.parts) + 1)
        if share == 0:
            raise TenfoldError(
                f"a memory of {self.size} images cannot be shared by {len(self.parts) + 1} tasks; raise --memory-size"
            )
        return share

    def add(self, items: Mapping[str, Tensor]) -> None:
        """Shorten every part to the new share, and add a task's images, at most as many."""
        share = self.share
        kept = [{name: field[:share] for name, field in part.items()} for part in self.parts]
        self._set_parts([*kept, {name: field[:share].to(self._device) for name, field in items.items()}])

    def draw_slots(self, count: int) -> np.ndarray:
        """Different places at random; fewer than asked where there are fewer."""
        return self.rng.choice(len(self), size=min(count, len(self)), replace=False)

    def take(self, slots: np.ndarray) -> dict[str, Tensor]:
        """The items at some places, counted through all parts."""
        index = host_to_device(slots, self._device)
        return {name: field[index] for name, field in self._whole.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"size": self.size, "parts": self.parts, "rng": generator_state(self.rng)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave.

        Raises:
            TenfoldError: it was of a memory of another size.
        """
        _check_size(state["size"], self.size)
        self._set_parts(
            [{name: field.to(self._device) for name, field in part.items()} for part in state["parts"]]
        )
        restore_generator(self.rng, state["rng"])

    def _set_parts(self, parts: list[dict[str, Tensor]]) -> None:
        self.parts = parts
        names = parts[0] if parts else {}
        self._whole = {name: torch.cat([part[name] for part in parts]) for name in names}


def _check_size(stored: int, size: int) -> None:
    if stored != size:
        raise TenfoldError(f"the stored memory is for {stored} images, not {size}; make one of that size")


def host_to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A small array as a tensor on a device, without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def generator_state(generator: np.random.RandomState) -> dict[str, Any]:
    """The state of a legacy generator as tensors and plain values."""
    _, keys, position, has_gauss, cached = generator.get_state()
    return {
        "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "position": int(position),
        "has_gauss": int(has_gauss),
        "cached": float(cached),
    }


def restore_generator(generator: np.random.RandomState, state: Mapping[str, Any]) -> None:
    """Put back what :func:`generator_state` gave."""
    keys = state["keys"].numpy().astype(np.uint32)
    generator.set_state(("MT19937", keys, state["position"], state["has_gauss"], state["cached"]))
