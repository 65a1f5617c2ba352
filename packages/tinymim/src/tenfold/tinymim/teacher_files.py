"""Teachers from files: by name, of timm, or the network of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint
from tenfold.tinymim.architectures import STUDENTS, TEACHERS
from tenfold.tinymim.checkpoints import load_official_state_dict, load_weights
from tenfold.tinymim.teachers import Teacher
from tenfold.tinymim.timm_teachers import Statistics, TimmTeacher, timm_network
from tenfold.tinymim.vit import VisionTransformer, ViTConfig

AnyTeacher = Teacher | TimmTeacher


def load_teacher(
    name: str,
    weights: Path | None,
    *,
    target_block: int | None = None,
    heads: int | None = None,
    img_size: int | None = None,
    mean: Statistics = IMAGENET_DEFAULT_MEAN,
    std: Statistics = IMAGENET_DEFAULT_STD,
    download: bool = False,
    allow_random: bool = False,
) -> AnyTeacher:
    """A teacher by name.

    Args:
        name: one of ``architectures.TEACHERS`` or ``STUDENTS``, or ``timm/`` with the name of a model.
        weights: file of MAE's or TinyMIM's weights, or of those of timm's model.
        target_block: from 1; by default the 18th of 24, else the last.
        heads: with which it is read; by default as it was trained.
        img_size: side of the images that it sees in pixels, others are resized; by default the network's own. Position
            tables are interpolated to it.
        mean: of the images that it is given; matters to timm's models alone, which know their own.
        std: of the images that it is given.
        download: allow timm to fetch the weights.
        allow_random: take random weights where there are none.

    Raises:
        TenfoldError: the name is unknown, weights are missing or of another network, or the model cannot be a teacher.
    """
    if weights is None and not allow_random and not (download and name.startswith("timm/")):
        fetch = ", or allow timm to download them" if name.startswith("timm/") else ""
        raise TenfoldError(f"the teacher {name} needs weights: give their file{fetch}")
    if name.startswith("timm/"):
        network = timm_network(name.removeprefix("timm/"), weights, img_size, download)
        return TimmTeacher(network, target_block, heads, mean, std)
    known = {**TEACHERS, **STUDENTS}
    if name not in known:
        raise TenfoldError(f"there is no teacher {name!r}: choose one of {', '.join(known)}, or timm/<model>")
    config = known[name]
    own = VisionTransformer(replace(config, img_size=img_size or config.img_size))
    if weights is not None:
        load_weights(own, weights)
    return Teacher(own, target_block, heads)


def load_student_as_teacher(
    path: Path, *, target_block: int | None = None, heads: int | None = None
) -> Teacher:
    """The network of a finished pre-training run, for the next stage of a chain.

    Args:
        path: ``model.pt`` of the run: its ``shape`` (fields of :class:`ViTConfig`) and ``network`` (weights).
        target_block: from 1; by default the run's own, else the 18th of 24 or the last.
        heads: with which it is read; by default as the block was trained.

    Raises:
        TenfoldError: the file is missing, damaged, or not of such a run.
    """
    content = load_checkpoint(path)
    shape, weights = content.get("shape"), content.get("network")
    if not isinstance(shape, Mapping) or not isinstance(weights, Mapping):
        raise TenfoldError(
            f"{path} is no model of a pre-training run: give the model.pt of one, or load it by name"
        )
    try:
        network = VisionTransformer(ViTConfig(**{**shape, "drop_path": tuple(shape.get("drop_path", ()))}))
        load_official_state_dict(network, weights)
    except (TypeError, TenfoldError) as error:
        raise TenfoldError(f"{path}: {error}") from error
    return Teacher(network, target_block, heads)
