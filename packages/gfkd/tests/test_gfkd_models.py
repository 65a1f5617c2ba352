"""The networks: their sizes, their names, and the authors' weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tenfold.gfkd.checkpoints import (
    load_model,
    load_official_checkpoint,
    load_official_state_dict,
    official_key,
)
from tenfold.gfkd.models import MODEL_NAMES, GraphClassifier, build_model
from tenfold.shared.logging import TenfoldError

SHAPES = ((7, 2), (19, 2), (3, 2), (65, 2), (367, 3), (566, 2))
PARAMETERS = {
    "gcn5_64": (13634, 14402, 13378, 17346, 36739, 49410),
    "gcn5_32": (3746, 4130, 3618, 5602, 15299, 21634),
    "gcn3_64": (5058, 5826, 4802, 8770, 28163, 40834),
    "gcn3_32": (1506, 1890, 1378, 3362, 13059, 19394),
    "gcn2_64": (770, 1538, 514, 4482, 23875, 36546),
    "gcn2_32": (386, 770, 258, 2242, 11939, 18274),
    "gin5_64": (30786, 31554, 30530, 34498, 53891, 66562),
    "gin5_32": (8226, 8610, 8098, 10082, 19779, 26114),
    "gin3_64": (13634, 14402, 13378, 17346, 36739, 49410),
    "gin3_32": (3746, 4130, 3618, 5602, 15299, 21634),
}


def official_state(model: GraphClassifier) -> dict[str, torch.Tensor]:
    return {
        official_key(model, key): torch.rand_like(value.float()) for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_papers(name: str) -> None:
    counted = tuple(sum(p.numel() for p in build_model(name, *shape).parameters()) for shape in SHAPES)
    assert counted == PARAMETERS[name]


def test_the_smallest_gins_have_the_official_sizes() -> None:
    assert sum(p.numel() for p in build_model("gin2_64", 7, 2).parameters()) == 5058
    assert sum(p.numel() for p in build_model("gin2_32", 7, 2).parameters()) == 1506


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_official_weights_arrive_under_our_names(name: str) -> None:
    model = build_model(name, 7, 2)
    state = official_state(model)
    load_official_state_dict(model, state)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value.float(), state[official_key(model, key)].to(value.dtype).float())


def test_official_keys_are_those_of_the_released_classes() -> None:
    gcn, gin = (
        set(official_state(build_model("gcn3_32", 7, 2))),
        set(official_state(build_model("gin2_32", 7, 2))),
    )
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    head = {"linears_prediction.weight", "linears_prediction.bias"}
    assert gcn == head | {f"gcnlayers.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")} | {
        f"norms.{i}.{part}" for i in (0, 1) for part in norm
    }
    layer = "ginlayers.0.apply_func"
    assert gin == head | {"ginlayers.0.eps"} | {
        f"{layer}.mlp.linears.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")
    } | {f"{layer}.mlp.norm_list.0.{part}" for part in norm} | {f"{layer}.norm.{part}" for part in norm}


@pytest.mark.parametrize("name", ["gcn3_32", "gin3_32"])
def test_loading_names_every_key_that_does_not_fit(name: str) -> None:
    model = build_model(name, 7, 2)
    lacking = official_state(model)
    missing = sorted(lacking)[3]
    del lacking[missing]
    with pytest.raises(TenfoldError, match=f"missing {missing}"):
        load_official_state_dict(model, lacking)
    with pytest.raises(TenfoldError, match="unexpected surplus"):
        load_official_state_dict(model, {**official_state(model), "surplus": torch.zeros(1)})
    wrong = {**official_state(model), "linears_prediction.weight": torch.zeros(3, 32)}
    with pytest.raises(
        TenfoldError, match=r"linears_prediction.weight has shape \(3, 32\) instead of \(2, 32\)"
    ):
        load_official_state_dict(model, wrong)


def test_a_gcn_does_not_load_into_a_gin() -> None:
    with pytest.raises(TenfoldError, match=r"missing ginlayers.0.eps.*unexpected gcnlayers.0.weight"):
        load_official_state_dict(build_model("gin3_32", 7, 2), official_state(build_model("gcn3_32", 7, 2)))


def test_the_released_file_fits_only_its_own_architecture(data_root: Path) -> None:
    path = data_root / "gfkd" / "released" / "gcn5_64_mutag_ckpt_best_29.pth"
    saved = load_official_checkpoint(build_model("gcn5_64", 7, 2), path)
    assert saved == {"epoch": 296, "accuracy": pytest.approx(89.4737, abs=1e-3)}
    model, known_degrees = load_model(path, "gcn5_64")
    assert (model.input_dim, model.output_dim, known_degrees) == (7, 2, None)
    with pytest.raises(TenfoldError, match=r"unexpected gcnlayers.2.weight"):
        load_model(path, "gcn3_64")


@pytest.mark.parametrize("name", ["gat5_64", "gcn1_64", "gcn5", "", "gcn5_0", "gcn5_64x"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(TenfoldError, match=r"unknown model .*gcn2_32.*gin5_64"):
        build_model(name, 7, 2)


def test_dropout_falls_on_the_logits_and_only_in_training(mutag) -> None:
    torch.manual_seed(0)
    model = build_model("gcn2_32", 7, 2)
    inputs = mutag.train.features(), mutag.train.topology()
    dropped = (model(*inputs) == 0).float().mean()
    assert 0.4 < dropped < 0.6
    assert (model.eval()(*inputs) != 0).all()
