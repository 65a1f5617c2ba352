"""Sparse convolutions and the encoder made of them: both back ends against dense convolutions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tenfold.cmt.sparse_convolution
from tenfold.cmt.config import LidarConfig
from tenfold.cmt.sparse_convolution import SparseConvolution, SparseMap, resolve_backend
from tenfold.cmt.sparse_encoder import SparseEncoder, plan_encoder
from tenfold.cmt.sparse_rules import Geometry, SparsePlan, build_rules
from tenfold.shared.logging import TenfoldError

pytestmark = pytest.mark.usefixtures("cpu")

SHAPE = (7, 6, 9)
GEOMETRIES = {
    "submanifold": Geometry(),
    "flat submanifold": Geometry(kernel=(1, 3, 3), padding=(0, 1, 1)),
    "halving": Geometry(stride=(2, 2, 2), submanifold=False),
    "halving without rim": Geometry(stride=(2, 2, 2), padding=(0, 1, 1), submanifold=False),
    "column": Geometry(kernel=(3, 1, 1), stride=(2, 1, 1), padding=(0, 0, 0), submanifold=False),
}
BACKENDS = ["torch", "spconv"]
SMALL = LidarConfig(
    point_range=(-4.0, -6.0, -5.0, 4.0, 6.0, 3.0),
    voxel_size=(0.25, 0.25, 0.2),
    encoder_channels=((4, 6), (6, 6), (6, 8), (8, 8)),
    encoder_out=5,
    backend="torch",
)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "spconv":
        pytest.importorskip("spconv")
    return str(request.param)


def occupied(shape: tuple[int, int, int], batch: int, count: int, seed: int = 0) -> Tensor:
    """So many different places of each sample, in no order: [batch * count, 4]."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.tensor(list(product(*(range(size) for size in shape))))
    rows = [
        F.pad(places[torch.randperm(len(places), generator=generator)[:count]], (1, 0), value=b)
        for b in range(batch)
    ]
    joined = torch.cat(rows)
    return joined[torch.randperm(len(joined), generator=generator)].int()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scatter(features: Tensor, coordinates: Tensor, shape: tuple[int, int, int], batch: int) -> Tensor:
    """[B, C, Z, Y, X]."""
    b, z, y, x = coordinates.long().unbind(1)
    grid = features.new_zeros(batch, *shape, features.shape[1])
    return grid.index_put((b, z, y, x), features).permute(0, 4, 1, 2, 3)


def dense_convolution(grid: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    return F.conv3d(grid, weight.permute(0, 4, 1, 2, 3), stride=geometry.stride, padding=geometry.padding)


# -- one convolution -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_sparse_convolution_and_its_gradients_are_the_dense_ones(name: str, backend: str) -> None:
    geometry, coordinates = GEOMETRIES[name], occupied(SHAPE, 2, 60)
    layer = SparseConvolution(3, 4, geometry, "key")
    features = noise(len(coordinates), 3).requires_grad_()
    found = layer(SparseMap(features, coordinates, SHAPE, 2, backend))  # type: ignore[arg-type]

    dense_features, dense_weight = features.detach().requires_grad_(), layer.weight.detach().requires_grad_()
    expected = dense_convolution(scatter(dense_features, coordinates, SHAPE, 2), dense_weight, geometry)
    if geometry.submanifold:
        expected = expected * scatter(torch.ones(len(coordinates), 1), coordinates, SHAPE, 2)
    torch.testing.assert_close(found.dense(), expected, rtol=1e-4, atol=1e-5)

    factors = noise(*expected.shape, seed=1)
    (found.dense() * factors).sum().backward()
    (expected * factors).sum().backward()
    torch.testing.assert_close(features.grad, dense_features.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad, dense_weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, one in GEOMETRIES.items() if not one.submanifold])
