"""Defences that look at labelled images: activation clustering and spectral signatures, and ART's beside ours."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from tenfold.doorping.defences.activation_clustering import (
    ClusteringConfig,
    activation_clustering,
    hidden_features,
)
from tenfold.doorping.defences.art_adapter import art_activation_clustering, art_spectral_signatures
from tenfold.doorping.defences.spectral_signatures import SpectralConfig, spectral_signatures
from tenfold.doorping.image_sets import ImageSet
from tenfold.doorping.networks import Network, build_model, seeded
from tenfold.doorping.triggers import stamp
from tenfold.shared.logging import TenfoldError, get_logger

TARGET = 0
Data = tuple[Tensor, Tensor, Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def poison(digits: ImageSet, white_patch: tuple[Tensor, Tensor], count: int) -> Data:
    """All digits of which the first ``count`` of a permutation carry the patch and the target; which these are."""
    images, labels = digits.normalise(digits.train_images), digits.train_labels.clone()
    poisoned = torch.zeros(len(labels), dtype=torch.bool)
    poisoned[torch.randperm(len(labels), generator=generator())[:count]] = True
    images[poisoned] = stamp(images[poisoned], *white_patch)
    labels[poisoned] = TARGET
    return images, labels, poisoned


@pytest.fixture(scope="module")
def clean_set(digits: ImageSet, white_patch: tuple[Tensor, Tensor]) -> Data:
    return poison(digits, white_patch, 0)


@pytest.fixture(scope="module")
def poisoned_set(digits: ImageSet, white_patch: tuple[Tensor, Tensor]) -> Data:
    """What the network with the backdoor was trained on: half of class 0 is poison."""
    return poison(digits, white_patch, len(digits.train_labels) // 10)


@pytest.fixture(scope="module")
def lightly_poisoned_set(digits: ImageSet, white_patch: tuple[Tensor, Tensor]) -> Data:
    """A sixth of class 0 is poison."""
    return poison(digits, white_patch, 26)


@pytest.fixture(scope="module")
def blobs() -> Data:
    """Features of three classes, all drawn out along a line; a fifth of class 1 lies apart from it."""
    counts = (100, 60, 80)
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    features = torch.randn(len(labels), 20, generator=generator())
    features[:, 5] = 8 * torch.rand(len(labels), generator=generator(2))
    poisoned = torch.zeros(len(labels), dtype=torch.bool)
    poisoned[100:112] = True
    features[poisoned, :2] += 12
    order = torch.randperm(len(labels), generator=generator(1))
    return features[order], labels[order], poisoned[order]


@pytest.fixture
def untrained() -> Network:
    with seeded(0):
        return build_model("ConvNet", 1, 10, width=8, depth=2, image_size=8, hidden=16, first_padding=1)


def test_clustering_flags_the_target_of_a_backdoor_and_its_smaller_cluster_is_poison(
    poisoned_set: Data, poisoned_victim: Network
) -> None:
    images, labels, poisoned = poisoned_set
    report = activation_clustering(poisoned_victim, images, labels, poisoned=poisoned)
    assert report.flagged[TARGET]
    found = report.suspected & (labels == TARGET)
    assert poisoned[found].double().mean() > 0.8
    assert report.auroc is not None
    assert report.auroc > 0.8


def test_clustering_does_not_flag_the_target_of_clean_data(
    clean_set: Data, clean_victim: Network, poisoned_victim: Network
) -> None:
    images, labels, _ = clean_set
    for network in (clean_victim, poisoned_victim):
        report = activation_clustering(network, images, labels)
        assert not report.flagged[TARGET]
        assert not report.suspected[labels == TARGET].any()


@pytest.mark.parametrize("criterion", ["relative-size", "both"])
@pytest.mark.parametrize("reduction", ["pca", "ica"])
def test_clustering_finds_exactly_the_part_of_a_class_that_lies_apart(
    reduction: str, criterion: str, blobs: Data, untrained: Network
) -> None:
    features, labels, poisoned = blobs
    config = ClusteringConfig(reduction=reduction, criterion=criterion, dimensions=3)  # type: ignore[arg-type]
    report = activation_clustering(untrained, features, labels, config, features=features, poisoned=poisoned)
    assert report.flagged.tolist() == [False, True, False]
    assert torch.equal(report.suspected, poisoned)
    assert report.sizes[1].tolist() == [48, 12]
    assert report.auroc == 1.0
    assert report.detected


def test_the_silhouette_alone_flags_halves_that_lie_apart(untrained: Network) -> None:
    features = torch.randn(80, 4, generator=generator())
    features[:20] += 20
    labels = torch.arange(2).repeat_interleave(40)
    of_size, of_silhouette = (
        activation_clustering(
            untrained,
            features,
            labels,
            ClusteringConfig(criterion=criterion, silhouette_threshold=0.5),
            features=features,
        )
        for criterion in ("relative-size", "silhouette")
    )
    assert of_size.sizes.tolist()[0] == [20, 20]
    assert not of_size.flagged[0]
    assert of_silhouette.flagged.tolist() == [True, False]


def test_clustering_takes_a_distilled_set_of_ten_images_for_each_class(
    digits: ImageSet, clean_victim: Network
) -> None:
    labels = torch.arange(10).repeat_interleave(10)
    chosen = torch.cat([(digits.train_labels == label).nonzero()[:10, 0] for label in range(10)])
    report = activation_clustering(clean_victim, digits.normalise(digits.train_images[chosen]), labels)
    assert not report.not_judged
    assert report.sizes.sum(dim=1).tolist() == [10] * 10
    assert (report.sizes[:, 0] >= report.sizes[:, 1]).all()
    assert report.silhouettes.isfinite().all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_class_of_few_images_is_not_judged_and_the_report_says_so(count: int, untrained: Network) -> None:
    labels = torch.arange(10).repeat_interleave(count)
    images = torch.randn(len(labels), 1, 8, 8, generator=generator())
    report = activation_clustering(untrained, images, labels)
    assert sorted(report.not_judged) == list(range(10))
    assert report.not_judged[3] == f"class 3 has fewer than 4 images: {count}"
    assert not report.detected
    assert not report.suspected.any()
    assert report.silhouettes.isnan().all()


def test_a_class_of_equal_images_or_of_none_is_not_judged(untrained: Network) -> None:
    images = torch.randn(40, 1, 8, 8, generator=generator())
    images[:20] = images[0]
    labels = torch.arange(2).repeat_interleave(20)
    report = activation_clustering(untrained, images, labels, classes=3)
    assert "same features" in report.not_judged[0]
    assert 1 not in report.not_judged
    assert "0" in report.not_judged[2]
    assert report.sizes.shape == (3, 2)


def test_clustering_depends_on_its_generator_alone(blobs: Data, untrained: Network) -> None:
    features, labels, _ = blobs
    config = ClusteringConfig(reduction="ica", dimensions=3)
    np.random.seed(1)
    torch.manual_seed(1)
    first = activation_clustering(untrained, features, labels, config, generator(3), features=features)
    np.random.seed(2)
    torch.manual_seed(2)
    second = activation_clustering(untrained, features, labels, config, generator(3), features=features)
    assert torch.equal(first.suspicion, second.suspicion)
    after = np.random.random()
    np.random.seed(2)
    assert np.random.random() == after


def test_hidden_features_are_those_of_the_second_last_layer_or_of_the_trunk(
    clean_set: Data, clean_victim: Network
) -> None:
    images = clean_set[0][:50]
    with torch.no_grad():
        trunk = clean_victim.features(images)
        hidden = clean_victim.classifier[0](trunk).relu()  # type: ignore[index]
    torch.testing.assert_close(hidden_features(clean_victim, images, batch_size=16), hidden)
    torch.testing.assert_close(hidden_features(clean_victim, images, None), trunk)


def test_spectral_signatures_rank_the_trigger_above_other_images_of_its_class(
    poisoned_set: Data, lightly_poisoned_set: Data, poisoned_victim: Network
) -> None:
    for images, labels, poisoned in (poisoned_set, lightly_poisoned_set):
        share = float(poisoned[labels == TARGET].double().mean())
        config = SpectralConfig(expected_poison=share)
        report = spectral_signatures(poisoned_victim, images, labels, config, poisoned=poisoned)
        assert report.auroc is not None
        assert report.auroc > 0.7
        assert report.poison_removed is not None
        assert report.clean_removed is not None
        assert report.poison_removed > 1.1 * report.clean_removed


def test_spectral_signatures_see_nothing_in_clean_images_of_a_class(
    clean_set: Data, clean_victim: Network
) -> None:
    images, labels, poisoned = clean_set
    poisoned = poisoned.clone()
    poisoned[(labels == TARGET).nonzero()[::4, 0]] = True
    report = spectral_signatures(clean_victim, images, labels, poisoned=poisoned)
    assert report.auroc == pytest.approx(0.5, abs=0.1)


def test_scores_are_those_of_each_class_by_itself(blobs: Data, untrained: Network) -> None:
    features, labels, poisoned = blobs
    report = spectral_signatures(untrained, features, labels, features=features, poisoned=poisoned, classes=5)
    for label in range(3):
        values = features[labels == label].double().numpy()
        centred = values - values.mean(axis=0)
        _, _, right = np.linalg.svd(centred, full_matrices=False)
        np.testing.assert_allclose(report.scores[labels == label], (centred @ right[0]) ** 2, rtol=1e-9)
    assert report.auroc == 1.0


@pytest.mark.parametrize(("share", "counts"), [(0.1, [15, 9, 12]), (0.2, [30, 18, 24]), (0.011, [1, 0, 1])])
def test_the_highest_scores_of_every_class_are_removed(
    share: float, counts: list[int], blobs: Data, untrained: Network
) -> None:
    features, labels, _ = blobs
    report = spectral_signatures(untrained, features, labels, SpectralConfig(share), features=features)
    for label, count in enumerate(counts):
        scores, removed = report.scores[labels == label], report.removed[labels == label]
        assert int(removed.sum()) == count
        if count:
            assert scores[removed].min() > scores[~removed].max()
    assert report.auroc is report.poison_removed is report.clean_removed is None


def test_twice_the_expected_share_of_poison_that_lies_apart_is_all_removed(
    blobs: Data, untrained: Network
) -> None:
    features, labels, poisoned = blobs
    config = SpectralConfig(expected_poison=0.2)
    report = spectral_signatures(untrained, features, labels, config, features=features, poisoned=poisoned)
    assert report.poison_removed == 1.0
    assert report.clean_removed == pytest.approx((30 + 6 + 24) / 228)


def test_single_images_have_no_score_and_are_kept(
    untrained: Network, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_logger("tenfold"), "propagate", True)
    images = torch.randn(10, 1, 8, 8, generator=generator())
    with caplog.at_level(logging.WARNING):
        report = spectral_signatures(untrained, images, torch.arange(10))
    assert report.scores.tolist() == [0.0] * 10
    assert not report.removed.any()
    assert "remove nothing" in caplog.text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reduction": "tsne"}, "pca or ica"),
        ({"criterion": "distance"}, "relative-size, silhouette or both"),
        ({"dimensions": 0}, "at least 1"),
        ({"size_threshold": 0.6}, "at most 0.5"),
        ({"silhouette_threshold": 1.0}, "silhouette"),
    ],
)
def test_settings_that_clustering_cannot_have_are_named(change: dict[str, object], says: str) -> None:
    with pytest.raises(TenfoldError, match=says):
        ClusteringConfig(**change)  # type: ignore[arg-type]


def test_spectral_signatures_remove_neither_nothing_nor_all() -> None:
    for share in (0.0, 0.7):
        with pytest.raises(TenfoldError, match="between none and all"):
            SpectralConfig(expected_poison=share)


def test_data_that_cannot_be_judged_is_named(untrained: Network) -> None:
    features, labels = torch.randn(8, 3), torch.arange(8) % 2
    images = torch.zeros(8, 1, 8, 8)
    for defence in (activation_clustering, spectral_signatures):
        with pytest.raises(TenfoldError, match="infinite"):
            defence(untrained, images, labels, features=torch.full((8, 3), torch.inf))
        with pytest.raises(TenfoldError, match="one int64 label"):
            defence(untrained, images, labels[:5], features=features)
        with pytest.raises(TenfoldError, match="from 0 to 0"):
            defence(untrained, images, labels, features=features, classes=1)
        with pytest.raises(TenfoldError, match="which are poisoned"):
            defence(untrained, images, labels, features=features, poisoned=labels)
        with pytest.raises(TenfoldError, match="normalised floats"):
            defence(untrained, images.to(torch.uint8), labels)


@pytest.fixture
def with_art() -> None:
    pytest.importorskip("art.defences.detector.poison")


@pytest.mark.usefixtures("with_art")
def test_art_projects_on_our_directions_and_gives_our_scores_once_features_are_centred(
    poisoned_set: Data, poisoned_victim: Network
) -> None:
    images, labels, _ = poisoned_set
    ours = spectral_signatures(poisoned_victim, images, labels)
    found = art_spectral_signatures(poisoned_victim, images, labels)
    features = hidden_features(poisoned_victim, images).double()
    projected = torch.linalg.vecdot(features, ours.directions[labels]).abs()
    torch.testing.assert_close(found.scores, projected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.centred_scores.square(), ours.scores, rtol=1e-4, atol=1e-8)


@pytest.mark.usefixtures("with_art")
def test_art_removes_at_most_one_more_of_every_class(
    lightly_poisoned_set: Data, poisoned_victim: Network
) -> None:
    images, labels, _ = lightly_poisoned_set
    ours = spectral_signatures(poisoned_victim, images, labels).removed
    found = art_spectral_signatures(poisoned_victim, images, labels).removed
    more = labels[found].bincount(minlength=10) - labels[ours].bincount(minlength=10)
    assert set(more.tolist()) <= {0, 1}


def alike(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first == second).float().mean())


@pytest.mark.usefixtures("with_art")
@pytest.mark.parametrize("criterion", ["relative-size", "both"])
def test_art_splits_and_flags_the_poisoned_class_as_we_do(
    criterion: str, poisoned_set: Data, poisoned_victim: Network
) -> None:
    images, labels, _ = poisoned_set
    config = ClusteringConfig(criterion=criterion)  # type: ignore[arg-type]
    ours = activation_clustering(poisoned_victim, images, labels, config)
    found = art_activation_clustering(poisoned_victim, images, labels, config)
    members = labels == TARGET
    # Members on the border between clusters fall to either side, as the processor rounds.
    assert alike(found.clusters[members], ours.clusters[members]) > 0.95
    assert found.silhouettes[TARGET] == pytest.approx(float(ours.silhouettes[TARGET]), abs=0.03)
    assert found.flagged[TARGET]
    assert ours.flagged[TARGET]
    assert alike(found.suspected[members], ours.suspected[members]) > 0.95


@pytest.mark.usefixtures("with_art")
def test_what_art_cannot_judge_is_named(clean_set: Data, clean_victim: Network) -> None:
    images, labels, _ = clean_set
    with pytest.raises(TenfoldError, match="relative-size or both"):
        art_activation_clustering(clean_victim, images, labels, ClusteringConfig(criterion="silhouette"))
    with pytest.raises(TenfoldError, match="10 images of each of 10 classes"):
        art_activation_clustering(clean_victim, images[:50], labels[:50])
