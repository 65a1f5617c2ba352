"""Teachers: one way to read any block of our own networks and of timm's vision transformers.

A teacher never learns. It gives queries, keys and values of its target block as they enter the attention product (after
the norms of queries and keys and after rotary positions, where it has them; without a bias of relative positions), and
features with CLS and patches alone: distillation tokens and registers are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint
from tenfold.tinymim.architectures import STUDENTS, TEACHERS
from tenfold.tinymim.checkpoints import load_official_state_dict, load_weights
from tenfold.tinymim.vit import (
    QKV,
    Readings,
    Signal,
    VisionTransformer,
    ViTConfig,
    check_block,
    check_heads,
)

HeadPolicy = Literal["student", "trained"]
"""With how many heads the target block is read: as many as the student's last block has, or as it was trained."""
Statistics = tuple[float, ...]
"""Of images, one number for each channel."""


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
        found = network.read(_resized(images, self.img_size), frozenset(wanted), heads=self.heads)
        return _chosen(found._asdict(), wanted, self.has_cls, network.config.extra_tokens)


class TimmTeacher(nn.Module):
    """A vision transformer of timm as a teacher: ViT (MAE, DINO, CLIP, DeiT, registers), BEiT, EVA and their kin.

    Features without the residual are as they are added to it, after layer scale where there is one. ``output`` is of
    the last block, ``encoded`` what the model's ``norm`` makes of it: nothing in models that norm the mean instead.

    Args:
        network: does not learn any more. Its own mean and standard deviation stand in its ``pretrained_cfg``.
        target_block: from 1; by default the 18th of 24, else the last.
        heads: of queries, keys and values; by default the model's own.
        mean: of the images that it is given.
        std: of the images that it is given.

    Raises:
        TenfoldError: the model has no blocks of tokens, no such block, or the heads do not divide its width.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        target_block: int | None = None,
        heads: int | None = None,
        mean: Statistics = IMAGENET_DEFAULT_MEAN,
        std: Statistics = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__()
        _check_blocks(network)
        model: Any = network
        self.depth = len(model.blocks)
        self.target_block = resolve_target(self.depth, target_block)
        self.network = network.eval().requires_grad_(False)
        self.width = int(model.embed_dim)
        self.grid, self.img_size = int(model.patch_embed.grid_size[0]), int(model.patch_embed.img_size[0])
        self.has_cls = getattr(model, "cls_token", None) is not None
        self.prefix = int(model.num_prefix_tokens)
        attention = model.blocks[self.target_block - 1].attn
        attention.fused_attn = True  # so that queries, keys and values meet in one function
        self.attention_width, self.trained_heads = int(attention.proj.in_features), int(attention.num_heads)
        self.with_heads(self.trained_heads if heads is None else heads)
        settings: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
        own_mean, own_std = settings.get("mean") or mean, settings.get("std") or std
        self.renormalises = (tuple(own_mean), tuple(own_std)) != (tuple(mean), tuple(std))
        given_mean, given_std, wanted_mean, wanted_std = (
            torch.tensor(values)[:, None, None] for values in (mean, std, own_mean, own_std)
        )
        self.register_buffer("scale", given_std / wanted_std, persistent=False)
        self.register_buffer("shift", (given_mean - wanted_mean) / wanted_std, persistent=False)

    def with_heads(self, heads: int) -> None:
        """Read queries, keys and values with another number of heads from now on."""
        check_heads(self.attention_width, heads)
        self.heads = heads

    def train(self, mode: bool = True) -> TimmTeacher:
        """Stays as at inference, whatever is asked."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def read(self, images: Tensor, wanted: Collection[Signal]) -> Readings:
        """What happens inside, computed no further than it is wanted.

        Args:
            images: [B, 3, H, W], normalised with the mean and deviation that the teacher was told; renormalised and
                resized where the model's own are others.
            wanted: signals.

        Returns:
            Queries, keys and values [B, heads, N, d], features [B, N, D], N = [CLS +] patches.

        Raises:
            TenfoldError: the model's attention is of another kind.
        """
        images = _resized(images, self.img_size)
        if self.renormalises:
            images = images * self.scale + self.shift
        found = self._followed(images, frozenset(wanted))
        if found.get("qkv") is not None:
            found["qkv"] = _by_heads(found["qkv"], self.heads)
        return _chosen(found, wanted, self.has_cls, self.prefix)

    def _followed(self, images: Tensor, wanted: frozenset[Signal]) -> dict[str, Any]:
        """Signals by name with all tokens, seen by hooks that are there for this one pass."""
        found: dict[str, Any] = {}
        model: Any = self.network
        block, last = model.blocks[self.target_block - 1], model.blocks[-1]
        tokens = self.prefix + self.grid**2
        entered: list[Tensor] = []  # the target block's input
        with ExitStack() as until_the_end, ExitStack() as until_the_product, suppress(_EverythingFoundError):

            def keep(name: Signal, value: Any) -> None:
                found[name] = value
                if wanted <= found.keys():
                    raise _EverythingFoundError

            def keep_qkv(qkv: QKV) -> None:
                q, k, v = qkv
                if not (q.ndim == 4 and q.shape == k.shape == v.shape and q.shape[2] == tokens):
                    raise _other_kind(model)
                keep("qkv", qkv)

            def enters_block(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                if args[0].shape[1:] != (tokens, self.width):
                    raise _other_kind(model)
                entered.append(args[0])

            def enters_attention(*_: Any) -> None:
                until_the_product.enter_context(_AtTheProduct(keep_qkv))

            def leaves_attention(*_: Any) -> None:
                until_the_product.close()
                if "qkv" not in found:
                    raise _other_kind(model)

            def adds_attention(_: nn.Module, __: Any, added: Tensor) -> None:
                keep("attention", added)
                keep("attention_residual", entered[0] + added)

            for handle in (
                block.register_forward_pre_hook(enters_block),
                block.attn.register_forward_pre_hook(enters_attention),
                block.attn.register_forward_hook(leaves_attention),
                block.drop_path1.register_forward_hook(adds_attention),
                block.drop_path2.register_forward_hook(lambda _, __, added: keep("ffn", added)),
                block.register_forward_hook(lambda _, __, out: keep("ffn_residual", out)),
                last.register_forward_hook(lambda _, __, out: keep("output", out)),
                model.norm.register_forward_hook(lambda _, __, out: keep("encoded", out)),
            ):
                until_the_end.callback(handle.remove)
            model(images)
        return found


AnyTeacher = Teacher | TimmTeacher


class _EverythingFoundError(Exception):
    """Ends a pass of which nothing more is wanted."""


class _AtTheProduct(TorchFunctionMode):
    """Sees what enters the attention product."""

    def __init__(self, keep: Callable[[QKV], None]) -> None:
        super().__init__()
        self.keep = keep

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.keep(QKV(*args[:3]))
        return func(*args, **(kwargs or {}))


def _other_kind(model: nn.Module) -> TenfoldError:
    return TenfoldError(
        f"{type(model).__name__} cannot be a teacher: choose a model with blocks of one sequence of tokens and plain "
        "attention, as timm's VisionTransformer, Beit and Eva"
    )


def _check_blocks(network: nn.Module) -> None:
    """Whether a model of timm can be read."""
    model: Any = network
    blocks = getattr(model, "blocks", None)
    parts = ("blocks", "norm", "patch_embed", "embed_dim", "num_prefix_tokens")
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if not (
        all(hasattr(model, part) for part in parts)
        and isinstance(blocks, nn.Sequential | nn.ModuleList)
        and all(hasattr(block, part) for block in blocks for part in ("attn", "drop_path1", "drop_path2"))
        and all(hasattr(block.attn, part) for block in blocks for part in ("proj", "num_heads", "fused_attn"))
        and grid is not None
    ):
        raise _other_kind(network)
    if grid[0] != grid[1]:
        raise TenfoldError(
            f"this teacher sees {grid[0]} x {grid[1]} patches: choose one that sees square images"
        )


def _resized(images: Tensor, size: int) -> Tensor:
    """Images [B, 3, size, size], bicubic and smoothed where they shrink."""
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)


