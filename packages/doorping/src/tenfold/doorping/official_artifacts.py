"""Distilled sets in files: our own format, and those that the authors' code saves.

=================  =======================================================================================
``vis_*.pth``      DC: images [K ipc, C, H, W], normalised, class after class
``*_trigger.pth``  the trigger delta, [1, C, H, W], normalised
``res_*.pt``       DC: ``data``, images and labels of every experiment, and ``accs_all_exps``, accuracies by network
``results.pth``    DD: (images, labels, learning rate) of every unrolled step
=================  =======================================================================================

Which of them a file is, its content says. Files are read with ``weights_only=True``: whole objects are not read.

Source: Liu et al. (NDSS 2023), the authors' code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tenfold.doorping.image_sets import DESCRIPTIONS, Statistics
from tenfold.doorping.triggers import patch_mask
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import replaced, save_atomically

FORMAT = "tenfold-doorping-distilled-set"
VERSION = 1

OfficialForm = Literal["vis", "trigger", "res", "results"]


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """Distilled images with what a victim, or who examines them, has to know.

    Raises:
        TenfoldError: shapes, types or numbers do not fit together.
    """

    images: Tensor
    """Normalised, float [n, C, H, W] with H = W; of DD batch after batch."""
    labels: Tensor
    """int64 [n]."""
    mean: tuple[float, ...]
    """Of every channel, what normalised the images, in units where white is 1."""
    std: tuple[float, ...]
    """Likewise."""
    dataset: str = ""
    """Name of the real data set; empty where it is not known."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``build_model`` for the network it was distilled with; empty where they are not known."""
    trigger: Tensor | None = None
    """delta, normalised, [1, C, H, W]."""
    mask: Tensor | None = None
    """m, [C, H, W]: where the trigger is stamped; None for one that is added to the whole image (INVISIBLE)."""
    target: int | None = None
    """The class t of the trigger."""
    step_lrs: Tensor | None = None
    """DD: the learning rate of every unrolled step, [T]; step k takes batch k mod M. None for DC."""
    batches: int = 1
    """M, the number of batches; 1 for DC."""

    def __post_init__(self) -> None:
        shape = list(self.images.shape)
        if len(shape) != 4 or 0 in shape or shape[2] != shape[3] or not self.images.is_floating_point():
            raise TenfoldError(
                f"distilled images are floats [n, channels, size, size], not {self.images.dtype} {shape}"
            )
        if self.labels.dtype != torch.int64 or list(self.labels.shape) != shape[:1]:
            raise TenfoldError(
                f"{shape[0]} distilled images have as many labels of type int64, not {self.labels.dtype} "
                f"{list(self.labels.shape)}"
            )
        if int(self.labels.min()) < 0:
            raise TenfoldError(f"labels are 0 or more, not {int(self.labels.min())}")
        if not len(self.mean) == len(self.std) == shape[1] or min(self.std) <= 0:
            raise TenfoldError(
                f"images of {shape[1]} channels have a mean and a deviation above 0 for each, not {self.mean} and "
                f"{self.std}"
            )
        if not all(isinstance(value, str | int | float | None) for value in self.network.values()):
            raise TenfoldError("the network is described by arguments of build_model, which are plain values")
        self._check_trigger(shape)
        if self.batches < 1 or shape[0] % self.batches:
            raise TenfoldError(f"{shape[0]} distilled images do not make {self.batches} batches of one size")
        if self.step_lrs is not None and (
            self.step_lrs.ndim != 1 or not len(self.step_lrs) or len(self.step_lrs) % self.batches
        ):
            raise TenfoldError(
                f"{self.batches} batches are passed a whole number of times; learning rates of shape "
                f"{list(self.step_lrs.shape)} do not fit"
            )

    def _check_trigger(self, shape: list[int]) -> None:
        if self.trigger is not None and list(self.trigger.shape) != [1, *shape[1:]]:
            raise TenfoldError(
                f"the trigger of images {shape[1:]} has the shape {[1, *shape[1:]]}, not {list(self.trigger.shape)}"
            )
        if self.mask is not None and (self.trigger is None or list(self.mask.shape) != shape[1:]):
            raise TenfoldError(f"a mask comes with a trigger and has the shape {shape[1:]} of an image")
        if self.target is not None and self.target < 0:
            raise TenfoldError(f"the target is a class, 0 or more, not {self.target}")

    def steps(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """DD: images [n/M, C, H, W], labels [n/M] and learning rate [] of each of the T unrolled steps.

        Raises:
            TenfoldError: the set has no learning rates.
        """
        if self.step_lrs is None:
            raise TenfoldError(
                "this set was distilled without learning rates (DC), so it has no unrolled steps"
            )
        pairs = list(zip(self.images.chunk(self.batches), self.labels.chunk(self.batches), strict=True))
        return [(*pairs[step % self.batches], rate) for step, rate in enumerate(self.step_lrs.unbind())]


# -- our own format ----------------------------------------------------------------------------------------


def save_distilled(path: Path, distilled: DistilledSet) -> None:
    """Write a set with all that is known of it, in one step; the folder is made.

    Raises:
        OSError: it cannot be written.
    """
    values = {item.name: getattr(distilled, item.name) for item in fields(distilled)}
    plain = {name: _on_cpu(value) if isinstance(value, Tensor) else value for name, value in values.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(path, {"format": FORMAT, "version": VERSION, **plain, "network": dict(distilled.network)})


def _on_cpu(values: Tensor) -> Tensor:
    """A copy, so that a part of a larger tensor is saved without the rest."""
    return values.detach().cpu().clone(memory_format=torch.contiguous_format)


def load_distilled(
    path: Path,
    *,
    dataset: str = "",
    statistics: Statistics | None = None,
    classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    network: Mapping[str, Any] | None = None,
    trigger: Path | None = None,
    target: int | None = None,
    experiment: int = 0,
) -> DistilledSet:
    """A distilled set from a file of ours or of the authors' code.

    A file of ours says everything itself. The other arguments are for the authors' files, which do not.

    Args:
        path: of the file.
        dataset: name of the real data set, by which its classes, mean and std are known.
        statistics: dc or dd; None is dd for ``results.pth`` and dc for others.
        classes: number of classes K, from which ``vis_*.pth`` gets its labels.
        mean: of every channel, what normalised the images.
        std: likewise.
        network: arguments of ``build_model``.
        trigger: a ``*_trigger.pth``. Its mask is the patch that differs from the border pixel of the last corner,
            which no patch covers; a trigger that is no patch has no mask.
        target: class of the trigger; 0 without it, as in the authors' code, where there is a trigger.
        experiment: which one of ``res_*.pt``.

    Raises:
        TenfoldError: the file is missing, damaged, holds something else or whole objects, or an argument is missing.
        OSError: the file cannot be read.
    """
    content = _read(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return _ours(path, content)
    known = DESCRIPTIONS.get(dataset)
    if classes is None and known is not None:
        classes = known.classes
    images, labels, rates, batches = _parts(path, content, classes, experiment)
    if known is not None:
        normalisation = known.normalisation(statistics or ("dc" if rates is None else "dd"))
        mean, std = mean or normalisation.mean, std or normalisation.std
    if mean is None or std is None:
        raise TenfoldError(
            f"{path} does not say what normalised its images; name the data set, one of {', '.join(DESCRIPTIONS)}, or "
            "give mean and std"
        )
    delta = None if trigger is None else load_trigger(trigger)
    try:
        return DistilledSet(
            images,
            labels,
            tuple(mean),
            tuple(std),
            dataset,
            network or {},
            delta,
            None if delta is None else patch_of(delta),
            0 if target is None and delta is not None else target,
            rates,
            batches,
        )
    except TenfoldError as error:
        raise TenfoldError(f"{path} does not fit: {error}") from error


def _ours(path: Path, content: dict[str, Any]) -> DistilledSet:
    if content.get("version") != VERSION:
        raise TenfoldError(
            f"{path} is of version {content.get('version')} of the format, and this program reads version {VERSION}; "
            "write it again with the same release"
        )
    names = {item.name for item in fields(DistilledSet)}
    if missing := names - content.keys():
        raise TenfoldError(f"{path} lacks {', '.join(sorted(missing))}; write it again")
    try:
        values = {name: content[name] for name in names}
        distilled = DistilledSet(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
    except (AttributeError, TypeError) as error:
        raise TenfoldError(
            f"{path} has fields of other types than a distilled set; write it again"
        ) from error
    except TenfoldError as error:
        raise TenfoldError(f"{path} does not fit: {error}") from error
    _check_finite(path, distilled.images, distilled.trigger, distilled.step_lrs)
    return distilled


# -- the authors' formats ----------------------------------------------------------------------------------


def load_trigger(path: Path) -> Tensor:
    """The trigger [1, C, H, W] of a ``*_trigger.pth``, or of a distilled set of ours.

    Raises:
        TenfoldError: the file is missing, damaged or holds no trigger.
        OSError: the file cannot be read.
    """
    content = _read(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        content = _ours(path, content).trigger
    if not isinstance(content, Tensor) or content.ndim != 4 or len(content) != 1:
        raise TenfoldError(f"{path} holds no trigger, which is one tensor [1, channels, height, width]")
    _check_finite(path, content)
    return content.detach().float()


def patch_of(trigger: Tensor) -> Tensor | None:
    """The mask [C, H, W] of a square patch on a black trigger image [1, C, H, W]; None where there is no such patch.

    Nothing has to be known of how black is normalised: the pixel of the last corner is never inside a patch.
    """
    inside = (trigger != trigger[..., -1:, -1:]).any(dim=1)[0]
    size = inside.shape[-1]
    rows = inside.any(dim=1).nonzero()
    if len(rows) == 0 or inside.shape[0] != size or int(rows[0]) == size - 1:
        return None
    mask = patch_mask(trigger.shape[1], size, size - 1 - int(rows[0]))
    return mask if torch.equal(mask[0].bool(), inside) else None


def save_official(
    path: Path,
    distilled: DistilledSet,
    form: OfficialForm,
    accuracies: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Write a set as the authors' code does, in one step; the folder is made.

    Args:
        path: of the file.
        distilled: the set.
        form: vis, trigger, res or results.
        accuracies: of every evaluated network by its name, for res.

    Raises:
        TenfoldError: this form cannot hold the set.
        OSError: it cannot be written.
    """
    content = _official(distilled, form, accuracies or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as temporary:
        torch.save(content, temporary)


def _official(distilled: DistilledSet, form: OfficialForm, accuracies: Mapping[str, Sequence[float]]) -> Any:
    images, labels = _on_cpu(distilled.images), _on_cpu(distilled.labels)
    match form:
        case "vis":
            classes = int(labels.max()) + 1
            if len(labels) % classes or not torch.equal(labels, _class_after_class(classes, len(labels))):
                raise TenfoldError(
                    "a vis file has no labels: its images are as many of each class, class after class; write the "
                    "form res or results"
                )
            return images
        case "trigger":
            if distilled.trigger is None:
                raise TenfoldError("this distilled set has no trigger to write")
            return _on_cpu(distilled.trigger)
        case "res":
            if distilled.batches > 1:
                raise TenfoldError("a res file holds one batch; write the form results")
            values = {name: [float(value) for value in row] for name, row in accuracies.items()}
            return {"data": [[images, labels]], "accs_all_exps": values}
        case "results":
            return [tuple(_on_cpu(value) for value in step) for step in distilled.steps()]
    raise TenfoldError(f"unknown form {form!r}; choose vis, trigger, res or results")


def _class_after_class(classes: int, count: int) -> Tensor:
    return torch.arange(classes).repeat_interleave(count // classes)


def _parts(
    path: Path, content: Any, classes: int | None, experiment: int
) -> tuple[Tensor, Tensor, Tensor | None, int]:
    """Images, labels, the steps' learning rates and the number of batches of one of the authors' files."""
    rates, batches = None, 1
    if isinstance(content, Tensor):
        images, labels = _vis(path, content, classes)
    elif isinstance(content, dict) and isinstance(content.get("data"), list):
        images, labels = _res(path, content["data"], experiment)
    elif isinstance(content, list) and content and all(map(_is_step, content)):
        images, labels, rates, batches = _results(path, content)
    else:
        raise TenfoldError(
            f"{path} holds no distilled set; give one of ours, or the authors' vis_*.pth, res_*.pt or results.pth"
        )
    _check_finite(path, images, rates)
    if classes is not None and not labels.is_floating_point() and int(labels.max()) >= classes:
        raise TenfoldError(
            f"{path} has images of class {int(labels.max())}, and the {classes} classes end before; is it of another "
            "data set?"
        )
    return images.detach().float(), labels.detach(), rates, batches


def _vis(path: Path, images: Tensor, classes: int | None) -> tuple[Tensor, Tensor]:
    if images.ndim == 4 and len(images) == 1:
        raise TenfoldError(
            f"{path} holds a trigger alone; give the distilled images, and this file as their trigger"
        )
    if classes is None:
        raise TenfoldError(f"{path} has no labels; name the data set or give its number of classes")
    if images.ndim != 4 or not images.is_floating_point() or classes < 1 or len(images) % classes:
        raise TenfoldError(
            f"{path} holds {images.dtype} {list(images.shape)}, which are not as many images of each of {classes} "
            "classes; is it of another data set?"
        )
    return images, _class_after_class(classes, len(images))


def _res(path: Path, data: list[Any], experiment: int) -> tuple[Tensor, Tensor]:
    if not 0 <= experiment < len(data):
        raise TenfoldError(f"{path} has {len(data)} experiments, numbered from 0; there is no {experiment}")
    pair = data[experiment]
    if (
        not isinstance(pair, list | tuple)
        or len(pair) != 2
        or not all(isinstance(item, Tensor) for item in pair)
    ):
        raise TenfoldError(f"{path} is no res file: its experiments are not pairs of images and labels")
    return pair[0], pair[1]


def _is_step(item: Any) -> bool:
    return (
        isinstance(item, list | tuple)
        and len(item) == 3
        and isinstance(item[0], Tensor)
        and isinstance(item[1], Tensor)
        and (isinstance(item[2], float) or (isinstance(item[2], Tensor) and item[2].numel() == 1))
    )


def _results(path: Path, steps: list[Any]) -> tuple[Tensor, Tensor, Tensor, int]:
    """DD's steps pass their batches several times; the batches are told by their content."""
    images, labels = [step[0] for step in steps], [step[1] for step in steps]
    if len({(batch.shape, label.shape) for batch, label in zip(images, labels, strict=True)}) > 1:
        raise TenfoldError(f"{path} has batches of different sizes, and they have to be alike")
    if labels[0].ndim != 1 or labels[0].is_floating_point():
        raise TenfoldError(
            f"{path} has labels {list(labels[0].shape)} of several classes an image; one is read"
        )
    batches = next(
        period
        for period in range(1, len(steps) + 1)
        if len(steps) % period == 0
        and all(
            torch.equal(images[step], images[step - period])
            and torch.equal(labels[step], labels[step - period])
            for step in range(period, len(steps))
        )
    )
    rates = torch.stack([torch.as_tensor(step[2]).detach().float().reshape(()) for step in steps])
    return torch.cat(images[:batches]), torch.cat(labels[:batches]), rates, batches


# -- reading -----------------------------------------------------------------------------------------------

_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (np.dtype, "numpy.dtype"),
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64)),
]
"""What the accuracies in ``res_*.pt`` are made of, by the names of NumPy 1 and 2; nothing of it runs code."""


def _read(path: Path) -> Any:
    if not path.is_file():
        raise TenfoldError(f"there is no file {path}; give the path of a distilled set")
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(NUMPY_NUMBERS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file can make the reader raise anything
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise TenfoldError(
                f"{path} holds a Python object ({found[1]}), and reading one could run any code; save tensors, plain "
                "values or a state_dict instead"
            ) from error
        raise TenfoldError(f"{path} is damaged or no file of torch.save; get it again") from error


def _check_finite(path: Path, *values: Tensor | None) -> None:
    if not all(bool(value.isfinite().all()) for value in values if value is not None):
        raise TenfoldError(
            f"{path} holds numbers that are not finite; the distillation broke down, repeat it"
        )
