"""Checkpoints of mmengine that torch reads again.

Since torch 2.6 ``torch.load`` takes only files of plain values. mmengine keeps its record of losses in checkpoints, as
objects with bound methods and NumPy numbers, so that it cannot go on from its own files.
"""

from __future__ import annotations

import copyreg
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def make_checkpoints_loadable() -> None:
    """Write records of losses as lists of numbers from now on, and let torch read those and single NumPy numbers."""
    copyreg.pickle(HistoryBuffer, _record)
    kinds = [np.dtype(kind) for kind in (np.float64, np.float32, np.int64)]
    read_number: Any = np.float64(0).__reduce__()[0]
    torch.serialization.add_safe_globals([HistoryBuffer, read_number, np.dtype, *map(type, kinds)])


def _record(history: HistoryBuffer) -> tuple[type[HistoryBuffer], tuple[list[float], list[float]]]:
    values, counts = history.data
    return HistoryBuffer, (values.tolist(), counts.tolist())
