"""What a student imitates: one switch for every family of targets that the paper compares.

Token relations (the paper's), the CLS token, features of a block, and reconstruction of masked patches, alone or beside
one of these. An :class:`Objective` holds the student and whatever learns beside it; the teacher stays outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.mae import DecoderConfig, MAEDecoder, Mask, random_mask, reconstruction_loss
from tenfold.tinymim.relations import Pair, relation_loss
from tenfold.tinymim.vit import NORM_EPS, QKV, Readings, Signal, VisionTransformer, check_heads

Family = Literal["relation", "feature", "cls", "none"]
Feature = Literal["output", "ffn", "ffn_residual", "attention", "attention_residual", "qkv"]


@dataclass(frozen=True)
class TargetConfig:
    """What is imitated, and what the student sees."""

    family: Family = "relation"
    """Token relations, a feature, CLS; none is masked autoencoding alone, without a teacher."""
    pairs: tuple[Pair, ...] = ("qk", "vv")
    """Relations: QK and VV, or QQ, KK and VV."""
    softmax: bool = True
    """Relations as distributions (KL divergence), else as products (mean squared difference)."""
    feature: Feature = "output"
    """Output of the last block; of the target block FFN or attention without or with the residual, or Q, K and V."""
    beta: float = 2.0
    """Where the features' smooth L1 turns from square to line."""
    target_block: int | None = None
    """Block of the teacher, from 1; by default the teacher's own (18 of ViT-L, else the last)."""
    masked: bool = False
    """The student sees some patches alone, and targets are of the same tokens."""
    mask_ratio: float = 0.75
    """Share of patches that is hidden then."""
    reconstruction: bool = False
    """Predict the pixels of hidden patches too."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Of the reconstruction."""

    def __post_init__(self) -> None:
        if self.family == "none" and not self.reconstruction:
            raise TenfoldError("without a teacher there is reconstruction alone: add --target.reconstruction")
        if self.reconstruction and not self.masked:
            raise TenfoldError("reconstruction needs hidden patches: add --target.masked")
        if not 0 < self.mask_ratio < 1 or self.beta <= 0:
            raise TenfoldError("the mask ratio is between 0 and 1, and beta is positive")
        if not self.pairs or len(set(self.pairs)) < len(self.pairs):
            raise TenfoldError("relations are some of qk, qq, kk and vv, each once")

    @property
    def signal(self) -> Signal | None:
        """What is read of both networks."""
        if self.family == "relation" or (self.family == "feature" and self.feature == "qkv"):
            return "qkv"
        if self.family == "cls":
            return "output"
        return self.feature if self.family == "feature" else None


def masked_autoencoding(decoder: DecoderConfig, mask_ratio: float = 0.75) -> TargetConfig:
    """MAE: no teacher, reconstruction alone."""
    return TargetConfig("none", masked=True, reconstruction=True, mask_ratio=mask_ratio, decoder=decoder)


