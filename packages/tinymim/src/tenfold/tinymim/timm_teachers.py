"""timm's vision transformers as teachers: hooks find a block, and what enters its attention product is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.teachers import by_heads, chosen, resized, resolve_target
from tenfold.tinymim.vit import QKV, Readings, Signal, check_heads

Statistics = tuple[float, ...]
"""Of images, one number for each channel."""


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
        images = resized(images, self.img_size)
        if self.renormalises:
            images = images * self.scale + self.shift
        found = self._followed(images, frozenset(wanted))
        if found.get("qkv") is not None:
            found["qkv"] = by_heads(found["qkv"], self.heads)
        return chosen(found, wanted, self.has_cls, self.prefix)

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


def timm_network(name: str, weights: Path | None, img_size: int | None, download: bool) -> nn.Module:
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
