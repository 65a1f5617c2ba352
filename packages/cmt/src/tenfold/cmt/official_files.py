"""Released files, read without running anything: tensors and plain values alone come out of a pickle."""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._utils
from torch import Tensor

from tenfold.shared.logging import TenfoldError


def read_released(path: Path) -> dict[str, Tensor]:
    """The state dict of a file that torch wrote: bare, or beside other things at ``state_dict`` or ``model``.

    Released files hold training records of classes of their own beside the weights. Such objects are not made; inert
    ones stand in for them, and are dropped with the records.

    Raises:
        TenfoldError: the file is missing, damaged, or does not hold a state dict of tensors.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise TenfoldError(
            f"cannot read {path} ({error.strerror}); give the path of an existing file"
        ) from error
    try:
        content = _read(path, is_zip)
    except Exception as error:  # a damaged file can make the reader raise anything
        raise TenfoldError(
            f"{path} is truncated, corrupt or no file of weights; download it again"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise TenfoldError(f"{path} does not hold a state dict; give a file of weights")
    return {str(key): _checked(value, key, path) for key, value in content.items()}


def _read(path: Path, is_zip: bool) -> Any:
    # Zip files are mapped: the optimiser's tensors, two thirds of a released file, are never read.
    options: dict[str, Any] = {"map_location": "cpu", "mmap": is_zip}
    try:
        return torch.load(path, weights_only=True, **options)
    except pickle.UnpicklingError:
        # Torch's own restricted reader refuses the records' classes; ours puts inert objects in their place.
        return torch.load(path, weights_only=False, pickle_module=_RESTRICTED_PICKLE, **options)


def _checked(value: Any, key: object, path: Path) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().clone()  # a copy that outlives the mapped file
    raise TenfoldError(f"{key} in {path} is no tensor; give a file of weights")


class _Inert:
    """Stands in for an object of any other class: takes whatever a pickle does to it, and does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return super().__new__(cls)

    def __call__(self, *_: object, **__: object) -> _Inert:
        return self

    def __setstate__(self, _: object) -> None:
        pass

    def __setitem__(self, _: object, __: object) -> None:
        pass

    def append(self, _: object) -> None:
        pass

    def extend(self, _: object) -> None:
        pass

    def add(self, _: object) -> None:
        pass


class _TensorUnpickler(pickle.Unpickler):
    """A reader of pickles in which nothing can be called but what stands below; torch gives it the storages."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a global."""
        return _ALLOWED.get((module, name), _Inert)


def _load(file: Any, **options: Any) -> Any:
    return _TensorUnpickler(file, **options).load()


_RESTRICTED_PICKLE = SimpleNamespace(__name__="restricted_pickle", Unpickler=_TensorUnpickler, load=_load)

_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
    ("collections", "OrderedDict"): collections.OrderedDict,
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, bytes, bytearray)
    },
}
