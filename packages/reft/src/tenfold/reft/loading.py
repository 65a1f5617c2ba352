"""A loader of whole items that carries one-sentence errors out of its processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import seed_worker


class _Guarded(Dataset[Any]):
    """Items of a dataset, or the error in their way: raised in a worker, it would arrive as a traceback."""

    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __getitem__(self, index: int) -> Any:
        try:
            return self.items[index]
        except TenfoldError as error:
            return error


class _WholeItems(DataLoader[Any]):
    """A loader of :class:`_Guarded` that raises the errors."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        items = super().__iter__()
        for item in items:
            if isinstance(item, TenfoldError):
                del items
                self._iterator = None  # persistent workers would be waited for
                raise item
            yield item


def whole_items(items: Dataset[Any], **options: Any) -> DataLoader[Any]:
    return _WholeItems(
        _Guarded(items), batch_size=None, collate_fn=_unchanged, worker_init_fn=seed_worker, **options
    )


def _unchanged(item: Any) -> Any:
    return item
