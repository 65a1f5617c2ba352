"""EMO: inference and training against the plain composition, folded ONNX against its graph, and timm's peers.

The reference is the block as a paper's figure reads: maps in [B, C, H, W], 1x1 convolutions, layer norm between two
permutations, windows by rearranging, attention by two matrix products and a softmax, windows undone after the
expansion. It takes the authors' weights, and both sides give the same, which is checked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.emo.checkpoints import to_official
from tenfold.emo.export import onnx_runtime, write_onnx
from tenfold.emo.inference import reparameterize
from tenfold.emo.model import ARCHITECTURES, EMO, STEM_WIDTH, build_model

SIZE = 224


class Named(nn.Module):
    """Puts layers below a name, as the authors' state dict has them."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class PermutedLayerNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2).contiguous()


class PlainBlock(nn.Module):
    """The inverted residual mobile block, operation by operation."""

    def __init__(
        self,
        channels: int,
        out: int,
        ratio: float,
        norm: str,
        act: str,
        kernel: int,
        stride: int,
        head: int,
        attends: bool,
        window: int,
        se: bool = False,
    ) -> None:
        super().__init__()
        middle = int(channels * ratio)
        self.window, self.stride = window, stride
        self.heads, self.head = channels // head if attends else 1, head
        self.has_skip = stride == 1 and channels == out and not se
        self.norm: nn.Module = nn.Identity()
        if not se:
            self.norm = nn.BatchNorm2d(channels, eps=1e-6) if norm == "bn_2d" else PermutedLayerNorm(channels)
        self.qk = Named(conv=nn.Conv2d(channels, 2 * channels, 1)) if attends else None
        self.v = None if se else Named(conv=nn.Conv2d(channels, middle, 1))
        self.act = nn.SiLU() if act == "silu" else nn.GELU()
        conv = nn.Conv2d(
            middle, middle, kernel, stride, padding=(kernel - stride + 1) // 2, groups=middle, bias=False
        )
        self.conv_local = Named(conv=conv, norm=nn.BatchNorm2d(middle, eps=1e-6))
        self.se = (
            Named(conv_reduce=nn.Conv2d(middle, middle, 1), conv_expand=nn.Conv2d(middle, middle, 1))
            if se
            else None
        )
        self.proj = Named(conv=nn.Conv2d(middle, out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.norm(x)
        if self.qk is not None:
            x = self.attend(x)
        elif self.v is not None:
            x = self.act(self.v.conv(x))
        local = F.silu(self.conv_local.norm(self.conv_local.conv(x)))
        if self.se is not None:
            gate = self.se.conv_expand(F.silu(self.se.conv_reduce(local.mean((2, 3), keepdim=True))))
            local = local * gate.sigmoid()
        x = self.proj.conv(x + local if self.has_skip else local)
        return shortcut + x if self.has_skip else x

    def attend(self, x: Tensor) -> Tensor:
        size, side = x.shape[2:], self.window
        x = F.pad(x, (0, -size[1] % side, 0, -size[0] % side))
        batch, channels, height, width = x.shape
        rows, columns = height // side, width // side
        # b c (h1 n1) (w1 n2) -> (b n1 n2) c h1 w1
        x = x.reshape(batch, channels, side, rows, side, columns).permute(0, 3, 5, 1, 2, 4)
        x = x.reshape(batch * rows * columns, channels, side, side).contiguous()
        qk = self.qk.conv(x)  # type: ignore[union-attr]
        qk = qk.reshape(-1, 2, self.heads, self.head, side * side).permute(1, 0, 2, 4, 3).contiguous()
        weights = (qk[0] @ qk[1].transpose(-2, -1) * self.head**-0.5).softmax(dim=-1)
        value = x.reshape(-1, self.heads, self.head, side * side).permute(0, 1, 3, 2).contiguous()
        x = (weights @ value).permute(0, 1, 3, 2).reshape(-1, channels, side, side).contiguous()
        x = self.act(self.v.conv(x))  # type: ignore[union-attr]
        middle = x.shape[1]
        x = x.reshape(batch, rows, columns, middle, side, side).permute(0, 3, 4, 1, 5, 2)
        x = x.reshape(batch, middle, height, width).contiguous()
        return x[:, :, : size[0], : size[1]].contiguous()


class PlainEMO(nn.Module):
    """EMO of plain blocks, with the authors' names."""

    def __init__(self, name: str) -> None:
        super().__init__()
        a = ARCHITECTURES[name]
        stem = nn.Sequential(nn.Conv2d(3, STEM_WIDTH, 3, 2, 1), nn.BatchNorm2d(STEM_WIDTH, eps=1e-6))
        block = PlainBlock(STEM_WIDTH, STEM_WIDTH, 1, "bn_2d", "silu", 3, 1, 1, False, 7, se=True)
        self.stage0 = nn.ModuleList([Named(convs=nn.ModuleList([stem])), block])
        channels = STEM_WIDTH
        for stage in range(4):
            blocks = []
            for number in range(a.depths[stage]):
                first = number == 0
                blocks.append(
                    PlainBlock(
                        channels,
                        a.widths[stage],
                        a.expansions[stage] * (2 if first else 1),
                        a.norms[stage],
                        a.activations[stage],
                        a.kernels[stage],
                        2 if first else 1,
                        a.head_widths[stage],
                        a.attention[stage] and not first,
                        a.window_sizes[stage],
                    )
                )
                channels = a.widths[stage]
            self.add_module(f"stage{stage + 1}", nn.Sequential(*blocks))
        self.norm = PermutedLayerNorm(channels)
        self.head = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage0[1](self.stage0[0].convs[0](x))  # type: ignore[union-attr, index]
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = stage(x)  # type: ignore[operator]
        found: Tensor = self.head(self.norm(x).mean((2, 3)))
        return found


@pytest.fixture(scope="module")
def pair() -> tuple[EMO, PlainEMO]:
    """EMO-1M and its reference with the same weights, at inference."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, plain = build_model("emo_1m", drop_path=0.0).eval(), PlainEMO("emo_1m").eval()
    plain.load_state_dict(to_official(model))
    with torch.no_grad():
        for size in (SIZE, 160):
            images = torch.randn(
                1, 3, size, size
            )  # one: larger batches would change how memory is handed out
            torch.testing.assert_close(model(images), plain(images), rtol=1e-4, atol=1e-5)
    return model, plain


def test_inference_against_the_plain_composition(
    measure_ratio: Callable[..., Any], pair: tuple[EMO, PlainEMO]
) -> None:
    model, plain = pair
    folded, images = reparameterize(model), torch.randn(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        measured = measure_ratio(
            lambda: folded(images),
            lambda: plain(images),
            rounds=11,
            passes=8,
            reference="the plain composition with rearranged windows and softmax attention",
            unit="images at 224, EMO-1M, batch 1, norms folded",
        )
    assert measured.median > 1.05


def test_inference_with_norms_against_the_plain_composition(
    measure_ratio: Callable[..., Any], pair: tuple[EMO, PlainEMO]
) -> None:
    model, plain = pair
    images = torch.randn(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        measured = measure_ratio(
            lambda: model(images),
            lambda: plain(images),
            rounds=11,
            passes=8,
            reference="the plain composition with rearranged windows and softmax attention",
            unit="images at 224, EMO-1M, batch 1, norms as they are",
        )
    assert measured.median > 1


def test_training_against_the_plain_composition(
    measure_ratio: Callable[..., Any], pair: tuple[EMO, PlainEMO]
) -> None:
    images, targets = torch.randn(8, 3, SIZE, SIZE), torch.arange(8)

    def step(network: nn.Module) -> Callable[[], None]:
        def run() -> None:
            network.zero_grad()
            F.cross_entropy(network(images), targets).backward()

        return run

    model, plain = (copy.deepcopy(network).train() for network in pair)
    measured = measure_ratio(
        step(model),
        step(plain),
        reference="the plain composition with rearranged windows and softmax attention",
        unit="forward and backward passes of 8 images at 224, EMO-1M",
    )
    assert measured.median > 1.05


def test_folded_onnx_against_the_plain_graph(
    measure_ratio: Callable[..., Any], pair: tuple[EMO, PlainEMO], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    import onnxruntime

    model, plain = pair
    write_onnx(reparameterize(model), tmp_path / "folded.onnx")
    torch.onnx.export(
        plain, (torch.randn(1, 3, SIZE, SIZE),), tmp_path / "plain.onnx", input_names=["images"],
        output_names=["logits"], verbose=False,
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    images = torch.randn(1, 3, SIZE, SIZE).numpy()
    sessions = [
        onnxruntime.InferenceSession(tmp_path / name, options, providers=["CPUExecutionProvider"])
        for name in ("folded.onnx", "plain.onnx")
    ]
    ours, theirs = (lambda session=session: session.run(None, {"images": images})[0] for session in sessions)
    torch.testing.assert_close(torch.from_numpy(ours()), torch.from_numpy(theirs()), rtol=1e-3, atol=1e-4)
    assert onnx_runtime(tmp_path / "folded.onnx")(torch.from_numpy(images)).shape == (1, 1000)
    measured = measure_ratio(
        ours,
        theirs,
        rounds=11,
        passes=8,
        reference="ONNX Runtime with the graph of the plain composition",
        unit="images at 224 in ONNX Runtime, EMO-1M, batch 1, one thread",
    )
    # ONNX Runtime folds norms and fuses the plain graph's convolutions by itself: neither side is ahead.
    assert measured.median > 0.7


@pytest.mark.parametrize("peer", ["edgenext_xx_small", "mobilevit_xxs", "mobilenetv2_050"])
def test_inference_against_a_peer(
    measure_ratio: Callable[..., Any], pair: tuple[EMO, PlainEMO], peer: str
) -> None:
    """Below 1, the peer is faster: EMO-1M is not the fastest network of its size in eager PyTorch on one thread."""
    folded, other = reparameterize(pair[0]), timm.create_model(peer).eval()
    images = torch.randn(1, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    other = other.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        measure_ratio(
            lambda: folded(images),
            lambda: other(images),
            rounds=11,
            passes=8,
            reference=f"timm's {peer}",
            peer="timm",
            unit="images at 224, EMO-1M, batch 1, norms folded",
        )
