"""Parity cases: one check for each kind, whatever sizes and options a case has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tenfold.cmt.assignment import assign, box_costs, class_costs, column_weights, matching_costs
from tenfold.cmt.bev_backbone import Second, SecondFpn
from tenfold.cmt.box_coding import box_codes, encode_boxes
from tenfold.cmt.config import CLASSES, CODE_SIZE, HeadConfig, ImageConfig, LidarConfig, LossConfig
from tenfold.cmt.coordinate_encoding import (
    MapEncoding,
    RayEncoding,
    inverse,
    map_cell_coordinates,
    sinusoidal_embedding,
)
from tenfold.cmt.decoding import Detections, decode_detections
from tenfold.cmt.denoising import BACKGROUND, EMPTY, num_groups, prepare_denoising
from tenfold.cmt.evaluation import detection_metrics
from tenfold.cmt.grid_mask import grid_mask
from tenfold.cmt.head import CmtHead, Predictions
from tenfold.cmt.image_backbone import CPFPN, make_image_backbone
from tenfold.cmt.image_transforms import ImageMove, augment_image
from tenfold.cmt.losses import by_released_names, detection_losses
from tenfold.cmt.sparse_convolution import SparseBackend
from tenfold.cmt.sparse_encoder import SparseEncoder, plan_encoder
from tenfold.cmt.submission import submission_boxes
from tenfold.cmt.voxelization import voxelize

Outputs = dict[str, Any]


def ndtr(values: Tensor) -> Tensor:
    return torch.special.ndtr(values.double()).float()


# -- inputs by the cases' recipes --------------------------------------------------------------------------


def draw(spec: dict[str, Any], fill: Any) -> Tensor:
    return fill({"fill_input_seed": spec["seed"], "shape": spec["shape"]})


def drawn(seed: int, shape: tuple[int, ...], fill: Any) -> Tensor:
    return fill({"fill_input_seed": seed, "shape": shape})


def boxes_of(seed: int, count: int, fill: Any) -> tuple[Tensor, Tensor]:
    """Boxes [n, 9] and labels [n] of the recipe that all cases share."""
    x = drawn(seed, (count, 9), fill)
    boxes = torch.cat(
        (
            (18 * x[:, :2]).clamp(-50, 50),
            0.4 * x[:, 2:3] - 1.8,
            (0.3 * x[:, 3:6]).exp() * torch.tensor([4.0, 1.9, 1.6]),
            1.5 * x[:, 6:7],
            2 * x[:, 7:9],
        ),
        dim=1,
    )
    labels = (10 * ndtr(drawn(seed + 1, (count,), fill))).floor().long().clamp(max=9)
    return boxes, labels


def padded(specs: list[dict[str, int]], fill: Any) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Boxes [B, G, 9] and labels [B, G] of the samples of a case."""
    counts = tuple(spec["n"] for spec in specs)
    boxes = torch.zeros(len(specs), max(counts), 9)
    labels = torch.full((len(specs), max(counts)), -1)
    for place, spec in enumerate(specs):
        boxes[place, : spec["n"]], labels[place, : spec["n"]] = boxes_of(spec["seed"], spec["n"], fill)
    return boxes, labels, counts


