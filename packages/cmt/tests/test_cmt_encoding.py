"""Coordinate encoding and query generator: sinusoid, map cells, rays of pixels, and queries in several cameras."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.cmt.coordinate_encoding import (
    MapEncoding,
    RayEncoding,
    inverse,
    inverse_sigmoid,
    map_cell_coordinates,
    sinusoidal_embedding,
)

pytestmark = pytest.mark.usefixtures("cpu")

RANGE = (-54.0, -30.0, -5.0, 54.0, 42.0, 3.0)
HIDDEN, DEPTHS = 8, 64
IMAGE = (60, 100)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# -- sinusoid and map ------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [4, 6, 256])
def test_the_sinusoid_has_the_released_frequencies(features: int) -> None:
    """Section 1.3: sin(2 pi x / (2 floor(i / 2) / F + 1)) at even i, cosines at odd ones, y before x."""
    points = uniform(3, 3)
    found = sinusoidal_embedding(points, features)
    assert found.shape == (3, 2 * features)
    for row, (x, y, _) in enumerate(points.tolist()):
        for half, value in enumerate((y, x)):
            for i in range(features):
                divisor = 2 * (i // 2) / features + 1
                wave = (math.sin, math.cos)[i % 2](2 * math.pi * value / divisor)
                assert float(found[row, half * features + i]) == pytest.approx(wave, abs=2e-6)


def test_cells_of_a_map_that_is_not_square_are_row_by_row() -> None:
    found = map_cell_coordinates(2, 3)
    expected = [[(column + 0.5) / 3, (row + 0.5) / 2] for row in range(2) for column in range(3)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_cell_of_the_map_is_encoded_as_the_query_at_its_middle() -> None:
    encoding = MapEncoding(HIDDEN).eval()
    middles = map_cell_coordinates(3, 5)
    torch.testing.assert_close(encoding.of_map(3, 5), encoding.of_points(middles))


def test_the_map_is_encoded_by_two_linear_layers_over_the_sinusoid() -> None:
    encoding, points = MapEncoding(HIDDEN), uniform(2, 7, 3)
    hidden = F.linear(sinusoidal_embedding(points, HIDDEN), encoding[0].weight, encoding[0].bias).relu()
    expected = F.linear(hidden, encoding[2].weight, encoding[2].bias)
    torch.testing.assert_close(encoding.of_points(points), expected)


def test_logits_are_the_inverse_of_the_sigmoid_and_end_at_its_clamps() -> None:
    values = torch.tensor([0.0, 1e-7, 0.25, 0.5, 0.9, 1.0])
    found = inverse_sigmoid(values)
    limit = math.log(1 / 1e-5)
    torch.testing.assert_close(found[[0, 1, 5]], torch.tensor([-limit, -limit, limit]), rtol=1e-4, atol=0)
    torch.testing.assert_close(found[2:5].sigmoid(), values[2:5])


# -- the map's encoding is kept outside of training ------------------------------------------------------


def kept(encoding: MapEncoding) -> Tensor:
    with torch.no_grad():
        return encoding.eval().of_map(4, 6)


def trained(encoding: MapEncoding) -> Tensor:
    return encoding.train().of_map(4, 6).detach()


def test_the_kept_encoding_is_computed_once() -> None:
    encoding, calls = MapEncoding(HIDDEN), []
    encoding.register_forward_hook(lambda *_: calls.append(1))
    first, second = kept(encoding), kept(encoding)
    assert len(calls) == 1
    assert torch.equal(first, second)


def test_the_kept_encoding_is_the_one_of_training() -> None:
    encoding = MapEncoding(HIDDEN)
    torch.testing.assert_close(kept(encoding), trained(encoding))


def step(encoding: MapEncoding) -> None:
    optimizer = torch.optim.AdamW(encoding.parameters(), lr=0.1, fused=True)
    encoding.train().of_map(4, 6).square().sum().backward()
    optimizer.step()


def step_without_the_map(encoding: MapEncoding) -> None:
    optimizer = torch.optim.SGD(encoding.parameters(), lr=0.1)
    encoding.of_points(uniform(5, 2)).square().sum().backward()
    optimizer.step()


def load(encoding: MapEncoding) -> None:
    torch.manual_seed(7)
    encoding.load_state_dict(MapEncoding(HIDDEN).state_dict())


def load_in_place_of(encoding: MapEncoding) -> None:
    torch.manual_seed(7)
    encoding.load_state_dict(MapEncoding(HIDDEN).state_dict(), assign=True)


def change_the_last_bias(encoding: MapEncoding) -> None:
    with torch.no_grad():
        encoding[2].bias.add_(1.0)  # type: ignore[operator]


@pytest.mark.parametrize(
    "change",
    [step, step_without_the_map, load, load_in_place_of, change_the_last_bias],
    ids=lambda f: f.__name__,
)
def test_the_kept_encoding_follows_the_weights(change: Callable[[MapEncoding], None]) -> None:
    torch.manual_seed(0)
    encoding = MapEncoding(HIDDEN)
    before = kept(encoding)
    change(encoding)
    found = kept(encoding)
    assert not torch.allclose(found, before)
    torch.testing.assert_close(found, trained(encoding))


def test_maps_of_other_sizes_are_not_confused() -> None:
    encoding = MapEncoding(HIDDEN).eval()
    with torch.no_grad():
        wide, tall = encoding.of_map(4, 6), encoding.of_map(6, 4)
    torch.testing.assert_close(
        tall.view(6, 4, -1), encoding.of_points(map_cell_coordinates(6, 4)).view(6, 4, -1)
    )
    assert not torch.allclose(wide, tall)


def test_an_encoding_first_asked_for_in_inference_mode_can_be_trained() -> None:
    encoding = MapEncoding(HIDDEN).eval()
    with torch.inference_mode():
        encoding.of_map(3, 7)
    encoding.train().of_map(3, 7).sum().backward()
    assert encoding[0].weight.grad is not None


def test_what_is_kept_is_not_in_files(tmp_path: Path) -> None:
    encoding = MapEncoding(HIDDEN)
    kept(encoding)
    torch.save(encoding.state_dict(), tmp_path / "weights.pt")
    assert set(torch.load(tmp_path / "weights.pt", weights_only=True)) == {
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    }


# -- rays ------------------------------------------------------------------------------------------------


def camera(yaw: float, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Tensor:
    """LiDAR to image, [4, 4]: looks along (cos yaw, sin yaw, 0), focal length 50, middle (50, 30)."""
    cosine, sine = math.cos(yaw), math.sin(yaw)
    rotation = torch.tensor([[sine, -cosine, 0], [0, 0, -1], [cosine, sine, 0]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3], pose[:3, 3] = rotation, -rotation @ torch.tensor(shift, dtype=torch.float64)
    intrinsic = torch.eye(4, dtype=torch.float64)
    intrinsic[:2, :3] = torch.tensor([[50.0, 0, 50], [0, 50, 30]])
    return intrinsic @ pose


CAMERAS = torch.stack((camera(0.3, (0.5, 0.1, 0.4)), camera(0.9, (0.1, 0.7, 0.2)), camera(3.5)))


def ray_encoding(depths: int = DEPTHS) -> RayEncoding:
    torch.manual_seed(0)
    return RayEncoding(HIDDEN, depths, RANGE)


def plain_encoding(
    encoding: RayEncoding, u: float, v: float, lidar2image: Tensor, depth: float = 1.0
) -> Tensor:
    """Section 1.3 for one pixel: 64 points of the ray, 192 numbers, two linear layers; in double precision."""
    matrix = torch.linalg.inv(lidar2image)
    numbers: list[float] = []
    for k in range(DEPTHS):
        d = 1 + k * (RANGE[3] - 1) / DEPTHS
        point = matrix @ torch.tensor([u * d, v * d, depth * d, 1.0], dtype=torch.float64)
        numbers += [(float(point[i]) - RANGE[i]) / (RANGE[i + 3] - RANGE[i]) for i in range(3)]
    layers = [
        one.double() for one in (encoding[0].weight, encoding[0].bias, encoding[2].weight, encoding[2].bias)
    ]
    hidden = F.linear(torch.tensor(numbers, dtype=torch.float64), *layers[:2]).relu()
    return F.linear(hidden, *layers[2:])


def test_image_tokens_are_encoded_by_the_points_of_their_pixels_rays() -> None:
    encoding = ray_encoding()
    found = encoding.of_image((3, 5), IMAGE, inverse(CAMERAS[None]))
    assert found.shape == (1, 3, 3, 5, HIDDEN)
    for number, matrix in enumerate(CAMERAS):
        for row in range(3):
            for column in range(5):
                expected = plain_encoding(encoding, column * 100 / 5, row * 60 / 3, matrix)
                got = found[0, number, row, column].double()
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_image_tokens_are_those_of_the_plain_encoding() -> None:
    encoding = ray_encoding()
    encoding.of_image((2, 3), IMAGE, inverse(CAMERAS[None])).square().sum().backward()
    found = {name: parameter.grad for name, parameter in encoding.named_parameters()}
    encoding.zero_grad()
    plain = [
        plain_encoding(encoding, column * 100 / 3, row * 60 / 2, matrix)
        for matrix in CAMERAS
        for row in range(2)
        for column in range(3)
    ]
    torch.stack(plain).square().sum().backward()
    for name, parameter in encoding.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-3, msg=name)


def projected(point: Tensor, matrix: Tensor) -> tuple[float, float, float]:
    x, y, z = (matrix[:3, :3] @ point.double() + matrix[:3, 3]).tolist()
    return x / z, y / z, z


def sees(point: Tensor, matrix: Tensor) -> bool:
    u, v, z = projected(point, matrix)
    return z > 0 and 0 <= u < IMAGE[1] and 0 <= v < IMAGE[0]


def encode(encoding: RayEncoding, points: Tensor, matrices: Tensor = CAMERAS) -> Tensor:
    return encoding.of_points(points[None], matrices[None].float(), inverse(matrices[None]), IMAGE)[0]


def test_queries_are_encoded_by_the_sum_over_the_cameras_that_see_them() -> None:
    encoding = ray_encoding()
    points = uniform(60, 3) * torch.tensor([40.0, 40.0, 6.0]) + torch.tensor([-20.0, -20.0, -3.0])
    found = encode(encoding, points)
    numbers = []
    for place, point in enumerate(points):
        expected = torch.zeros(HIDDEN, dtype=torch.float64)
        seeing = [matrix for matrix in CAMERAS if sees(point, matrix)]
        numbers.append(len(seeing))
        for matrix in seeing:
            u, v, _ = projected(point, matrix)
            expected += plain_encoding(encoding, u, v, matrix)
        torch.testing.assert_close(found[place].double(), expected, rtol=1e-3, atol=1e-3)
    assert {0, 1, 2} <= set(numbers)  # the points do test all three


def test_a_query_that_no_camera_sees_has_no_encoding_and_no_gradient() -> None:
    encoding = ray_encoding()
    points = torch.tensor([[0.0, -9.0, 0.0], [-0.2, -9.0, 1.0]], requires_grad=True)
    assert not any(sees(point, matrix) for point in points.detach() for matrix in CAMERAS)
    found = encode(encoding, points)
    found.square().sum().backward()
    assert not found.any()
    assert points.grad is not None
    assert not points.grad.any()


def test_a_query_behind_a_camera_is_not_seen_though_its_line_meets_the_image() -> None:
    encoding, matrix = ray_encoding(), camera(0.0)
    before, behind = torch.tensor([[10.0, 1.0, 0.5]]), torch.tensor([[-10.0, -1.0, -0.5]])
    u, v, _ = projected(behind[0], matrix)
    assert (0 <= u < IMAGE[1]) and (0 <= v < IMAGE[0])
    assert encode(encoding, before, matrix[None]).any()
    assert not encode(encoding, behind, matrix[None]).any()


@pytest.mark.parametrize(
    ("u", "v", "seen"),
    [
        (0.01, 30.0, True),
        (50.0, 0.01, True),
        (99.99, 59.99, True),
        (-0.01, 30.0, False),
        (50.0, -0.01, False),
        (100.01, 30.0, False),
        (50.0, 60.01, False),
    ],
)
def test_queries_are_seen_inside_of_the_image_alone(u: float, v: float, seen: bool) -> None:
    point = 8 * torch.tensor([[1.0, (50 - u) / 50, (30 - v) / 50]])
    assert bool(encode(ray_encoding(), point, camera(0.0)[None]).any()) == seen


def test_no_gradient_flows_through_the_division_by_depth() -> None:
    """With the depth z a constant c, the ray is (x, y, z) / c: moving along the view changes its third number alone."""
    encoding, matrix = ray_encoding(), camera(0.0)
    point = torch.tensor([[10.0, 1.0, 0.5]], requires_grad=True)
    factors = torch.linspace(-1, 1, HIDDEN)
    (encode(encoding, point, matrix[None]) * factors).sum().backward()

    free = point.detach().double()[0].requires_grad_()
    camera_point = matrix[:3, :3] @ free + matrix[:3, 3]
    ray = camera_point / (camera_point[2].detach() + 1e-6)
    inverted = torch.linalg.inv(matrix)
    depths = 1 + torch.arange(DEPTHS, dtype=torch.float64) * (RANGE[3] - 1) / DEPTHS
    low, high = (torch.tensor(values, dtype=torch.float64) for values in (RANGE[:3], RANGE[3:]))
    numbers = ((depths[:, None] * (inverted[:3, :3] @ ray) + inverted[:3, 3] - low) / (high - low)).flatten()
    layers = [
        one.double() for one in (encoding[0].weight, encoding[0].bias, encoding[2].weight, encoding[2].bias)
    ]
    expected = F.linear(F.linear(numbers, *layers[:2]).relu(), *layers[2:])
    (expected * factors.double()).sum().backward()
    assert point.grad is not None
    assert free.grad is not None
    torch.testing.assert_close(point.grad[0].double(), free.grad, rtol=1e-3, atol=1e-5)


def test_cameras_of_each_sample_are_its_own() -> None:
    encoding, points = ray_encoding(), torch.tensor([[[10.0, 4.0, 0.5]], [[10.0, 4.0, 0.5]]])
    matrices = torch.stack((CAMERAS, CAMERAS.flip(0) @ camera(0.0).inverse() @ camera(0.2)))
    together = encoding.of_points(points, matrices.float(), inverse(matrices), IMAGE)
    for sample in (0, 1):
        torch.testing.assert_close(together[sample], encode(encoding, points[sample], matrices[sample]))


def test_inverses_are_in_double_precision() -> None:
    found = inverse(CAMERAS.float())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found @ CAMERAS.float().double(), torch.eye(4).double().expand(3, -1, -1))


def test_rays_of_distant_origins_keep_their_precision() -> None:
    """Augmentation multiplies matrices; the plain encoding in double precision is still met."""
    motion = torch.eye(4, dtype=torch.float64)
    motion[:3, 3] = torch.tensor([300.0, -200.0, 5.0])
    matrix, encoding = camera(0.3) @ motion, ray_encoding()
    found = encoding.of_image((1, 2), IMAGE, inverse(matrix[None, None]))[0, 0, 0]
    for column in range(2):
        expected = plain_encoding(encoding, column * 50.0, 0.0, matrix)
        torch.testing.assert_close(found[column].double(), expected, rtol=1e-3, atol=1e-3)