def test_outputs_lie_wherever_the_kernel_holds_an_input(name: str, backend: str) -> None:
    geometry, coordinates = GEOMETRIES[name], occupied(SHAPE, 2, 12)
    layer = SparseConvolution(1, 1, geometry, "key")
    found = layer(SparseMap(torch.ones(len(coordinates), 1), coordinates, SHAPE, 2, backend))  # type: ignore[arg-type]
    ones = torch.ones(1, *geometry.kernel, 1)
    reached = dense_convolution(
        scatter(torch.ones(len(coordinates), 1), coordinates, SHAPE, 2), ones, geometry
    )
    assert found.spatial_shape == tuple(reached.shape[2:])
    expected = (reached[:, 0] > 0.5).nonzero().tolist()
    assert sorted(found.coordinates.tolist()) == expected


def test_a_submanifold_convolution_keeps_voxels_and_their_order(backend: str) -> None:
    coordinates = occupied(SHAPE, 2, 30)
    layer = SparseConvolution(2, 3, GEOMETRIES["submanifold"], "key")
    found = layer(SparseMap(noise(60, 2), coordinates, SHAPE, 2, backend))  # type: ignore[arg-type]
    assert torch.equal(found.coordinates.int(), coordinates)
    assert found.features.shape == (60, 3)


def test_many_voxels_are_multiplied_part_by_part_without_a_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    coordinates = occupied(SHAPE, 2, 150)
    layer, factors = SparseConvolution(8, 4, GEOMETRIES["submanifold"], "key"), noise(300, 4, seed=2)
    results = []
    for elements in (2**18, 27 * 8 * 7):  # whole, and seven rows at a time
        monkeypatch.setattr(tenfold.cmt.sparse_convolution, "_CACHED", elements)
        features = noise(300, 8, seed=1).requires_grad_()
        layer.weight.grad = None
        found = layer(SparseMap(features, coordinates, SHAPE, 2)).features
        (found * factors).sum().backward()
        results.append((found, features.grad, layer.weight.grad))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_gradients_pass_frozen_weights(backend: str) -> None:
    coordinates = occupied(SHAPE, 1, 20)
    layer = SparseConvolution(2, 2, GEOMETRIES["submanifold"], "key").requires_grad_(False)
    features = noise(20, 2).requires_grad_()
    layer(SparseMap(features, coordinates, SHAPE, 1, backend)).features.sum().backward()  # type: ignore[arg-type]
    assert features.grad is not None
    assert features.grad.any()
    assert layer.weight.grad is None


def test_weights_learn_from_inputs_without_gradients(backend: str) -> None:
    coordinates = occupied(SHAPE, 1, 20)
    layer = SparseConvolution(2, 2, GEOMETRIES["submanifold"], "key")
    layer(SparseMap(noise(20, 2), coordinates, SHAPE, 1, backend)).features.sum().backward()  # type: ignore[arg-type]
    assert layer.weight.grad is not None
    assert layer.weight.grad.any()


