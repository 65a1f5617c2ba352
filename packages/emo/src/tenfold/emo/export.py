"""Networks for other runtimes: ONNX, torch.export, TorchScript, and int8.

Batch norms are folded first. Batch and image size stay free, and what comes out is compared with the network at
several sizes before it is handed over: an export that merely runs may still have lost the windows' padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tenfold.emo.inference import reparameterize
from tenfold.emo.model import EMO, SMALLEST_INPUT
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import replaced

SIZES = (224, 160)
"""Heights of images, in pixels, at which exports are compared; widths are 32 more.

Windows of 7 fit the heights of the first and nothing else, so that maps with and without padding are compared.
"""
_FREE = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
EXTRA = "pip install 'tenfold-emo[export]'"


def trace(model: EMO, sizes: Sequence[int] = SIZES) -> torch.jit.ScriptModule:
    """A TorchScript trace for any batch and any size of at least 32 pixels a side.

    Args:
        model: stays as it is.
        sizes: of images at which the trace is compared with it.

    Raises:
        TenfoldError: a size is too small, or the trace differs.
    """
    check_sizes(sizes)
    folded = reparameterize(model)
    with torch.no_grad():
        traced: torch.jit.ScriptModule = torch.jit.trace(folded, example_images(folded), check_trace=False)
    check_equal(folded, traced, sizes)
    return traced


def export_program(model: EMO, sizes: Sequence[int] = SIZES) -> ExportedProgram:
    """A program of torch.export for any batch and any size of more than 32 pixels a side.

    Run it as ``program.module(check_guards=False)``. Its guards describe how the maps of the recorded images lay in
    memory, and would refuse other sizes; none of its operations depends on that.

    Args:
        model: stays as it is.
        sizes: of images at which the program is compared with it.

    Raises:
        TenfoldError: a size is too small, or the program differs.
    """
    check_sizes(sizes, smallest=SMALLEST_INPUT + 1)
    folded = reparameterize(model)
    program = torch.export.export(folded, (example_images(folded),), dynamic_shapes={"x": _FREE})
    check_equal(folded, program.module(check_guards=False), sizes)
    return program


def export_onnx(model: EMO, path: Path, sizes: Sequence[int] = SIZES) -> None:
    """Write a network in float32 as ONNX, for any batch and any size of at least 32 pixels a side.

    The graph takes ``images`` [batch, in_chans, height, width], normalised, and gives ``logits``.

    Args:
        model: stays as it is.
        path: of the file; folders are made.
        sizes: of images at which ONNX Runtime is compared with it.

    Raises:
        TenfoldError: a package is missing, the path cannot be written, a size is too small, or the graph differs.
    """
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise TenfoldError(f"export to ONNX needs {' and '.join(missing)}: {EXTRA}")
    check_sizes(sizes)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folded = reparameterize(model).float().cpu()
        with replaced(path) as temporary:
            write_onnx(folded, temporary)
            check_equal(folded, onnx_runtime(temporary), sizes)
    except OSError as error:
        raise TenfoldError(f"cannot write {path}: {error.strerror or error}; choose another path") from error


def write_onnx(folded: EMO, path: Path) -> None:
    """The graph of a network whose batch norms are folded, unchecked."""
    program = torch.onnx.export(
        export_program(folded, sizes=()), input_names=["images"], output_names=["logits"], verbose=False
    )
    assert program is not None
    shape = program.model.graph.inputs[0].shape
    assert shape is not None
    program.rename_axes({str(shape[0]): "batch", str(shape[2]): "height", str(shape[3]): "width"})
    program.save(path)


def onnx_runtime(path: Path) -> Callable[[Tensor], Tensor]:
    """A graph as a function of images."""
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def export_int8(model: EMO, batches: Iterable[Tensor]) -> nn.Module:
    """Weights and activations of convolutions and linear layers in int8, by static quantization of the PT2E flow.

    Operations are those of torchao's quantizer for x86: ``torch.compile`` turns what comes out into int8 kernels;
    without it the network computes in float32 what they would. Measure what is lost with ``agreement``.

    Args:
        model: stays as it is.
        batches: of images [B, in_chans, H, W], normalised, of more than 32 pixels a side, to calibrate the ranges of
            activations on; some hundred images will do.

    Raises:
        TenfoldError: there are no images, or torchao is missing.
    """
    batches = list(batches)
    if not batches:
        raise TenfoldError("int8 needs images to calibrate the ranges of activations on: give some hundred")
    if find_spec("torchao") is None:
        raise TenfoldError(f"int8 needs torchao: {EXTRA}")
    from torchao.quantization.pt2e.quantize_pt2e import (
        convert_pt2e,
        prepare_pt2e,
    )
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    folded = reparameterize(model)
    # Strict: the quantizer knows operations by the calls in the source that they come from.
    program = torch.export.export(folded, (example_images(folded),), dynamic_shapes={"x": _FREE}, strict=True)
    observed = prepare_pt2e(program.module(check_guards=False), quantizer)
    with torch.no_grad():
        for images in batches:
            observed(images)
    quantized: nn.Module = convert_pt2e(observed)
    return quantized


@dataclass(frozen=True)
class Agreement:
    """How far one network's logits are another's."""

    same_class: float
    """Share of images for which both name the same class."""
    relative_error: float
    """Norm of the difference of all logits over the norm of the first network's."""
    images: int


@torch.no_grad()
def agreement(
    reference: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], batches: Iterable[Tensor]
) -> Agreement:
    """Compare two networks on images, best on others than an int8 network was calibrated on.

    Raises:
        TenfoldError: there are no images.
    """
    pairs = [(reference(images), other(images)) for images in batches]
    if not pairs:
        raise TenfoldError("give at least one batch of images to compare networks on")
    expected, found = (torch.cat(logits) for logits in zip(*pairs, strict=True))
    return Agreement(
        same_class=(expected.argmax(dim=1) == found.argmax(dim=1)).double().mean().item(),
        relative_error=((found - expected).norm() / expected.norm()).item(),
        images=len(expected),
    )


def example_images(model: EMO) -> Tensor:
    """Images on which a program is recorded.

    They are so large that every map with attention has several windows and padding: what is recorded on a map of one
    window is a program for one window.
    """
    window, stride = max(1, *model.architecture.window_sizes), model.feature_info[-1]["reduction"]
    side = stride * window + stride // 2
    like = model.stem.conv.weight
    return like.new_zeros(2, like.shape[1], side, side + stride)


def check_sizes(sizes: Iterable[int], smallest: int = SMALLEST_INPUT) -> None:
    """Refuse sides that networks do not take.

    Raises:
        TenfoldError: one is too small.
    """
    if small := [size for size in sizes if size < smallest]:
        raise TenfoldError(f"images are at least {smallest} pixels a side, not {small[0]}")


@torch.no_grad()
def check_equal(model: EMO, exported: Callable[[Tensor], Tensor], sizes: Iterable[int]) -> None:
    """Compare an export with its network, on images of all sizes and of other heights than widths.

    Raises:
        TenfoldError: logits differ by more than rounding.
    """
    like, generator = model.stem.conv.weight, torch.Generator().manual_seed(0)
    for size in sizes:
        images = torch.randn(1, like.shape[1], size, size + 32, generator=generator).to(like)
        expected = model(images)
        error = float((exported(images) - expected).abs().max() / expected.abs().max())
        if not error < torch.finfo(like.dtype).eps ** 0.5:
            raise TenfoldError(
                f"at {size} pixels the exported network is off by {error:.1e} of the largest logit: do not use it"
            )