def feature_loss(pred: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """Smooth L1 to the layer-normalised target (equations 7 and 8), mean over all elements.

    Args:
        pred: [B, N, D], the student's feature after its projection.
        target: [B, N, D], the teacher's feature; normalised here, without scale and shift.
        beta: e^2 / (2 beta) up to it, |e| - beta / 2 beyond.
    """
    target = F.layer_norm(target.float(), target.shape[-1:], eps=NORM_EPS)
    return F.smooth_l1_loss(pred.float(), target, beta=beta)


def cls_loss(pred: Tensor, target: Tensor) -> Tensor:
    """KL divergence of CLS tokens' softmax over channels (equation 6), summed over channels, mean over images.

    Args:
        pred: [B, D], the student's CLS token after its projection.
        target: [B, D], the teacher's.
    """
    student, teacher = pred.float().log_softmax(dim=-1), target.float().log_softmax(dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class Objective(nn.Module):
    """A student with its target, as one module to be trained.

    What the loss does not reach stays out of training: in the last block of a student of relations that is all but
    ``norm1`` and ``attn.qkv``, and the final norm.

    Args:
        student: of :func:`~tenfold.tinymim.architectures.build_student`.
        config: what is imitated.
        teacher_dim: the teacher's width; None without a teacher.
        has_cls: whether the teacher has a CLS token; without one, relations and features are of patches alone.
    """

    def __init__(
        self,
        student: VisionTransformer,
        config: TargetConfig,
        teacher_dim: int | None = None,
        has_cls: bool = True,
    ) -> None:
        super().__init__()
        if config.family != "none" and teacher_dim is None:
            raise TenfoldError(f"{config.family} distillation needs a teacher")
        if config.family == "cls" and not has_cls:
            raise TenfoldError("this teacher has no CLS token to distil: choose another target")
        self.config, self.student, self.has_cls = config, student, has_cls
        width = student.config.embed_dim
        count = {"feature": 3 if config.feature == "qkv" else 1, "cls": 1}.get(config.family, 0)
        self.projections = nn.ModuleList(nn.Linear(width, teacher_dim or width) for _ in range(count))
        for projection in self.projections:
            nn.init.xavier_uniform_(projection.weight)  # type: ignore[arg-type]
            nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
        self.decoder = MAEDecoder(student.config, config.decoder) if config.reconstruction else None
        signals = (config.signal, "encoded" if config.reconstruction else None)
        self.wanted: frozenset[Signal] = frozenset(signal for signal in signals if signal is not None)  # type: ignore[misc]
        _freeze_unreached(student, self.wanted)

    def forward(
        self, images: Tensor, target: Readings | None = None, noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses by name, their sum as ``total``.

        Args:
            images: [B, 3, H, W], the student's view.
            target: what was read of the teacher.
            noise: [B, patches], uniform; decides which patches are hidden, where some are.
        """
        if target is None and self.config.family != "none":
            raise TenfoldError(f"{self.config.family} distillation needs what was read of a teacher")
        mask = None
        if self.config.masked:
            if noise is None:
                raise TenfoldError("a masked student needs noise that decides which patches are hidden")
            mask = random_mask(noise, self.config.mask_ratio)
        heads = None
        if self.config.family == "relation" and target is not None and target.qkv is not None:
            heads = target.qkv.q.shape[1]
            check_heads(self.student.config.embed_dim, heads)
        readings = self.student.read(images, self.wanted, None if mask is None else mask.keep, heads)
        losses: dict[str, Tensor] = {}
        if target is not None:
            losses |= self._imitation(readings, target, mask)
        if self.decoder is not None:
            assert readings.encoded is not None and mask is not None
            pixels = self.decoder(readings.encoded, mask.restore)
            losses["reconstruction"] = reconstruction_loss(
                pixels, images, mask, self.student.config.patch_size
            )
        return {**losses, "total": torch.stack(list(losses.values())).sum()}

    def _imitation(self, student: Readings, teacher: Readings, mask: Mask | None) -> dict[str, Tensor]:
        match self.config.family:
            case "relation":
                return self._relations(student, teacher, mask)
            case "cls":
                return self._cls(student, teacher)
            case _:
                return {"feature": self._features(student, teacher, mask)}

    def _relations(self, student: Readings, teacher: Readings, mask: Mask | None) -> dict[str, Tensor]:
        student_qkv, teacher_qkv = self._matching_qkv(student, teacher, mask)
        losses = relation_loss(student_qkv, teacher_qkv, self.config.pairs, self.config.softmax)
        return {pair: losses[pair] for pair in self.config.pairs}

    def _cls(self, student: Readings, teacher: Readings) -> dict[str, Tensor]:
        assert student.output is not None and teacher.output is not None
        (projection,) = self.projections
        return {"cls": cls_loss(projection(student.output[:, 0]), teacher.output[:, 0])}

    def _features(self, student: Readings, teacher: Readings, mask: Mask | None) -> Tensor:
        student_features: Sequence[Tensor]
        teacher_features: Sequence[Tensor]
        if self.config.feature == "qkv":
            student_qkv, teacher_qkv = self._matching_qkv(student, teacher, mask)
            student_features, teacher_features = student_qkv.features, teacher_qkv.features
        else:
            feature, target = (getattr(readings, self.config.feature) for readings in (student, teacher))
            student_features = [feature if self.has_cls else feature[:, 1:]]
            teacher_features = [_visible(target, mask, self.has_cls, dim=1)]
        losses = [
            feature_loss(projection(feature), target, self.config.beta)
            for projection, feature, target in zip(
                self.projections, student_features, teacher_features, strict=True
            )
        ]
        return torch.stack(losses).mean()

    def _matching_qkv(self, student: Readings, teacher: Readings, mask: Mask | None) -> tuple[QKV, QKV]:
        """Queries, keys and values of the tokens that both have."""
        assert student.qkv is not None and teacher.qkv is not None
        first = 0 if self.has_cls else 1
        return (
            QKV(*(values[:, :, first:] for values in student.qkv)),
            QKV(*(_visible(values, mask, self.has_cls, dim=2) for values in teacher.qkv)),
        )


def _visible(values: Tensor, mask: Mask | None, has_cls: bool, dim: int) -> Tensor:
    """The teacher's tokens that a masked student sees too, CLS among them where there is one."""
    if mask is None:
        return values
    keep = mask.keep + 1 if has_cls else mask.keep
    if has_cls:
        keep = torch.cat((keep.new_zeros(len(keep), 1), keep), dim=1)
    shape = [len(keep), *(1,) * (values.ndim - 2), 1]
    shape[dim] = keep.shape[1]
    index = keep.view(shape).expand(*values.shape[:dim], -1, values.shape[-1])
    return values.gather(dim, index)


def _freeze_unreached(student: VisionTransformer, wanted: frozenset[Signal]) -> None:
    """Leave out of training what no loss reaches."""
    if "encoded" in wanted:
        return
    unreached: list[nn.Module | None] = [student.norm]
    last = student.blocks[-1]
    if wanted == {"qkv"}:
        unreached += [last.attn.proj, last.norm2, last.mlp]  # type: ignore[union-attr, list-item]
    elif wanted <= {"attention", "attention_residual"}:
        unreached += [last.norm2, last.mlp]  # type: ignore[list-item]
    for module in unreached:
        if module is not None:
            module.requires_grad_(False)
