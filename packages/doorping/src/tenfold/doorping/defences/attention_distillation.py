"""Neural attention distillation (NAD): a network is taught where to look by a fine-tuned copy of itself.

Source: Li et al., "Neural Attention Distillation" (ICLR 2021). The teacher is a copy fine-tuned on a small share of
clean images, 5 % of the training set; the student, another copy, is trained on the same images with

    CE + beta sum_l |A_T^l / |A_T^l|_2 - A_S^l / |A_S^l|_2|_2^2,   A^l = mean over channels of |F^l|^2,

where F^l are the outputs of the convolution blocks, and each layer's term is divided by its number of positions. The
specification gives the loss, beta and the 5 %; the settings marked "authors" are not printed in it but are those of
the authors' released code, and the rest is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.doorping.defences.fine_pruning import FineTuning, clean_accuracy, fine_tune
from tenfold.doorping.defences.neural_cleanse import check_clean_data, frozen_copy
from tenfold.doorping.defences.neuron_stimulation import recorded_outputs
from tenfold.doorping.networks import ResNet18, Trunk
from tenfold.shared.logging import TenfoldError


def _sgd(epochs: int) -> FineTuning:
    """The authors' SGD, at a tenth of its rate from the third epoch on."""
    return FineTuning(
        epochs, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, batch_size=64, decay_after=(2,)
    )


@dataclass(frozen=True)
class AttentionDistillationConfig:
    """How teacher and student are trained."""

    beta: float = 1000.0
    """Of the attention loss; the specification says 500 to 2000."""
    clean_share: float = 0.05
    """Share of the given clean images that is used; 1 where they are the small share already."""
    layers: tuple[str, ...] = ()
    """Names of the modules whose attention is compared; empty for all convolution blocks."""
    mean_over_positions: bool = True
    """Divide each layer's squared distance by its number of positions (authors; beta's range belongs to it). The plain
    sum is so much larger that small networks collapse."""
    teacher: FineTuning = field(default_factory=lambda: _sgd(10))
    """Fine-tuning of the teacher (authors' rate; ten epochs). It is too fast for networks without norms: there about
    0.01 to 0.03."""
    student: FineTuning = field(default_factory=lambda: _sgd(20))
    """Training of the student (authors)."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise TenfoldError(
                f"beta of NAD is a number from 0 up, not {self.beta}; the paper takes 500 to 2000"
            )
        if not 0 < self.clean_share <= 1:
            raise TenfoldError(
                f"the clean share of NAD is a share above 0 and at most 1, not {self.clean_share}"
            )


@dataclass(frozen=True)
class AttentionDistillationReport:
    """What NAD did."""

    network: nn.Module
    """The student: the repaired copy, in evaluation mode."""
    teacher: nn.Module
    """The fine-tuned copy, in evaluation mode."""
    layers: tuple[str, ...]
    """Modules whose attention was compared."""
    used: Tensor
    """Indices of the clean images that both were trained on, int64 [n]."""
    accuracy_before: float
    """Clean accuracy of the network as it was, on all given images."""
    teacher_accuracy: float
    """Of the teacher, likewise."""
    accuracy_after: float
    """Of the student, likewise."""


def distil_attention(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: AttentionDistillationConfig | None = None,
    generator: torch.Generator | None = None,
) -> AttentionDistillationReport:
    """Fine-tune a teacher and distil its attention into a student.

    Args:
        network: a classifier, which may have a backdoor; it does not change.
        images: clean, normalised, [N, C, H, W].
        labels: int64 [N].
        config: the settings; the standard ones without it.
        generator: of the clean share and of the batches, on the CPU; seed 0 without it.

    Raises:
        TenfoldError: the data has the wrong shape, or the layers cannot be found.
    """
    config = config or AttentionDistillationConfig()
    generator = generator or torch.Generator().manual_seed(0)
    check_clean_data(images, labels)
    names = attention_layers(network, config.layers)
    count = max(1, round(config.clean_share * len(images)))
    used = torch.randperm(len(images), generator=generator)[:count].to(images.device)
    clean_images, clean_labels = images[used], labels[used]

    teacher = deepcopy(network)
    fine_tune(teacher, clean_images, clean_labels, config.teacher, generator)
    teacher = frozen_copy(teacher)
    student = deepcopy(network)
    with (
        recorded_outputs([student.get_submodule(name) for name in names]) as looks,
        recorded_outputs([teacher.get_submodule(name) for name in names]) as shown,
    ):

        def loss_of(batch: Tensor, wanted: Tensor) -> Tensor:
            with torch.no_grad():
                teacher(batch)
            errors = F.cross_entropy(student(batch), wanted)
            pairs = [(looks[place], shown[place]) for place in range(len(names))]
            distance = torch.stack(
                [attention_distance(seen, aim, config.mean_over_positions) for seen, aim in pairs]
            ).sum()
            return errors + config.beta * distance

        fine_tune(student, clean_images, clean_labels, config.student, generator, loss_of)
    return AttentionDistillationReport(
        student,
        teacher,
        names,
        used,
        clean_accuracy(frozen_copy(network), images, labels),
        clean_accuracy(teacher, images, labels),
        clean_accuracy(student, images, labels),
    )


def attention_map(features: Tensor) -> Tensor:
    """Mean over channels of |F|^2 of features [B, C, h, w], as unit vectors [B, h w]; 0 where nothing is active."""
    return F.normalize(features.square().mean(dim=1).flatten(1), dim=1)


def attention_distance(student: Tensor, teacher: Tensor, mean_over_positions: bool = True) -> Tensor:
    """Squared l2 distance of the attention maps of features [B, C, h, w], averaged over images.

    Args:
        student: features of a layer.
        teacher: of the same layer; only the number of channels may differ.
        mean_over_positions: divide by h w.
    """
    distance = (attention_map(student) - attention_map(teacher)).square()
    return distance.mean() if mean_over_positions else distance.sum(dim=1).mean()


def attention_layers(network: nn.Module, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the modules whose attention is compared: those given, or what ends each convolution block.

    A block is a convolution with all that follows it up to the next; of ResNet18 it is one of the four stages.

    Raises:
        TenfoldError: there is no such module, or no convolution block.
    """
    modules = dict(network.named_modules())
    if names:
        if unknown := [name for name in names if name not in modules]:
            raise TenfoldError(
                f"this network has no module {unknown[0]!r}; choose layers from network.named_modules()"
            )
        return tuple(names)
    if isinstance(network, ResNet18):
        return ("layer1", "layer2", "layer3", "layer4")
    trunk = getattr(network, "features", None)
    chain = list(trunk) if isinstance(trunk, Trunk) else []
    begins = [place for place, module in enumerate(chain) if isinstance(module, nn.Conv2d)]
    if not begins:
        raise TenfoldError(
            "this network has no chain of convolutions; name the layers that NAD shall compare"
        )
    return tuple(f"features.{place - 1}" for place in [*begins[1:], len(chain)])