def _by_heads(qkv: QKV, heads: int) -> QKV:
    """The same numbers divided among another number of heads."""
    if qkv.q.shape[1] == heads:
        return qkv
    return QKV(*(values.unflatten(2, (heads, -1)).transpose(1, 2) for values in qkv.features))


def _chosen(
    found: Mapping[str, Any], wanted: Collection[Signal], has_cls: bool, first_patch: int
) -> Readings:
    """Signals that are wanted, with CLS and patches alone."""

    def tokens(values: Tensor) -> Tensor:
        if first_patch == int(has_cls):
            return values
        patches = values[..., first_patch:, :]
        return torch.cat((values[..., :1, :], patches), dim=-2) if has_cls else patches

    chosen: dict[str, Any] = {}
    for name in wanted:
        value = found[name]
        chosen[name] = QKV(*map(tokens, value)) if name == "qkv" else tokens(value)
    return Readings(**chosen)


def check_grid(teacher: AnyTeacher, grid: int) -> None:
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
        network = _timm_network(name.removeprefix("timm/"), weights, img_size, download)
        return TimmTeacher(network, target_block, heads, mean, std)
    known = {**TEACHERS, **STUDENTS}
    if name not in known:
        raise TenfoldError(f"there is no teacher {name!r}: choose one of {', '.join(known)}, or timm/<model>")
    config = known[name]
    own = VisionTransformer(replace(config, img_size=img_size or config.img_size))
    if weights is not None:
        load_weights(own, weights)
    return Teacher(own, target_block, heads)


def _timm_network(name: str, weights: Path | None, img_size: int | None, download: bool) -> nn.Module:
    """A model of timm, its weights from a file or fetched, strictly."""
    if not timm.is_model(name):
        raise TenfoldError(f"timm has no model {name} to distil from")
    settings: dict[str, Any] = {"pretrained": download}
    if weights is not None:
        if not weights.is_file():
            raise TenfoldError(f"no weights at {weights}; give the path of an existing file")
        source = {"file": str(weights), "custom_load": weights.suffix == ".npz", "source": "timm"}
        settings = {"pretrained": True, "pretrained_cfg_overlay": source}
    try:
        network: nn.Module = timm.create_model(name, img_size=img_size, **settings)
    except Exception as error:  # whatever timm, the reader of files or the hub's client raises
        reason = " ".join(str(error).split())[:300]
        if weights is not None:
            raise TenfoldError(f"{weights} does not fit timm's {name}: {reason}") from error
        what = "the weights of {} could not be fetched" if download else "timm's {} could not be made"
        raise TenfoldError(f"{what.format(name)}: {reason}") from error
    return network


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
