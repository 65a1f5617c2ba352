"""Folded batch norms, exports, int8, and times of layers: all compute what the network computes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from tenfold.emo import export
from tenfold.emo.complexity import count_flops_by_layer
from tenfold.emo.export import agreement, check_equal, export_int8, export_onnx, export_program, trace
from tenfold.emo.inference import reparameterize
from tenfold.emo.latency import inputs_of_layers, measure_latency
from tenfold.emo.model import ARCHITECTURES, EMO, Architecture, build_model
from tenfold.shared.logging import TenfoldError

TINY = Architecture(
    depths=(1, 2),
    widths=(8, 16),
    expansions=(2.0, 2.0),
    head_widths=(8, 8),
    stem=8,
    kernels=(3, 5),
    norms=("bn_2d", "ln_2d"),
    activations=("silu", "gelu"),
    attention=(False, True),
    window_sizes=(4, 4),
)
"""Maps of 1/8 with windows of 4: 64 pixels need no padding, 40 do."""


def randomise_batch_norms(model: nn.Module) -> None:
    """As after training: nothing about them is 0 or 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)


def batch_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def tiny(**changes: object) -> EMO:
    torch.manual_seed(0)
    model = EMO(replace(TINY, **changes), num_classes=5).eval()  # type: ignore[arg-type]
    randomise_batch_norms(model)
    return model


# -- folding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_folding_changes_nothing_but_rounding(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=10).double().eval()
    randomise_batch_norms(model)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    folded = reparameterize(model)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        reparameterize(model.float())(images.float()), model(images.float()), rtol=1e-4, atol=1e-5
    )
    assert batch_norms(folded) == 0


def test_folding_keeps_the_model_and_its_interface() -> None:
    model = tiny().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = reparameterize(model)
    assert model.training and not folded.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    images = torch.randn(1, 3, 64, 64)
    final, maps = folded.forward_intermediates(images)
    assert final.shape == (1, 16, 8, 8)
    assert [found.shape[1] for found in maps] == [8, 16]
    folded.reset_classifier(3)
    assert folded(images).shape == (1, 3)


@torch.no_grad()
def test_a_batch_norm_before_attention_stays_because_padding_comes_after_it() -> None:
    model = tiny(norms=("bn_2d", "bn_2d")).double()
    folded = reparameterize(model)
    images = torch.randn(2, 3, 40, 48, dtype=torch.float64)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-9, atol=1e-9)
    assert batch_norms(folded) == 1
    assert isinstance(folded.stages[1][1].norm, nn.BatchNorm2d)


