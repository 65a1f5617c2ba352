"""Batches of an evaluation: each sample once, without random choices."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import DataLoader

from tenfold.cmt.dataset import TestSamples
from tenfold.cmt.guarded_loading import guarded_loader
from tenfold.cmt.samples import Batch
from tenfold.shared.seeding import make_generator


def evaluation_loader(
    samples: TestSamples, indices: Sequence[int], batch_size: int, workers: int = 0, pin: bool = False
) -> DataLoader[Batch]:
    """Batches of keyframes in the order of ``indices``; the last may be smaller.

    Args:
        samples: what is evaluated.
        indices: keyframes of this process, places in ``samples.index``.
        batch_size: most samples of a batch.
        workers: that read samples; 0 reads them in this process.
        pin: put batches into page-locked memory, for CUDA.

    Raises:
        TenfoldError: from the loader itself, a sample cannot be read.
    """
    return guarded_loader(
        samples,
        sampler=indices,
        batch_size=batch_size,
        num_workers=workers,
        pin_memory=pin,
        generator=make_generator(0),  # iterating would otherwise draw from torch's global generator
    )
