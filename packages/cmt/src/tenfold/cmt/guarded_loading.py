"""Loading batches in worker processes, whose user errors arrive as they were raised, not as tracebacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from tenfold.cmt.samples import Batch, PreparedSample, collate
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import seed_worker


def guarded_loader(samples: Dataset[PreparedSample], **options: Any) -> DataLoader[Batch]:
    """A loader of batches; a sample that cannot be read raises its ``TenfoldError`` from the loader, worker or not.

    Args:
        samples: by whatever the sampler yields.
        options: of ``torch.utils.data.DataLoader``.
    """
    return _Batches(_Guarded(samples), collate_fn=_collate_guarded, worker_init_fn=seed_worker, **options)


class _Guarded(Dataset[Any]):
    """Samples, or the error in their way: raised in a worker, it would arrive as a traceback."""

    def __init__(self, samples: Dataset[PreparedSample]) -> None:
        self.samples = samples

    def __getitem__(self, place: Any) -> PreparedSample | TenfoldError:
        try:
            return self.samples[place]
        except TenfoldError as error:
            return error


def _collate_guarded(samples: Sequence[PreparedSample | TenfoldError]) -> Batch | TenfoldError:
    whole = [sample for sample in samples if isinstance(sample, PreparedSample)]
    errors = [sample for sample in samples if isinstance(sample, TenfoldError)]
    return errors[0] if errors else collate(whole)


class _Batches(DataLoader[Any]):
    """A loader of :class:`_Guarded` samples that raises their errors in the process that iterates."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches = super().__iter__()
        for batch in batches:
            if isinstance(batch, TenfoldError):
                del batches
                self._iterator = None  # persistent workers would be waited for
                raise batch
            yield batch
