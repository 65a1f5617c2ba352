"""From settings to a trained network: data, teacher and student of one run put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from lightning_fabric import Fabric
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from torch import Tensor, nn

from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run
from tenfold.shared.seeding import make_generator, seed_everything
from tenfold.tinymim.architectures import constant_drop_path, make_classifier
from tenfold.tinymim.checkpoints import transfer_pretrained
from tenfold.tinymim.config import DataConfig, FinetuneConfig, NetworkConfig
from tenfold.tinymim.finetuning import Batches, Finetuned, finetune
from tenfold.tinymim.frozen import LinearProbeConfig, features, knn_accuracy, linear_probe
from tenfold.tinymim.image_files import (
    FileBatches,
    FileViews,
    finetuning_transform,
    image_folder,
    judging_loader,
    testing_transform,
)
from tenfold.tinymim.image_sets import MemoryBatches, MemoryViews, Split, judging_batches, load_in_memory
from tenfold.tinymim.positions import sincos_pos_embed
from tenfold.tinymim.pretraining import Pretrained, Views, pretrain
from tenfold.tinymim.suites import Pretraining
from tenfold.tinymim.targets import Objective
from tenfold.tinymim.teacher_files import AnyTeacher
from tenfold.tinymim.teachers import Teacher, check_grid, plan_heads
from tenfold.tinymim.vit import VisionTransformer, ViTConfig

NEIGHBOURS = 5
"""Of k-NN on frozen features."""


@dataclass(frozen=True)
class Images:
    """The images of a run on Fabric's device, or the folder with their files."""

    config: DataConfig
    fabric: Fabric
    split: Split | None
    folder: Path

    @property
    def processes(self) -> tuple[int, int]:
        """Rank of this one, and how many there are."""
        return self.fabric.global_rank, self.fabric.world_size

    @property
    def num_classes(self) -> int:
        """Of the images that judge."""
        if self.split is not None:
            return self.split.test.num_classes
        return len(image_folder(self.folder / "val", testing_transform(self.config.image_size)).classes)

    def views(self, colours: float, batch_size: int, seed: int) -> Views:
        """Batches of pre-training."""
        config, size = self.config, self.config.image_size
        if self.split is not None:
            return MemoryViews(
                self.split.train, size, config.crop, colours, batch_size, seed, *self.processes
            )
        return FileViews(
            self.folder / "train",
            size,
            config.crop,
            colours,
            batch_size,
            config.workers,
            seed,
            self.fabric.device,
            *self.processes,
        )

    def batches(self, recipe: FinetuneConfig, seed: int) -> Batches:
        """Batches of fine-tuning."""
        config, size = self.config, self.config.image_size
        if self.split is not None:
            return MemoryBatches(
                self.split.labelled, size, config.crop, recipe.batch_size, seed, *self.processes
            )
        transform = finetuning_transform(size, recipe)
        return FileBatches(
            self.folder / "train", transform, recipe.batch_size, config.workers, seed, *self.processes
        )

    def judging(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Images that judge, this process's share."""
        size = self.config.image_size
        if self.split is not None:
            return judging_batches(self.split.test, size, 500, *self.processes)
        loader: Iterable[tuple[Tensor, Tensor]] = judging_loader(
            self.folder / "val", size, self.config.workers, 128, *self.processes
        )
        return loader


def load_images(config: DataConfig, fabric: Fabric, data_root: Path, download: bool = False) -> Images:
    """The images of a run.

    Raises:
        TenfoldError: they are not there.
    """
    if config.dataset == "imagenet":
        return Images(config, fabric, None, data_root / "imagenet")
    split = load_in_memory(config, data_root, download)
    placed = Split(*(part.to(fabric.device) for part in (split.train, split.labelled, split.test)))
    return Images(config, fabric, placed, data_root)


# -- pre-training --------------------------------------------------------------------------------------


def make_student(
    settings: Pretraining, image_size: int, seed: int, teacher: AnyTeacher | None
) -> VisionTransformer:
    """The network that learns; for relations its last block has as many heads as its teacher is read with.

    Raises:
        TenfoldError: widths cannot be divided so, or the two see different numbers of patches.
    """
    shape = settings.network.shape(image_size)
    last_heads = None
    if teacher is not None:
        check_grid(teacher, shape.grid)
    if teacher is not None and settings.target.family == "relation":
        last_heads = plan_heads(
            settings.head_policy,
            trained_heads=teacher.trained_heads,
            student_last_heads=settings.last_heads or shape.last_heads,
            teacher_width=teacher.attention_width,
            student_width=shape.embed_dim,
        )
        teacher.with_heads(last_heads)
    seed_everything(seed)
    rates = constant_drop_path(shape.depth, settings.train.drop_path)
    return VisionTransformer(replace(shape, last_heads=last_heads, drop_path=rates, target_block=None))


def pretrain_network(
    settings: Pretraining,
    images: Images,
    seed: int,
    run: Run,
    teacher: AnyTeacher | None = None,
    compile_network: bool = False,
) -> Pretrained:
    """Pre-train one network.

    Args:
        settings: network, target and recipe.
        images: of the run.
        seed: of weights, order, crops, masks and stochastic depth.
        run: entered; goes on from its checkpoint.
        teacher: on Fabric's device; its heads are set here.
        compile_network: with torch.compile.
    """
    recipe = settings.train
    student = make_student(settings, images.config.image_size, seed, teacher)
    if teacher is not None and recipe.teacher_drop_path:
        let_teacher_drop(teacher, recipe.teacher_drop_path)
    if teacher is not None and compile_network:
        for block in teacher.network.blocks[: teacher.target_block - 1]:  # type: ignore[index]
            block.compile()
    width = None
    if teacher is not None:
        width = teacher.attention_width if settings.target.signal == "qkv" else teacher.width
    has_cls = True if teacher is None else teacher.has_cls
    objective = Objective(student, settings.target, width, has_cls)
    views = images.views(recipe.jitter, recipe.batch_size, seed)
    trained = pretrain(
        recipe,
        objective,
        views,
        seed,
        images.fabric,
        run,
        teacher,
        compile_network,
        lambda network: judge_neighbours(network, images),
    )
    if teacher is not None:
        teacher.train(False)  # without the stochastic depth that it may have had
    return trained


def let_teacher_drop(teacher: AnyTeacher, rate: float) -> None:
    """Stochastic depth in a teacher, which the paper tries and finds worse.

    Raises:
        TenfoldError: it is a model of timm.
    """
    if not isinstance(teacher, Teacher):
        raise TenfoldError("stochastic depth in the teacher is for networks of this package: leave it at 0")
    for block in teacher.network.blocks[: teacher.target_block - 1]:
        block.drop_path = DropPath(rate).train()


def judge_frozen(network: VisionTransformer, images: Images, seed: int) -> dict[str, float]:
    """k-NN and a linear layer on frozen features of the last block but one; of sets in memory alone."""
    if images.split is None:
        return {}
    frozen = _frozen_features(network, images.split, images)
    probe = LinearProbeConfig(batch_size=min(256, len(frozen[0])))
    return {
        "knn_top1": knn_accuracy(*frozen, NEIGHBOURS),
        "probe_top1": linear_probe(*frozen, probe, make_generator(seed)),
    }


def judge_neighbours(network: VisionTransformer, images: Images) -> dict[str, float]:
    """k-NN alone, which trains nothing."""
    if images.split is None:
        return {}
    return {"knn_top1": knn_accuracy(*_frozen_features(network, images.split, images), NEIGHBOURS)}


def _frozen_features(
    network: VisionTransformer, split: Split, images: Images
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and labels of labelled images, and of those that judge."""
    labelled = judging_batches(split.labelled, images.config.image_size, 500, *images.processes)
    train, test = (features(network, batches, images.fabric) for batches in (labelled, images.judging()))
    return *train, *test


# -- fine-tuning ---------------------------------------------------------------------------------------


def statistics_of(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel with which images are normalised."""
    if images.split is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return images.split.train.mean, images.split.train.std


def make_finetuned_network(
    shape: ViTConfig,
    recipe: FinetuneConfig,
    num_classes: int,
    seed: int,
    pretrained: dict[str, Any] | None = None,
    pretrained_heads: int | None = None,
) -> VisionTransformer:
    """A classifier as fine-tuning begins.

    Args:
        shape: of the network.
        recipe: of stochastic depth, pooling and heads.
        num_classes: of the labels.
        seed: of new weights.
        pretrained: weights by the authors' names; none is from scratch.
        pretrained_heads: of the last block in pre-training; taken with ``keep_pretrain_heads``.
    """
    seed_everything(seed)
    last_heads = pretrained_heads if recipe.keep_pretrain_heads else None
    classifier = make_classifier(
        replace(shape, last_heads=last_heads), num_classes, recipe.global_pool, recipe.drop_path
    )
    if pretrained is not None:
        transfer_pretrained(classifier, pretrained, make_generator(seed))
    elif recipe.positions == "sincos":
        table = sincos_pos_embed(shape.embed_dim, shape.grid, cls_token=False)
        with torch.no_grad():
            classifier.pos_embed.zero_()[:, shape.extra_tokens :] = table
    return classifier


def finetune_network(
    recipe: FinetuneConfig,
    classifier: VisionTransformer,
    batches: Batches,
    images: Images,
    seed: int,
    run: Run,
    compile_network: bool = False,
    download: bool = False,
) -> Finetuned:
    """Train a classifier with labels.

    Args:
        recipe: how.
        classifier: with its first weights.
        batches: labelled images that train.
        images: of the run, with those that judge.
        seed: of order, crops, stochastic depth and mixed images.
        run: entered; goes on from its checkpoint.
        compile_network: with torch.compile.
        download: fetch the weights of a teacher's.
    """
    teacher = None
    if recipe.teacher is not None:
        teacher = load_timm_classifier(recipe.teacher, classifier.config.num_classes or 0, download)
        teacher = teacher.to(images.fabric.device)
    return finetune(
        recipe, classifier, batches, images.judging, seed, images.fabric, run, teacher, compile_network
    )


class NormalisedClassifier(nn.Module):
    """A classifier of timm that is given images normalised for ImageNet, and sees them as it was trained.

    Args:
        network: has timm's ``pretrained_cfg``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        known: Any = network.pretrained_cfg
        theirs, ours = (known["mean"], known["std"]), (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        (mean, std), (our_mean, our_std) = (map(torch.tensor, values) for values in (theirs, ours))
        self.register_buffer("scale", (our_std / std)[:, None, None], persistent=False)
        self.register_buffer("shift", ((our_mean - mean) / std)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> NormalisedClassifier:
        """Stays as at inference, whatever is asked."""
        del mode
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 3, H, W]."""
        logits: Tensor = self.network(images * self.scale + self.shift)  # type: ignore[operator]
        return logits


def load_timm_classifier(name: str, num_classes: int, download: bool) -> NormalisedClassifier:
    """A classifier of timm whose classes are learned.

    Raises:
        TenfoldError: there is none, it has other classes, or its weights are not here.
    """
    if not timm.is_model(name):
        raise TenfoldError(f"timm has no model {name} to learn classes from")
    if not download:
        raise TenfoldError(f"the weights of timm's {name} are fetched on request alone: add --download")
    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the hub's client raises
        raise TenfoldError(
            f"the weights of timm's {name} could not be fetched; is there a network?"
        ) from error
    if network.num_classes != num_classes:
        raise TenfoldError(
            f"timm's {name} knows {network.num_classes} classes, the labels have {num_classes}"
        )
    return NormalisedClassifier(network)


def network_shape(network: NetworkConfig | None, pretrained: ViTConfig | None, image_size: int) -> ViTConfig:
    """Shape of a classifier: its own, or that of its pre-trained network."""
    if network is not None:
        return network.shape(image_size)
    if pretrained is None:
        raise TenfoldError("give --network.name or the shape of a network: the weights do not tell it")
    return replace(pretrained, img_size=image_size)