@torch.no_grad()
def test_networks_that_contain_blocks_are_folded_too() -> None:
    torch.manual_seed(0)
    model = timm.create_model("emo_1m", features_only=True).eval()
    randomise_batch_norms(model)
    folded = reparameterize(model)
    images = torch.randn(1, 3, 64, 64)
    for found, expected in zip(folded(images), model(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert batch_norms(folded) == 0


# -- exports --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_trace_of_emo_1m_fits_other_sizes_and_batches() -> None:
    torch.manual_seed(0)
    model = build_model("emo_1m").eval()
    randomise_batch_norms(model)
    traced = trace(model)  # compared at 224 and 160
    images = torch.randn(2, 3, 33, 100)
    torch.testing.assert_close(traced(images), model(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_padding": True, "windows": "contiguous"},
        {"window_sizes": (0, 0)},
        {"attention_first": False, "grouped_expansion": True},
    ],
)
@torch.no_grad()
def test_traces_of_all_options_fit_other_sizes(changes: dict[str, object]) -> None:
    model = tiny(**changes)
    traced = trace(model, sizes=(64, 40))
    images = torch.randn(3, 3, 72, 33)
    torch.testing.assert_close(traced(images), model(images), rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_a_program_fits_other_sizes_and_batches(tmp_path: Path) -> None:
    model = tiny()
    path = tmp_path / "model.pt2"
    torch.export.save(export_program(model, sizes=(64, 40)), path)
    program = torch.export.load(path).module(check_guards=False)
    for shape in ((1, 3, 64, 64), (3, 3, 40, 40), (2, 3, 97, 64)):
        images = torch.randn(shape)
        torch.testing.assert_close(program(images), model(images), rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_an_onnx_graph_fits_other_sizes_and_batches(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, path = tiny(), tmp_path / "new" / "model.onnx"
    export_onnx(model, path, sizes=(64, 40))
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    for shape in ((1, 3, 64, 64), (3, 3, 40, 40), (2, 3, 97, 64)):
        images = torch.randn(shape)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-3, atol=1e-5)


def test_programs_are_recorded_where_every_map_has_windows_and_padding() -> None:
    model = build_model("emo_1m")
    *_, height, width = export.example_images(model).shape
    for stride in (16, 32):
        for side in (height, width):
            assert -(-side // stride) > 7 and -(-side // stride) % 7


def test_an_export_that_differs_is_not_handed_over() -> None:
    model = tiny()
    check_equal(model, model, (64,))
    with pytest.raises(TenfoldError, match="at 64 pixels the exported network is off by"):
        check_equal(model, lambda images: model(images) + 0.01, (64,))


def test_sizes_that_are_too_small_are_said(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match="images are at least 32 pixels a side, not 31"):
        trace(tiny(), sizes=(64, 31))
    with pytest.raises(TenfoldError, match="images are at least 33 pixels a side, not 32"):
        export_program(tiny(), sizes=(32,))
    with pytest.raises(TenfoldError, match="images are at least 32 pixels a side, not 16"):
        export_onnx(tiny(), tmp_path / "model.onnx", sizes=(16,))


def test_a_path_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TenfoldError, match=r"cannot write .*model\.onnx: .*; choose another path"):
        export_onnx(tiny(), tmp_path / "file" / "model.onnx")


def test_missing_packages_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(TenfoldError, match="needs onnx and onnxscript and onnxruntime: pip install"):
        export_onnx(tiny(), tmp_path / "model.onnx")
    with pytest.raises(TenfoldError, match="int8 needs torchao: pip install"):
        export_int8(tiny(), [torch.zeros(1, 3, 64, 64)])


# -- int8 -----------------------------------------------------------------------------------------------


def test_int8_agrees_with_float() -> None:
    pytest.importorskip("torchao")
    model = tiny()
    quantized = export_int8(model, torch.randn(4, 8, 3, 64, 64))
    found = agreement(model, quantized, [torch.randn(8, 3, 64, 64), torch.randn(4, 3, 40, 40)])
    assert found.images == 12
    assert 1e-4 < found.relative_error < 0.1  # below, nothing was rounded
    assert found.same_class == 1


def test_int8_needs_images() -> None:
    with pytest.raises(TenfoldError, match="int8 needs images to calibrate"):
        export_int8(tiny(), [])


def test_agreement_counts_classes_and_measures_logits() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 2.0], [4.0, 0.0]])
    same = agreement(lambda x: x, lambda x: x, [logits])
    assert (same.same_class, same.relative_error, same.images) == (1.0, 0.0, 3)
    found = agreement(lambda x: x, lambda x: x + torch.tensor([0.0, 3.0]), logits.split(2))
    assert found.same_class == pytest.approx(2 / 3)
    assert found.relative_error == pytest.approx((27 / 25) ** 0.5)
    with pytest.raises(TenfoldError, match="at least one batch"):
        agreement(lambda x: x, lambda x: x, [])


# -- latency --------------------------------------------------------------------------------------------


def test_every_layer_is_timed_and_the_whole() -> None:
    model = tiny().train()
    rows = measure_latency(model, size=64, batch=2, seconds=0.001)
    assert [row.name for row in rows] == [*count_flops_by_layer(model, 64), "total"]
    assert all(row.seconds > 0 and row.spread >= 0 and row.repeats > 0 for row in rows)
    assert model.training


def test_more_pixels_take_longer() -> None:
    few, many = (measure_latency(tiny(), size, batch, seconds=0.005) for size, batch in ((32, 1), (256, 4)))
    for less, more in zip(few[:-3], many[:-3], strict=True):  # head sees a vector in any case
        assert more.seconds > less.seconds
    assert many[-1].seconds > few[-1].seconds


@torch.no_grad()
def test_layers_are_timed_on_what_they_get_in_the_network() -> None:
    model = tiny()
    images = torch.randn(2, 3, 64, 64)
    layers = list(inputs_of_layers(model, images).values())
    assert torch.equal(layers[0][1], images)
    for (layer, x), (_, following) in pairwise(layers[:-1]):
        assert torch.equal(layer(x), following)
    head, pooled = layers[-1]
    assert torch.equal(head(pooled), model(images))


def test_impossible_timings_are_said() -> None:
    with pytest.raises(TenfoldError, match="images are at least 32 pixels a side"):
        measure_latency(tiny(), size=16)
    with pytest.raises(TenfoldError, match="batch, threads and seconds are positive"):
        measure_latency(tiny(), batch=0)
    if not torch.cuda.is_available():
        with pytest.raises(TenfoldError, match="there is no CUDA device here"):
            measure_latency(tiny(), device="cuda")