def predictions_of(
    seed: int, shape: tuple[int, int, int], targets: list[Tensor], fill: Any
) -> tuple[Tensor, Tensor]:
    """Codes [L, B, Q, 10] and logits of the recipe; every other query is near a box."""
    queries = shape[-1]
    x = drawn(seed, (*shape, CODE_SIZE), fill)
    codes = x.clone()
    codes[..., :2], codes[..., 2:4] = 18 * x[..., :2], 0.4 * x[..., 2:4] + 1
    codes[..., 4], codes[..., 5] = x[..., 4] - 1, 0.3 * x[..., 5] + 0.4
    for sample, target in enumerate(targets):
        near = min(len(target), queries // 2)
        codes[:, sample, : 2 * near : 2] = target[:near] + 0.2 * x[:, sample, : 2 * near : 2]
    return codes, drawn(seed + 1, (*shape, len(CLASSES)), fill) - 2


def outputs_of(codes: Tensor, logits: Tensor) -> dict[str, Tensor]:
    parts = codes.split((2, 1, 3, 2, 2), dim=-1)
    return dict(zip(("center", "height", "dim", "rot", "vel", "cls_logits"), (*parts, logits), strict=True))


def noise_of(seed: int, counts: tuple[int, ...], groups: int, fill: Any) -> Tensor:
    """Noise of the boxes of all samples, group by group, in the places where boxes are."""
    flat = ndtr(drawn(seed, (groups * sum(counts), 3), fill)).unflatten(0, (groups, -1))
    noise = torch.full((groups, len(counts), max(counts), 3), 0.5)
    for sample, part in enumerate(flat.split(counts, dim=1)):
        noise[:, sample, : counts[sample]] = part
    return noise


def loss_config(case: Any) -> LossConfig:
    given = case.fields.get("constructor", {})
    names = {
        "cls_weight": "class_weight",
        "bbox_weight": "box_weight",
        "focal_alpha": "focal_alpha",
        "focal_gamma": "focal_gamma",
        "match_cls_weight": "match_class_weight",
        "match_bbox_weight": "match_box_weight",
        "dn_weight": "denoising_weight",
        "split": "noise_split",
        "noise_scale": "noise_scale",
        "noise_trans": "noise_translation",
        "max_groups": "denoising_groups",
    }
    chosen = {ours: given[theirs] for theirs, ours in names.items() if theirs in given}
    return LossConfig(code_weights=tuple(case["code_weights"]), **chosen)


def head_config(case: Any) -> HeadConfig:
    given = case["constructor"]
    return HeadConfig(
        hidden=case["hidden_dim"],
        heads=case["num_heads"],
        feedforward=case["ffn_dim"],
        depth_bins=case["depth_num"],
        layers=given.get("num_layers", 6),
        queries=given["num_query"],
        task_kernel=given.get("head_kernel", 1),
    )


def make_head(case: Any) -> CmtHead:
    """In double precision: the stored values carry rounding errors of the size of the tolerance already."""
    shapes = case["state_dict"]
    channels = shapes["shared_conv.conv.weight"][0][1] if "shared_conv.conv.weight" in shapes else 0
    head = CmtHead(head_config(case), case["constructor"]["kind"], tuple(case["pc_range"]), channels)
    weights = case.state_dict()
    weights["reference_points.weight"] = weights["reference_points.weight"].sigmoid()
    head.load_state_dict(weights)
    return head.eval().double()


def head_inputs(case: Any, fill: Any) -> tuple[Any, ...]:
    inputs = case["inputs"]
    bev = draw(inputs["bev"], fill).double() if inputs.get("bev") else None
    images = draw(inputs["image_tokens"], fill).double() if inputs.get("image_tokens") else None
    matrices = torch.from_numpy(case.outputs["input_lidar2img"]) if images is not None else None
    return bev, images, matrices, tuple(inputs["pad_shape"])


def extent_of(case: Any) -> tuple[Tensor, Tensor]:
    low, high = torch.tensor(case["pc_range"]).chunk(2)
    return low, high - low


# -- the kinds ---------------------------------------------------------------------------------------------


def coordinate_encoding(case: Any, fill: Any) -> Outputs:
    inputs, hidden = case["inputs"], case["hidden_dim"]
    weights = case.state_dict()
    grid, downsample = case["constructor"]["grid_size"], case["constructor"]["downsample"]
    rows, columns = grid[1] // downsample, grid[0] // downsample
    points = ndtr(draw(inputs["points"], fill))
    matrices = torch.from_numpy(case.outputs["input_lidar2img"])
    on_map = MapEncoding(hidden)
    on_rays = RayEncoding(hidden, case["constructor"]["depth_num"], tuple(case["pc_range"]))
    for module, name in ((on_map, "bev_embedding."), (on_rays, "rv_embedding.")):
        module.load_state_dict(
            {key.removeprefix(name): value for key, value in weights.items() if key.startswith(name)}
        )
    size, image_size = tuple(inputs["feature_hw"]), tuple(inputs["pad_shape"])
    image2lidar = inverse(matrices)
    low, extent = extent_of(case)
    return {
        "sinusoid": sinusoidal_embedding(points, hidden),
        "bev_coords": map_cell_coordinates(rows, columns),
        "bev_pe": on_map.of_map(rows, columns),
        "image_pe": on_rays.of_image(size, image_size, image2lidar).flatten(0, 1),
        "bev_query": on_map.of_points(points),
        "image_query": on_rays.of_points(points * extent + low, matrices.float(), image2lidar, image_size),
    }


@torch.no_grad()
def head_forward(case: Any, fill: Any) -> Outputs:
    return make_head(case)(*head_inputs(case, fill)).outputs


def denoising(case: Any, fill: Any) -> Outputs:
    boxes, labels, counts = padded(case["inputs"]["gt"], fill)
    queries, config = case["constructor"]["num_query"], loss_config(case)
    groups = num_groups(counts, queries, config.denoising_groups)
    noise = noise_of(case["inputs"]["noise_seed"], counts, groups, fill)
    found = prepare_denoising(boxes, labels, counts, queries, *extent_of(case), config, noise=noise)
    assert found is not None
    points = case.state_dict()["reference_points.weight"].sigmoid()
    most = max(counts)
    # The case lists the noised queries without empty places, group by group and sample by sample.
    sample = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    within = torch.cat([torch.arange(count) for count in counts])
    slot = torch.cat([within + most * group for group in range(groups)])
    samples = sample.repeat(groups)
    relabelled = found.labels[samples, slot]
    assert (found.labels != EMPTY).sum() == len(slot) == found.total
    given = found.boxes[samples, slot].clone()
    given[:, 2] += given[:, 5] / 2
    return {
        "reference_points": torch.cat((found.points, points.expand(len(counts), -1, -1)), dim=1),
        "attn_mask": ~found.allowed(queries),
        "labels": torch.where(relabelled == BACKGROUND, len(CLASSES), relabelled),
        "labels_before_noise": labels[sample, within].repeat(groups),
        "boxes": given,
        "slot": slot,
        "batch_index": sample,
        "ground_truth_index": torch.arange(len(sample)).repeat(groups),
        "pad_size": found.size,
    }


def losses(case: Any, fill: Any) -> Outputs:
    inputs, config = case["inputs"], loss_config(case)
    boxes, labels, counts = padded(inputs["gt"], fill)
    shape = (inputs["L"], inputs["B"], inputs["Q"])
    targets = [encode_boxes(one[:count]) for one, count in zip(boxes, counts, strict=True)]
    codes, logits = predictions_of(inputs["predictions_seed"], shape, targets, fill)
    head = HeadConfig(queries=inputs["Q"], layers=inputs["L"])
    leaves = [codes, logits]
    prepared, noised = None, None
    if "noise_seed" in inputs:
        groups = num_groups(counts, inputs["Q"], config.denoising_groups)
        noise = noise_of(inputs["noise_seed"], counts, groups, fill)
        prepared = prepare_denoising(
            boxes, labels, counts, inputs["Q"], *extent_of(case), config, noise=noise
        )
        leaves += predictions_of(inputs["dn_predictions_seed"], (*shape[:2], inputs["dn_pad"]), [], fill)
    for leaf in leaves:
        leaf.requires_grad_()
    if prepared is not None:
        noised = outputs_of(leaves[2], leaves[3])
    predictions = Predictions(outputs_of(codes, logits), noised)
    found = detection_losses(predictions, boxes, labels, counts, config, head, prepared)
    found.sum().backward()
    results: Outputs = dict(by_released_names(found))
    for name, leaf in zip(("pred", "logits", "dn_pred", "dn_logits"), leaves, strict=False):
        results |= {f"grad_{name}": leaf.grad, f"grad_norm_{name}": leaf.grad.norm()}  # type: ignore[union-attr]
    return results


def assignment(case: Any, fill: Any) -> Outputs:
    inputs, config = case["inputs"], loss_config(case)
    boxes, labels, counts = padded(inputs["gt"], fill)
    targets = encode_boxes(boxes)
    shape = (inputs["L"], inputs["B"], inputs["Q"])
    encoded = [one[:count] for one, count in zip(targets, counts, strict=True)]
    codes, logits = predictions_of(inputs["predictions_seed"], shape, encoded, fill)
    codes = box_codes(outputs_of(codes, logits))
    weights = column_weights(config.code_weights, codes.device)
    found = assign(matching_costs(codes, logits, targets, labels, config), counts)
    assigned = torch.zeros(inputs["Q"], dtype=torch.int64)
    assigned[found.queries[-1, 0][found.matched[-1, 0]]] = 1 + found.matched[-1, 0].nonzero()[:, 0]
    return {
        "cls_cost": class_costs(logits[-1, 0], labels[0]) * config.match_class_weight,
        "reg_cost": box_costs(codes[-1, 0], targets[0], weights) * config.match_box_weight,
        "assigned": assigned,
        "encoded_gt": encoded[0],
    }


def training_step(case: Any, fill: Any) -> Outputs:
    head, config = make_head(case), loss_config(case)
    boxes, labels, counts = padded(case["inputs"]["gt"], fill)
    boxes = boxes.double()
    queries = case["constructor"]["num_query"]
    groups = num_groups(counts, queries, config.denoising_groups)
    noise = noise_of(case["inputs"]["noise_seed"], counts, groups, fill)
    prepared = prepare_denoising(boxes, labels, counts, queries, head.low, head.extent, config, noise=noise)
    predictions = head(*head_inputs(case, fill), denoising=prepared)
    found = detection_losses(predictions, boxes, labels, counts, config, head.config, prepared)
    found.sum().backward()
    results: Outputs = {**by_released_names(found), "total": found.sum()}
    for name, parameter in head.named_parameters():
        if f"grad_norm:{name}" in case.outputs:
            results[f"grad_norm:{name}"] = parameter.grad.norm()  # type: ignore[union-attr]
    return results


def decode(case: Any, fill: Any) -> Outputs:
    inputs = case["inputs"]
    targets = [encode_boxes(boxes_of(spec["seed"], spec["n"], fill)[0]) for spec in inputs["gt"]]
    shape = (inputs["L"], inputs["B"], inputs["Q"])
    codes, logits = predictions_of(inputs["predictions_seed"], shape, targets, fill)
    codes = box_codes(outputs_of(codes, logits))
    results: Outputs = {}
    for sample, found in enumerate(decode_detections(codes[-1], logits[-1], case["constructor"]["max_num"])):
        results |= {
            f"boxes_{sample}": found.boxes,
            f"scores_{sample}": found.scores,
            f"labels_{sample}": found.labels,
        }
    return results


def voxels(case: Any, fill: Any) -> Outputs:
    points = draw(case["inputs"]["points"], fill)
    points[:, :2] *= 8
    points[:, 2] = 0.5 * points[:, 2] - 1
    inputs = case["inputs"]
    found = voxelize(
        points,
        tuple(inputs.get("voxel_size", (0.5, 0.5, 0.4))),
        tuple(case.fields.get("pc_range", (-54, -54, -5, 54, 54, 3))),
        inputs.get("max_points", 10),
        inputs.get("max_voxels", 120_000),
    )
    order = np.lexsort(found.coordinates.numpy().T[::-1])
    return {
        "coordinates": found.coordinates[order],
        "num_points": found.num_points[order],
        "mean": found.features[order],
    }


def lidar_parts(case: Any, backend: SparseBackend) -> tuple[SparseEncoder, Second, SecondFpn, LidarConfig]:
    """Networks of the widths that the case's weights have."""
    depth, rows, columns = case["constructor"]["sparse_shape"]
    middle, below, neck = (
        case.weights_of(case[f"state_dict_{part}"]) for part in ("middle", "backbone", "neck")
    )
    stages = sum(key.endswith(".0.conv1.weight") for key in middle)
    widths = [
        middle[f"encoder_layers.encoder_layer{stage}.0.conv1.weight"].shape[0]
        for stage in range(1, stages + 1)
    ]
    following = [
        middle[f"encoder_layers.encoder_layer{stage}.2.0.weight"].shape[0] for stage in range(1, stages)
    ] + widths[-1:]
    lidar = LidarConfig(
        cells=(columns, rows, depth - 1),
        encoder_channels=tuple(zip(widths, following, strict=True)),
        encoder_out=middle["conv_out.0.weight"].shape[0],
        backend=backend,
    )
    block, other = below["blocks.0.0.weight"].shape, below["blocks.1.0.weight"].shape
    layers = sum(key.startswith("blocks.0.") and value.dim() == 4 for key, value in below.items()) - 1
    parts = (
        SparseEncoder(lidar),
        Second(block[1], (block[0], other[0]), layers),
        SecondFpn((block[0], other[0]), neck["deblocks.0.0.weight"].shape[0]),
    )
    for part, weights in zip(parts, (middle, below, neck), strict=True):
        part.load_state_dict(weights)
        part.eval()
    return (*parts, lidar)


@torch.no_grad()
def lidar_branch(case: Any, fill: Any) -> Outputs:
    inputs = case["inputs"]
    _, rows, columns = case["constructor"]["sparse_shape"]
    depth = case["constructor"]["sparse_shape"][0] - 1
    spec = inputs["voxels"]
    uniform = ndtr(drawn(spec["seed"], (spec["n"], 3), fill))
    coordinates = torch.unique((uniform * torch.tensor([depth, rows, columns])).floor().int(), dim=0)
    assert len(coordinates) == spec["unique"]
    features = draw(inputs["features"], fill)
    numbered = torch.nn.functional.pad(coordinates, (1, 0))
    results: Outputs = {}
    for backend in ("torch", "spconv"):
        if backend == "spconv":
            pytest.importorskip("spconv", exc_type=ImportError)
        encoder, second, neck, lidar = lidar_parts(case, backend)  # type: ignore[arg-type]
        bev = encoder(features, numbered, 1, plan_encoder(coordinates, lidar))
        levels = second(bev)
        found = {"sparse_bev": bev, "second_0": levels[0], "second_1": levels[1], "bev": neck(levels)}
        for name, value in found.items():
            if backend == "spconv":
                torch.testing.assert_close(value, results[name], rtol=1e-4, atol=1e-4)
            results[name] = value
    if "parameters" in case.fields:
        for name, part in zip(("middle", "backbone", "neck"), (encoder, second, neck), strict=True):
            assert count(part) == case["parameters"][name]
    return results


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def image_branch(case: Any, fill: Any) -> Outputs:
    weights = case.weights_of(case["state_dict_backbone"])
    name = "resnet-50" if "layer1.0.conv1.weight" in weights else "vovnet-99"
    if name == "vovnet-99" and "stage4.OSA4_3.concat.OSA4_3_concat/conv.weight" not in weights:
        name = "vovnet-39"
    neck_weights = case.weights_of(case["state_dict_neck"])
    backbone = make_image_backbone(ImageConfig(backbone=name)).eval()  # type: ignore[arg-type]
    neck = CPFPN(backbone.out_channels, neck_weights["fpn_convs.0.conv.weight"].shape[0]).eval()
    backbone.load_state_dict(weights)
    neck.load_state_dict(neck_weights)
    stages = backbone(draw(case["inputs"]["image"], fill))
    levels = neck(*stages)
    assert count(backbone) == case["parameters"]["backbone"]
    assert count(neck) == case["parameters"]["neck"]
    return {"stage4": stages[0], "stage5": stages[1], "fpn_0": levels[0], "fpn_1": levels[1]}


def image_augmentation(case: Any, fill: Any) -> Outputs:
    inputs = case["inputs"]
    height, width = inputs["image_hw"]
    uniform = ndtr(drawn(inputs["seed"], (height // 10, width // 10, 3), fill))
    image = np.kron((255 * uniform).round().numpy(), np.ones((10, 10, 1))).astype(np.uint8)
    move = ImageMove(inputs["resize"], tuple(inputs["crop"]), inputs["flip"])
    moved, intrinsic = augment_image(image, case.outputs["intrinsic_in"], move)
    return {
        "intrinsic": intrinsic,
        "lidar2img": intrinsic @ case.outputs["lidar2cam"],
        "image": moved.astype(np.float32),
    }


def mask(case: Any, fill: Any) -> Outputs:
    inputs = case["inputs"]
    height, width = inputs["hw"]
    return {"mask": grid_mask(height, width, inputs["d"], inputs["st_h"], inputs["st_w"])}


def submission(case: Any, fill: Any) -> Outputs:
    inputs = case["inputs"]
    spec = inputs["gt"]
    boxes, labels = boxes_of(spec["seed"], spec["n"], fill)
    boxes[:, 7:] *= 0.2
    scores = ndtr(drawn(spec["seed"] + 2, (spec["n"],), fill))
    found = submission_boxes(
        Detections(boxes, scores, labels),
        np.array(inputs["lidar2ego"]),
        np.array(inputs["ego2global"]),
        "token",
    )
    assert [box["detection_name"] for box in found] == case["names"]
    assert [box["attribute_name"] for box in found] == case["attributes"]
    names = {"translation": "translation", "size": "size", "rotation": "rotation", "velocity": "velocity"}
    results: Outputs = {name: [box[key] for box in found] for name, key in names.items()}
    return {**results, "score": [box["detection_score"] for box in found]}


def attribute_of(name: str, moving: bool) -> str:
    if name in ("barrier", "traffic_cone"):
        return ""
    if name == "pedestrian":
        return "pedestrian.moving"
    if name in ("bicycle", "motorcycle"):
        return "cycle.with_rider" if moving else "cycle.without_rider"
    return "vehicle.moving" if moving else "vehicle.parked"


def metrics(case: Any, fill: Any) -> Outputs:
    stored, names = case.outputs, case["class_names"]
    within: list[int] = []
    for place, sample in enumerate(stored["gt_sample"]):
        within.append(0 if place == 0 or stored["gt_sample"][place - 1] != sample else within[-1] + 1)
    sources = [number for number in within if number % 5 != 4]
    truth: dict[str, list[dict[str, Any]]] = {str(sample): [] for sample in stored["gt_sample"]}
    guessed: dict[str, list[dict[str, Any]]] = {sample: [] for sample in truth}
    for place, k in enumerate(within):
        name = names[stored["gt_label"][place]]
        sample = str(stored["gt_sample"][place])
        box = box_of(sample, stored["gt"][place], name, attribute_of(name, k % 2 == 1), -1.0)
        truth[sample].append(box)
    for place, k in enumerate(sources):
        name = names[stored["pred_label"][place]]
        sample = str(stored["pred_sample"][place])
        attribute = attribute_of(name, k % 3 == 0)
        guessed[sample].append(
            box_of(sample, stored["pred"][place], name, attribute, float(stored["pred_score"][place]))
        )
    found = detection_metrics(truth, guessed)
    return {
        "mean_ap": found.mean_ap,
        "nd_score": found.detection_score,
        "tp_errors": list(found.errors.values()),
        "label_ap": [list(found.threshold_ap[name].values()) for name in names],
        "label_tp": [list(found.class_errors[name].values()) for name in names],
    }


def box_of(sample: str, values: Any, name: str, attribute: str, score: float) -> dict[str, Any]:
    half = values[6] / 2
    return {
        "sample_token": sample,
        "translation": values[:3].tolist(),
        "size": values[3:6].tolist(),
        "rotation": [float(np.cos(half)), 0.0, 0.0, float(np.sin(half))],
        "velocity": values[7:9].tolist(),
        "detection_name": name,
        "detection_score": score,
        "attribute_name": attribute,
    }


KINDS: dict[str, Callable[[Any, Any], Outputs]] = {
    "assignment": assignment,
    "coordinate_encoding": coordinate_encoding,
    "decode": decode,
    "denoising": denoising,
    "detection_metrics": metrics,
    "grid_mask": mask,
    "head_forward": head_forward,
    "image_augmentation": image_augmentation,
    "image_branch": image_branch,
    "lidar_branch": lidar_branch,
    "losses": losses,
    "submission_boxes": submission,
    "training_step": training_step,
    "voxelize": voxels,
}


def check_slice(case: Any, name: str, actual: Any, relative: bool) -> None:
    """Compare what is stored of a large output: every so many values, and statistics of all."""
    values = torch.as_tensor(actual).detach().double().flatten()
    stored = torch.from_numpy(case.outputs[f"{name}/slice"]).double()
    statistics = case.outputs[f"{name}/stats"]
    assert values.numel() == statistics[4]
    found = values[:: int(statistics[5])]
    if relative:
        assert (found - stored).norm() <= 1e-3 * stored.norm(), name
    elif case["kind"] == "image_augmentation":
        assert (found - stored).abs().mean() <= 1.5, name
    else:
        torch.testing.assert_close(found, stored, rtol=1e-4, atol=1e-4)
    measured = [values.mean(), values.std(correction=0), values.norm(), values.abs().max()]
    tolerance = 1.5 if case["kind"] == "image_augmentation" else 1e-3 * float(values.std(correction=0)) + 1e-6
    for one, expected in zip(measured[:2], statistics[:2], strict=True):
        assert abs(float(one) - expected) <= tolerance, name
    if case["kind"] != "image_augmentation":
        assert float(measured[2]) == pytest.approx(statistics[2], rel=1e-3)
        assert float(measured[3]) == pytest.approx(statistics[3], rel=1e-3)


def test_parity(parity_case: Any, fill: Any) -> None:
    kind = parity_case["kind"]
    assert kind in KINDS, f"unknown kind of parity case: {kind}"
    torch.set_num_threads(1)
    results = KINDS[kind](parity_case, fill)
    relative = "slice norm" in parity_case.fields.get("tolerance", "")
    expected = {name.split("/")[0] for name in parity_case.outputs} - {
        "input_lidar2img", "intrinsic_in", "lidar2cam", "gt", "gt_label", "gt_sample",
        "pred", "pred_label", "pred_score", "pred_sample",
    }  # fmt: skip
    assert expected <= set(results), f"{sorted(expected - set(results))} is not computed"
    for name in sorted(expected):
        if f"{name}/slice" in parity_case.outputs:
            check_slice(parity_case, name, results[name], relative)
        elif relative:
            stored = torch.from_numpy(parity_case.outputs[name])
            assert (torch.as_tensor(results[name]) - stored).norm() <= 1e-3 * stored.norm(), name
        else:
            compare(parity_case, name, results[name])


def compare(case: Any, name: str, actual: Any) -> None:
    stored = torch.as_tensor(case.outputs[name])
    found = (
        torch.as_tensor(np.asarray(actual) if isinstance(actual, list) else actual).detach().to(stored.dtype)
    )
    found = found.reshape(stored.shape)
    rtol = 1e-3 if "reference_points" in name and name.startswith("grad") else 1e-4
    atol = 1e-5 if case["kind"] == "image_augmentation" else 1e-4
    torch.testing.assert_close(
        found,
        stored,
        rtol=rtol,
        atol=atol,
        equal_nan=True,
        msg=lambda text: f"{case.path.stem}: {name}: {text}",
    )
