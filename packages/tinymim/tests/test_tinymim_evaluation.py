"""Accuracy of classifiers, frozen features, their neighbours and linear probes, in one process and in two."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from tenfold.shared.accelerator import AcceleratorConfig, make_fabric
from tenfold.shared.logging import TenfoldError
from tenfold.tinymim import frozen
from tenfold.tinymim.architectures import make_classifier
from tenfold.tinymim.evaluation import evaluate_classifier, logits_of
from tenfold.tinymim.frozen import LinearProbeConfig, features, knn_accuracy, linear_probe, nearest_classes
from tenfold.tinymim.robustness import ImageFile, ImageFiles, accuracy_by_group, evaluation_transform
from tenfold.tinymim.vit import VisionTransformer, ViTConfig

TINY = ViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2)
IMAGES, CLASSES = 23, 7


def classifier(classes: int = CLASSES, **shape: Any) -> VisionTransformer:
    """With stochastic depth and large weights, so that modes and classes differ."""
    torch.manual_seed(0)
    network = make_classifier(
        ViTConfig(**{**vars(TINY), **shape}), num_classes=classes, drop_path_rate=0.5
    ).train()
    torch.nn.init.normal_(network.head.weight)
    return network


def labelled_images(classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(IMAGES, 3, 16, 16, generator=generator)
    return images, torch.randint(classes, (IMAGES,), generator=generator)


def batches(images: Tensor, labels: Tensor, size: int = 5) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(size), labels.split(size), strict=True))


def share(rank: int) -> slice:
    """Unequal ones."""
    return (slice(0, 16), slice(16, None))[rank]


# -- classifiers -----------------------------------------------------------------------------------------


def test_top1_and_top5_are_scikit_learns(cpu: Fabric) -> None:
    network, (images, labels) = classifier(), labelled_images()
    found = evaluate_classifier(network, batches(images, labels), cpu)
    assert network.training
    with torch.no_grad():
        logits = network.eval()(images)
    assert found["top1"] == pytest.approx(100 * accuracy_score(labels, logits.argmax(1)), abs=1e-4)
    top5 = top_k_accuracy_score(labels, logits, k=5, labels=np.arange(CLASSES))
    assert found["top5"] == pytest.approx(100 * top5, abs=1e-4)
    assert 0 < found["top1"] < found["top5"] < 100


def test_top5_of_three_classes_is_all_of_them(cpu: Fabric) -> None:
    found = evaluate_classifier(classifier(3), batches(*labelled_images(3)), cpu)
    assert found["top1"] < found["top5"] == 100


def test_a_network_with_two_heads_is_judged_by_their_mean(cpu: Fabric) -> None:
    network, (images, labels) = classifier(distillation_token=True), labelled_images()
    found = evaluate_classifier(network, batches(images, labels), cpu)
    with torch.no_grad():
        assert isinstance(network.train()(images), tuple)
        mean = network.eval()(images)
    assert found["top1"] == pytest.approx(100 * accuracy_score(labels, mean.argmax(1)), abs=1e-4)


def test_logits_are_float32_where_the_network_computes_in_bfloat16() -> None:
    network, (images, _) = classifier().eval(), labelled_images()
    with torch.no_grad():
        logits = logits_of(network, images, Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"))
        exact = network(images)
    assert logits.dtype == torch.float32
    assert 0 < (logits - exact).abs().max() < 0.1 * exact.abs().max()


def test_without_a_classifier_or_images_there_is_no_accuracy(cpu: Fabric) -> None:
    with pytest.raises(TenfoldError, match="this network has no classifier: fine-tune it"):
        evaluate_classifier(VisionTransformer(TINY), batches(*labelled_images()), cpu)
    network = classifier()
    with pytest.raises(TenfoldError, match="there are no images to judge the network by"):
        evaluate_classifier(network, [], cpu)
    assert network.training


# -- features --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("block", "layer"), [(None, 1), (1, 0), (3, 2)])
@pytest.mark.parametrize("second_token", [False, True])
def test_features_are_tokens_after_a_block(
    cpu: Fabric, block: int | None, layer: int, second_token: bool
) -> None:
    network, (images, labels) = classifier(distillation_token=second_token), labelled_images()
    seen: list[Tensor] = []
    hook = network.blocks[layer].register_forward_hook(lambda *call: seen.append(call[2]))
    mean, found_labels = features(network, batches(images, labels), cpu, block)
    hook.remove()
    tokens = torch.cat(seen)
    assert network.training and mean.dtype == torch.float32 and not mean.requires_grad
    assert torch.equal(mean, tokens[:, 1 + second_token :].mean(1)) and torch.equal(found_labels, labels)
    cls, _ = features(network, batches(images, labels), cpu, block, pool="cls")
    assert torch.equal(cls, tokens[:, 0])


def test_features_do_not_see_the_last_block_by_default(cpu: Fabric) -> None:
    network, data = VisionTransformer(TINY), batches(*labelled_images())
    before, _ = features(network, data, cpu)
    for parameter in network.blocks[-1].parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    assert torch.equal(features(network, data, cpu)[0], before)
    assert features(network, data, cpu, block=3)[0].isnan().all()


def test_features_of_a_block_that_is_not_there_are_said(cpu: Fabric) -> None:
    with pytest.raises(TenfoldError, match="this network has blocks 1 to 3"):
        features(VisionTransformer(TINY), batches(*labelled_images()), cpu, block=4)


# -- neighbours and probes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bunch = load_digits()
    images, labels = torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1297], order[1297:]
    return images[train], labels[train], images[test], labels[test]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.001), (20, 0.07), (300, 0.02)])
def test_neighbours_vote_as_scikit_learns(
    digits: tuple[Tensor, ...], k: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "SIMILARITIES_AT_ONCE", 100 * 1297 + 5)  # several chunks and a rest
    train_x, train_y, test_x, test_y = digits

    def weights(distances: Any) -> Any:
        return np.exp((distances[:, :1] - distances) / temperature)

    for vote, of_peer in (("majority", "uniform"), ("weighted", weights)):
        peer = KNeighborsClassifier(k, weights=of_peer, metric="cosine").fit(train_x.double(), train_y)
        expected = peer.predict(test_x.double())
        found = nearest_classes(train_x, train_y, test_x, k, temperature, vote)
        assert np.array_equal(found.numpy(), expected)
        accuracy = knn_accuracy(train_x, train_y, test_x, test_y, k, temperature, vote)
        assert accuracy == pytest.approx(100 * accuracy_score(test_y, expected), abs=1e-4)


def test_near_neighbours_outvote_far_ones_only_when_votes_are_weighted() -> None:
    train_x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    train_y, test = torch.tensor([1, 0, 0]), torch.tensor([[2.0, 0.1]])
    assert nearest_classes(train_x, train_y, test, 3, 0.07, "weighted").tolist() == [1]
    assert nearest_classes(train_x, train_y, test, 3, 0.07, "majority").tolist() == [0]
    assert nearest_classes(train_x, train_y, test, 3, 100.0, "weighted").tolist() == [0]


def test_a_linear_probe_is_as_good_as_logistic_regression(digits: tuple[Tensor, ...]) -> None:
    train_x, train_y, test_x, test_y = digits
    scaler = StandardScaler().fit(train_x)
    peer = LogisticRegression(max_iter=300).fit(scaler.transform(train_x), train_y)
    expected = 100 * peer.score(scaler.transform(test_x), test_y)
    config = LinearProbeConfig(epochs=30)
    found = linear_probe(*digits, config, torch.Generator().manual_seed(0))
    assert expected > 95 and found == pytest.approx(expected, abs=2)
    assert linear_probe(*digits, config, torch.Generator().manual_seed(0)) == found


def test_a_linear_probe_does_not_mind_scale_and_offset_of_features(digits: tuple[Tensor, ...]) -> None:
    train_x, train_y, test_x, test_y = (
        values.double() if values.is_floating_point() else values for values in digits
    )
    varied = train_x.std(0) > 0
    train_x, test_x = train_x[:, varied], test_x[:, varied]
    scale, offset = torch.logspace(0, 3, int(varied.sum()), dtype=torch.float64), 1e4
    config = LinearProbeConfig(epochs=3)
    plain, moved = (
        linear_probe(
            (train_x * by + to).float(),
            train_y,
            (test_x * by + to).float(),
            test_y,
            config,
            torch.Generator().manual_seed(0),
        )
        for by, to in ((1.0, 0.0), (scale, offset))
    )
    assert moved == pytest.approx(plain, abs=1)


def test_impossible_judgements_of_features_are_said() -> None:
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    with pytest.raises(TenfoldError, match="20 neighbours cannot be found among 4 training images"):
        knn_accuracy(x, y, x, y)
    with pytest.raises(TenfoldError, match="temperature of neighbours' votes is positive, not 0"):
        knn_accuracy(x, y, x, y, k=2, temperature=0)
    with pytest.raises(TenfoldError, match="0 test features and 0 labels"):
        knn_accuracy(x, y, x[:0], y[:0], k=2)
    with pytest.raises(TenfoldError, match="4 training features and 3 labels"):
        linear_probe(x, y[:3], x, y, LinearProbeConfig(), torch.Generator())
    for wrong in ({"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"momentum": 1.0}, {"weight_decay": -1.0}):
        with pytest.raises(TenfoldError, match="a linear probe's"):
            LinearProbeConfig(**wrong)


# -- two processes ---------------------------------------------------------------------------------------


def image_files(folder: Path) -> ImageFiles:
    """Seven grey images of two groups: 4 and 3."""
    files = [ImageFile(str(folder / f"{number}.png"), number % 4, number // 4) for number in range(7)]
    return ImageFiles(files, evaluation_transform(16))


def judge(fabric: Fabric, data: list[tuple[Tensor, Tensor]], files: ImageFiles) -> dict[str, Any]:
    network = classifier(1000)
    torch.nn.init.constant_(network.head.bias[4:], -1e3)  # else none of four labels is ever said
    of_first = data if fabric.is_global_zero else []
    return {
        "accuracy": evaluate_classifier(classifier(), data, fabric),
        "of the first": evaluate_classifier(classifier(), of_first, fabric),
        "features": features(classifier(), data, fabric),
        "features of the first": features(classifier(), of_first, fabric),
        "groups": accuracy_by_group(network, files, fabric, workers=0, batch_size=2),
    }


def judge_in_process(rank: int, port: int, folder: Path) -> None:
    """One of two, as torchrun would start it; forked, so that nothing is imported again."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    fabric = make_fabric(AcceleratorConfig(device="cpu"))
    fabric.launch()
    assert (fabric.world_size, fabric.global_rank) == (2, rank)
    images, labels = labelled_images()
    mine = share(rank)
    found = judge(fabric, batches(images[mine], labels[mine]), image_files(folder))
    torch.save(found, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_two_processes_find_what_one_finds(cpu: Fabric, port: int, tmp_path: Path) -> None:
    for number in range(7):
        Image.new("RGB", (20, 20), (30 * number,) * 3).save(tmp_path / f"{number}.png")
    start_processes(judge_in_process, (port, tmp_path), nprocs=2, start_method="fork")
    images, labels = labelled_images()
    alone = judge(cpu, batches(images, labels), image_files(tmp_path))
    first = judge(cpu, batches(images[share(0)], labels[share(0)]), image_files(tmp_path))
    assert alone["accuracy"] != first["accuracy"] and 0 < sum(alone["groups"]) < 2
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert found["accuracy"] == pytest.approx(alone["accuracy"], abs=1e-4)
        assert found["of the first"] == pytest.approx(first["accuracy"], abs=1e-4)
        assert found["groups"] == alone["groups"]
        for name, expected in (("features", alone), ("features of the first", first)):
            x, y = found[name]
            torch.testing.assert_close(x, expected["features"][0])
            assert torch.equal(y, expected["features"][1])
