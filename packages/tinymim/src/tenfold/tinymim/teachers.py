"""Teachers: one way to read any block; here of our own networks, in ``timm_teachers`` of timm's.

A teacher never learns. It gives queries, keys and values of its target block as they enter the attention product (after
the norms of queries and keys and after rotary positions, where it has them; without a bias of relative positions), and
features with CLS and patches alone: distillation tokens and registers are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.vit import QKV, Readings, Signal, VisionTransformer, check_block, check_heads

HeadPolicy = Literal["student", "trained"]
"""With how many heads the target block is read: as many as the student's last block has, or as it was trained."""


def resolve_target(depth: int, target_block: int | None = None) -> int:
    """The block that students imitate, from 1: by default the 18th of 24, else the last.

    Raises:
        TenfoldError: there is no such block.
    """
    if target_block is None:
        return 18 if depth == 24 else depth
    check_block(target_block, depth)
    return target_block


def plan_heads(
    policy: HeadPolicy,
    *,
    trained_heads: int,
    student_last_heads: int | None,
    teacher_width: int,
    student_width: int,
) -> int:
    """Heads with which the teacher's target block is read, and the student's last block too.

    In the chain MAE-L, B, S, T the policy ``student`` gives 16, 12, 12 (B's last block is trained with 16 and read with
    12), and ``trained`` gives 16 everywhere.

    Args:
        policy: by default of the runs ``student``, the closest to the authors' release.
        trained_heads: of the target block, when the teacher was trained.
        student_last_heads: of the student's last block; None takes the teacher's.
        teacher_width: of the target block's queries.
        student_width: of the student.

    Raises:
        TenfoldError: the heads do not divide both widths.
    """
    heads = (student_last_heads or trained_heads) if policy == "student" else trained_heads
    for who, width in (("teacher", teacher_width), ("student", student_width)):
        if width % heads:
            raise TenfoldError(
                f"the {who}'s width of {width} cannot be divided among {heads} heads (head policy {policy!r}): choose "
                "last heads of the student that divide both widths, or the other policy"
            )
    return heads


class Teacher(nn.Module):
    """One of our networks as a teacher.

    Args:
        network: does not learn any more, and its target block is set.
        target_block: from 1; by default the network's own, else the 18th of 24 blocks or the last.
        heads: of queries, keys and values; by default as the block was trained.

    Raises:
        TenfoldError: there is no such block, or the heads do not divide its width.
    """

    has_cls = True

    def __init__(
        self, network: VisionTransformer, target_block: int | None = None, heads: int | None = None
    ) -> None:
        super().__init__()
        config = network.config
        self.target_block = resolve_target(
            config.depth, config.target_block if target_block is None else target_block
        )
        network.config = replace(config, target_block=self.target_block)
        self.network = network.eval().requires_grad_(False)
        self.width = self.attention_width = config.embed_dim
        self.depth, self.grid, self.img_size = config.depth, config.grid, config.img_size
        self.trained_heads = config.heads[self.target_block - 1]
        self.with_heads(self.trained_heads if heads is None else heads)

    def with_heads(self, heads: int) -> None:
        """Read queries, keys and values with another number of heads from now on."""
        check_heads(self.attention_width, heads)
        self.heads = heads

    def train(self, mode: bool = True) -> Teacher:
        """Stays as at inference, whatever is asked."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def read(self, images: Tensor, wanted: Collection[Signal]) -> Readings:
        """What happens inside, computed no further than it is wanted.

        Args:
            images: [B, 3, H, W], normalised as the network's training images were; resized where their size is not its.
            wanted: signals.

        Returns:
            Queries, keys and values [B, heads, N, d], features [B, N, D], N = 1 + patches.

        Raises:
            TenfoldError: the encoded tokens of a network without a final norm of all tokens are wanted.
        """
        network = self.network
        if "encoded" in wanted and (network.norm is None or network.conv1x1 is not None):
            raise TenfoldError("this teacher has no final norm of all tokens: read its output instead")
        found = network.read(resized(images, self.img_size), frozenset(wanted), heads=self.heads)
        return chosen(found._asdict(), wanted, self.has_cls, network.config.extra_tokens)


def resized(images: Tensor, size: int) -> Tensor:
    """Images [B, 3, size, size], bicubic and smoothed where they shrink."""
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)


def by_heads(qkv: QKV, heads: int) -> QKV:
    """The same numbers divided among another number of heads."""
    if qkv.q.shape[1] == heads:
        return qkv
    return QKV(*(values.unflatten(2, (heads, -1)).transpose(1, 2) for values in qkv.features))


def chosen(found: Mapping[str, Any], wanted: Collection[Signal], has_cls: bool, first_patch: int) -> Readings:
    """Signals that are wanted, with CLS and patches alone."""

    def tokens(values: Tensor) -> Tensor:
        if first_patch == int(has_cls):
            return values
        patches = values[..., first_patch:, :]
        return torch.cat((values[..., :1, :], patches), dim=-2) if has_cls else patches

    found_tokens: dict[str, Any] = {}
    for name in wanted:
        value = found[name]
        found_tokens[name] = QKV(*map(tokens, value)) if name == "qkv" else tokens(value)
    return Readings(**found_tokens)


def check_grid(teacher: Any, grid: int) -> None:
    """Whether a teacher sees as many patches a side as its student.

    Raises:
        TenfoldError: it does not; says which size of the teacher's images would.
    """
    if teacher.grid != grid:
        patch = teacher.img_size // teacher.grid
        raise TenfoldError(
            f"the teacher sees {teacher.grid} x {teacher.grid} patches and the student {grid} x {grid}: load the "
            f"teacher for images of {grid * patch} pixels ({grid} patches of {patch}); images are resized to them"
        )