def test_convolutions_compute_in_the_type_of_their_weights_under_autocast(backend: str) -> None:
    coordinates = occupied(SHAPE, 1, 20)
    layer, features = SparseConvolution(2, 2, GEOMETRIES["submanifold"], "key"), noise(20, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(SparseMap(features, coordinates, SHAPE, 1, backend)).features  # type: ignore[arg-type]
    expected = layer(SparseMap(features, coordinates, SHAPE, 1, backend)).features  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_gradients_agree_with_finite_differences() -> None:
    coordinates = occupied((3, 3, 4), 2, 9)
    layer = SparseConvolution(2, 2, Geometry(stride=(2, 2, 2), submanifold=False), "key").double()

    def convolve(features: Tensor, weight: Tensor) -> Tensor:
        replaced = {"weight": weight}
        found: SparseMap = torch.func.functional_call(
            layer, replaced, (SparseMap(features, coordinates, (3, 3, 4), 2),)
        )
        return found.features

    inputs = (noise(18, 2).double().requires_grad_(), layer.weight.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(convolve, inputs)


# -- tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GEOMETRIES)
def test_tables_hold_the_row_under_each_place_of_the_kernel(name: str) -> None:
    geometry, coordinates = GEOMETRIES[name], occupied(SHAPE, 2, 40)
    rules = build_rules(coordinates, SHAPE, geometry)
    outputs = coordinates if rules.coordinates is None else rules.coordinates
    rows = {tuple(place): row for row, place in enumerate(coordinates.tolist(), start=1)}
    for output, (b, *place) in enumerate(outputs.tolist()):
        for number, offset in enumerate(product(*(range(size) for size in geometry.kernel))):
            under = [
                place[axis] * geometry.stride[axis] + offset[axis] - geometry.padding[axis]
                for axis in range(3)
            ]
            row = rows.get((b, *under), 0)
            assert int(rules.gather[output, number]) == row
            if row:
                assert int(rules.transposed[row - 1, number]) == output + 1


def test_the_joined_plan_of_samples_is_the_plan_of_their_batch() -> None:
    counts = (20, 0, 35)  # the second sample has no voxel
    convolutions = {name: GEOMETRIES[name] for name in ("submanifold", "halving", "column")}
    samples = [occupied(SHAPE, 1, count, seed) for seed, count in enumerate(counts)]
    joined = SparsePlan.join([SparsePlan.make(one, SHAPE, convolutions) for one in samples])
    numbered = [one + torch.tensor([place, 0, 0, 0]) for place, one in enumerate(samples)]
    expected = SparsePlan.make(torch.cat(numbered).int(), SHAPE, convolutions)
    assert joined.rules.keys() == expected.rules.keys()
    for key, rules in expected.rules.items():
        assert joined.rules[key].gather.tolist() == rules.gather.tolist()
        assert joined.rules[key].transposed.tolist() == rules.transposed.tolist()
        if rules.coordinates is not None:
            found = joined.rules[key].coordinates
            assert found is not None
            assert found.tolist() == rules.coordinates.tolist()


# -- encoder ---------------------------------------------------------------------------------------------


def voxels_of(lidar: LidarConfig, batch: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, y, z = lidar.grid
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for sample in range(batch):  # in one corner, so that voxels meet
        flat = torch.randperm(min(z, 30) * min(y, 10) * min(x, 12), generator=generator)[:count]
        places = torch.stack((flat // 120, flat // 12 % 10, flat % 12), dim=1)
        rows.append(F.pad(places, (1, 0), value=sample))
    coordinates = torch.cat(rows).int()
    return torch.randn(len(coordinates), 5, generator=generator), coordinates


@pytest.fixture
def make_encoder() -> Callable[..., SparseEncoder]:
    """Seeded, with norms that do something."""

    def make(lidar: LidarConfig = SMALL) -> SparseEncoder:
        torch.manual_seed(0)
        encoder = SparseEncoder(lidar)
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm1d):
                nn.init.normal_(module.weight, 1.0, 0.2)
                nn.init.normal_(module.bias, 0.0, 0.2)
                nn.init.normal_(module.running_mean, 0.0, 0.2)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
        return encoder

    return make


def dense_encoder(state: dict[str, Tensor], grid: Tensor, mask: Tensor) -> Tensor:
    """Section 1.1, item 3, on whole grids, in evaluation; ``mask`` [B, 1, Z, Y, X] is 1 at voxels."""

    def unit(
        values: Tensor, mask: Tensor, convolution: str, norm: str, relu: bool = True, **shape: object
    ) -> Tensor:
        weight = state[f"{convolution}.weight"].permute(0, 4, 1, 2, 3)
        values = F.conv3d(values, weight, **{"padding": 1, **shape})  # type: ignore[arg-type]
        mean, var, gain, bias = (
            state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        values = F.batch_norm(values, mean, var, gain, bias, eps=1e-3)
        return (values.relu() if relu else values) * mask

    def reached(mask: Tensor, kernel: tuple[int, int, int], **shape: object) -> Tensor:
        return (F.conv3d(mask, torch.ones(1, 1, *kernel), **{"padding": 1, **shape}) > 0.5).float()  # type: ignore[arg-type]

    values = unit(grid, mask, "conv_input.0", "conv_input.1")
    for stage in range(1, 5):
        name = f"encoder_layers.encoder_layer{stage}"
        for block in (0, 1):
            hidden = unit(values, mask, f"{name}.{block}.conv1", f"{name}.{block}.bn1")
            hidden = unit(hidden, mask, f"{name}.{block}.conv2", f"{name}.{block}.bn2", relu=False)
            values = (hidden + values).relu()
        if stage < 4:
            shape = {"stride": 2, "padding": (0, 1, 1) if stage == 3 else 1}
            mask = reached(mask, (3, 3, 3), **shape)
            values = unit(values, mask, f"{name}.2.0", f"{name}.2.1", **shape)
    shape = {"stride": (2, 1, 1), "padding": 0}
    mask = reached(mask, (3, 1, 1), **shape)
    values = unit(values, mask, "conv_out.0", "conv_out.1", **shape)
    batch, channels, depth, rows, columns = values.shape
    return values.reshape(batch, channels * depth, rows, columns)


def test_the_encoder_is_the_papers_on_dense_grids(
    make_encoder: Callable[..., SparseEncoder], backend: str
) -> None:
    features, coordinates = voxels_of(SMALL, 2, 150)
    encoder = make_encoder(replace(SMALL, backend=backend)).eval()
    with torch.no_grad():
        found = encoder(features, coordinates, 2)
        shape = (41, 48, 32)
        grid = scatter(features, coordinates, shape, 2)
        mask = scatter(torch.ones(len(features), 1), coordinates, shape, 2)
        expected = dense_encoder(encoder.state_dict(), grid, mask)
    assert found.shape == (2, 2 * 5, 6, 4)
    assert expected.any()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_both_back_ends_train_the_encoder_alike(make_encoder: Callable[..., SparseEncoder]) -> None:
    pytest.importorskip("spconv")
    features, coordinates = voxels_of(SMALL, 2, 200)
    encoders = [make_encoder(replace(SMALL, backend=name)).train() for name in BACKENDS]
    maps = [encoder(features, coordinates, 2) for encoder in encoders]
    for one in maps:
        (one * noise(*one.shape, seed=1)).sum().backward()
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-4, atol=1e-4)
    others = dict(encoders[1].named_parameters())
    for name, parameter in encoders[0].named_parameters():
        torch.testing.assert_close(parameter.grad, others[name].grad, rtol=2e-3, atol=2e-3, msg=name)
    for name, buffer in encoders[0].named_buffers():
        torch.testing.assert_close(buffer, encoders[1].get_buffer(name), rtol=1e-4, atol=1e-4, msg=name)


def test_a_plan_made_by_sample_gives_the_encoders_map_of_the_batch(
    make_encoder: Callable[..., SparseEncoder],
) -> None:
    encoder = make_encoder().eval()
    parts = [voxels_of(SMALL, 1, count, seed) for seed, count in enumerate((80, 1, 120))]
    plans = [plan_encoder(coordinates[:, 1:], SMALL) for _, coordinates in parts]
    plan = SparsePlan.join([one for one in plans if one is not None])
    features = torch.cat([one for one, _ in parts])
    coordinates = torch.cat(
        [F.pad(one[:, 1:], (1, 0), value=sample) for sample, (_, one) in enumerate(parts)]
    )
    with torch.no_grad():
        planned, found = encoder(features, coordinates, 3, plan), encoder(features, coordinates, 3)
        alone = torch.cat([encoder(*part, 1) for part in parts])
    torch.testing.assert_close(planned, found)
    torch.testing.assert_close(planned, alone, rtol=1e-4, atol=1e-5)


def test_the_order_of_voxels_does_not_matter(
    make_encoder: Callable[..., SparseEncoder], backend: str
) -> None:
    encoder = make_encoder(replace(SMALL, backend=backend)).eval()
    features, coordinates = voxels_of(SMALL, 2, 60)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found = encoder(features[order], coordinates[order], 2)
        torch.testing.assert_close(found, encoder(features, coordinates, 2), rtol=1e-4, atol=1e-5)


def test_spconv_needs_no_plan() -> None:
    pytest.importorskip("spconv")
    _, coordinates = voxels_of(SMALL, 1, 10)
    assert plan_encoder(coordinates[:, 1:], replace(SMALL, backend="spconv")) is None


def test_a_single_voxel_trains(make_encoder: Callable[..., SparseEncoder], backend: str) -> None:
    """Masked points are a single voxel; batch norm over one row has no variance."""
    encoder = make_encoder(replace(SMALL, backend=backend)).train()
    found = encoder(torch.zeros(1, 5), torch.tensor([[0, 25, 24, 16]], dtype=torch.int32), 1)
    found.sum().backward()
    assert found.isfinite().all()
    assert found.any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_a_batch_without_a_voxel_is_an_empty_map_that_trains(
    make_encoder: Callable[..., SparseEncoder], backend: str
) -> None:
    encoder = make_encoder(replace(SMALL, backend=backend)).train()
    found = encoder(torch.zeros(0, 5), torch.zeros(0, 4, dtype=torch.int32), 2)
    assert found.shape == (2, 10, 6, 4)
    assert not found.any()
    found.sum().backward()


def test_a_sample_without_a_voxel_beside_others_has_an_empty_map(
    make_encoder: Callable[..., SparseEncoder], backend: str
) -> None:
    encoder = make_encoder(replace(SMALL, backend=backend)).eval()
    features, coordinates = voxels_of(SMALL, 1, 50)
    with torch.no_grad():
        found = encoder(features, F.pad(coordinates[:, 1:], (1, 0), value=1), 3)
    assert [bool(one.any()) for one in found] == [False, True, False]


def test_the_encoder_computes_in_single_precision_under_autocast(
    make_encoder: Callable[..., SparseEncoder],
) -> None:
    encoder = make_encoder().eval()
    features, coordinates = voxels_of(SMALL, 1, 50)
    with torch.no_grad():
        expected = encoder(features, coordinates, 1)
        with torch.autocast("cpu", torch.bfloat16):
            found = encoder(features, coordinates, 1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


# -- back ends and sizes that cannot be ------------------------------------------------------------------


def test_auto_is_plain_torch_on_a_cpu() -> None:
    assert resolve_backend("auto", torch.device("cpu")) == "torch"


def test_spconv_by_name_is_refused_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenfold.cmt.sparse_convolution, "find_spec", lambda _: None)
    with pytest.raises(TenfoldError, match="pip install"):
        resolve_backend("spconv", torch.device("cpu"))


@pytest.fixture
def cpu_spconv(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("spconv.cppconstants")
    monkeypatch.setattr(sys.modules["spconv.cppconstants"], "CPU_ONLY_BUILD", True)


@pytest.mark.usefixtures("cpu_spconv")
def test_spconv_for_cpus_is_refused_on_a_gpu() -> None:
    with pytest.raises(TenfoldError, match="spconv-cu126"):
        resolve_backend("spconv", torch.device("cuda"))


@pytest.mark.usefixtures("cpu_spconv")
def test_auto_is_plain_torch_on_a_gpu_with_an_spconv_for_cpus() -> None:
    assert resolve_backend("auto", torch.device("cuda")) == "torch"


def test_a_grid_too_flat_for_the_encoder_is_refused() -> None:
    with pytest.raises(TenfoldError, match="too flat"):
        SparseEncoder(replace(SMALL, voxel_size=(0.25, 0.25, 1.0)))


@pytest.mark.parametrize("channels", [((4, 6), (6, 8)), ((4, 6), (5, 6), (6, 8), (8, 8))])
def test_widths_that_do_not_fit_are_refused(channels: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(TenfoldError, match="four stages"):
        SparseEncoder(replace(SMALL, encoder_channels=channels))
