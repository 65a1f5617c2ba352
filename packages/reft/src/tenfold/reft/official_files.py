"""Released files, read without running anything: arrays, numbers, text and containers alone come out of a pickle."""

from __future__ import annotations

import collections
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.shared.logging import TenfoldError

_REFUSAL = "not only arrays of numbers and plain values; get the file from its authors"


def read_released(path: Path) -> dict[str, Tensor]:
    """The state dict of a released file: a pickle of arrays (``.pkl``), one of torch's, or safetensors.

    Raises:
        TenfoldError: the file is missing, damaged, or holds anything but arrays, tensors and plain values.
    """
    try:
        content = _read(path)
    except TenfoldError as error:
        raise TenfoldError(f"{path} {error}") from error
    except OSError as error:
        raise TenfoldError(
            f"cannot read {path} ({error.strerror}); give the path of an existing file"
        ) from error
    except Exception as error:  # a damaged file can make the reader raise anything
        raise TenfoldError(f"{path} is truncated or corrupt; download it again") from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content:
        raise TenfoldError(f"{path} does not hold a state dict; give a file of weights")
    return {str(key): _as_tensor(value, key, path) for key, value in content.items()}


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(file.read())
        if path.suffix not in (".pth", ".pt", ".bin"):
            return _ArrayUnpickler(file, encoding="latin1").load()  # the encoding is for what Python 2 wrote
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            if found is None:
                raise
            raise TenfoldError(f"holds {found[1]}, {_REFUSAL}") from error


def _as_tensor(value: Any, key: object, path: Path) -> Tensor:
    if isinstance(value, _Array):
        return torch.from_numpy(value.values)
    if isinstance(value, Tensor):
        return value
    raise TenfoldError(f"{key} in {path} is no array but {type(value).__name__}; give a file of weights")


class _ArrayUnpickler(pickle.Unpickler):
    """A reader of pickles in which nothing can be called but what stands below."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a global; NumPy 2 moved its own to ``numpy._core``."""
        known = _ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise TenfoldError(f"holds {module}.{name}, {_REFUSAL}")
        return known


class _Dtype:
    """NumPy's description of numbers, read without NumPy's own unpickling, which trusts what it is given."""

    def __init__(self, code: str, *_: object) -> None:
        self.dtype: np.dtype[Any] = np.dtype(str(code))
        if self.dtype.kind not in "biuf":
            raise TenfoldError(f"holds an array of {self.dtype}, {_REFUSAL}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array of numbers, likewise."""

    values: NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.values = _values(data, dtype, shape, "F" if is_fortran else "C")


def _values(data: bytes | bytearray | str, dtype: _Dtype, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    raw = data.encode("latin1") if isinstance(data, str) else data
    flat = np.frombuffer(raw, dtype.dtype).astype(dtype.dtype.newbyteorder("="))
    return np.ascontiguousarray(flat.reshape(shape, order="F" if order == "F" else "C")).reshape(shape)


def _start_array(*_: object) -> _Array:
    return _Array()


def _array_from_buffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.values = _values(data, dtype, shape, order)
    return array


def _scalar(dtype: _Dtype, data: bytes | str) -> Any:
    return _values(data, dtype, (), "C").item()


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise TenfoldError(f"holds text in {encoding}, {_REFUSAL}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], type | Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _start_array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _array_from_buffer,
    ("_codecs", "encode"): _latin1,  # how protocol 2 writes bytes
    ("collections", "OrderedDict"): collections.OrderedDict,
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, bytes, bytearray)
    },
}
