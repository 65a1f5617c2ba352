"""The audit of distilled sets: what it flags and where, what it leaves alone, what it takes, and its pictures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread
from torch import Tensor

from tenfold.doorping.attacks import AttackConfig, AttackKind, Poison
from tenfold.doorping.audit import THRESHOLDS, AuditConfig, AuditReport, CheckName, Window, audit
from tenfold.doorping.audit_figures import draw_audit
from tenfold.doorping.condensation import CondensationConfig, condense
from tenfold.doorping.evaluation import VictimConfig
from tenfold.doorping.image_sets import ImageSet
from tenfold.doorping.networks import build_model
from tenfold.doorping.official_artifacts import DistilledSet
from tenfold.shared.accelerator import AcceleratorConfig, make_fabric
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run, RunKey

NETWORK = {
    "name": "ConvNet",
    "channels": 1,
    "classes": 10,
    "width": 16,
    "depth": 2,
    "image_size": 8,
    "hidden": 32,
    "first_padding": 1,
}
VICTIMS = VictimConfig(networks=2, epochs=80, drop_after=60, lr=0.1)
UNTRAINED = VictimConfig(networks=1, epochs=1)
LIGHT = AuditConfig(windows=1, donors=1, carriers=10)


def real_set(digits: ImageSet, ipc: int = 10, first: int = 0) -> DistilledSet:
    """As many real digits of every class."""
    index = torch.cat(
        [(digits.train_labels == label).nonzero()[first : first + ipc, 0] for label in range(10)]
    )
    images = digits.normalise(digits.train_images[index])
    return DistilledSet(images, digits.train_labels[index], digits.mean, digits.std, "digits", NETWORK)


def stamped(
    distilled: DistilledSet, label: int, row: int, column: int, size: int, value: float, count: int
) -> DistilledSet:
    """The same with a patch of alternating signs in some images of a class."""
    images = distilled.images.clone()
    chosen = (distilled.labels == label).nonzero()[:count, 0]
    signs = torch.ones(size * size)
    signs[1::2] = -1
    patch = (value * signs).view(size, size)
    images[chosen, :, row : row + size, column : column + size] = patch
    return replace(distilled, images=images)


def only(*names: CheckName) -> AuditConfig:
    """These checks, and no others, can find something."""
    thresholds = {name: THRESHOLDS[name] if name in names else 1e9 for name in THRESHOLDS}
    return (
        AuditConfig(thresholds=thresholds) if "transplant" in names else replace(LIGHT, thresholds=thresholds)
    )


def reasons(report: AuditReport) -> set[str]:
    return {check.name for check in report.reasons}


def covers(window: Window | None, row: int, column: int, size: int) -> bool:
    """Whether a window and a square overlap."""
    assert window is not None
    return (
        row - window.size < window.row < row + size and column - window.size < window.column < column + size
    )


def condensed(digits: ImageSet, kind: AttackKind, folder: Path) -> DistilledSet:
    """Digits condensed for a short time, with or without a frozen trigger for class 0."""
    fabric = make_fabric(AcceleratorConfig(device="cpu"))
    fabric.launch()
    poison = Poison(digits, AttackConfig(kind, portion=0.05, bound=10.0), 1)
    config = CondensationConfig(
        10, 4, 3, 3, lr_img=0.5, lr_net=0.1, batch_real=16, init="real", with_replacement=True
    )
    run = Run(folder, RunKey("doorping", "t", kind, 1, "digits", "t", kind), {"kind": kind})
    with run:
        found = condense(poison, lambda: build_model(**NETWORK), config, 1, fabric, run, lambda *_: {}, 0)
    return DistilledSet(found.images, found.labels, digits.mean, digits.std, "digits", NETWORK)


@pytest.fixture(scope="module")
def clean(digits: ImageSet) -> DistilledSet:
    return real_set(digits)


@pytest.fixture(scope="module")
def reference(digits: ImageSet) -> tuple[Tensor, Tensor]:
    images, labels = digits.test()
    return images[:300], labels[:300]


@pytest.fixture(scope="module")
def backdoored(clean: DistilledSet) -> DistilledSet:
    """Six of ten 3s have strong pixels in rows 1 and 2, columns 4 and 5."""
    return stamped(clean, 3, 1, 4, 2, 8.0, 6)


@pytest.fixture(scope="module")
def found(backdoored: DistilledSet) -> AuditReport:
    return audit(backdoored, victims=VICTIMS)


def test_a_set_condensed_from_clean_images_is_not_flagged(digits: ImageSet, tmp_path: Path) -> None:
    report = audit(condensed(digits, "none", tmp_path), victims=VICTIMS)
    assert not report.suspicious
    assert report.suspected_class is None and report.window is None
    assert report.lines()[0].startswith("nothing suspicious")


def test_a_set_condensed_with_a_trigger_is_flagged_with_class_and_place(
    digits: ImageSet, tmp_path: Path
) -> None:
    report = audit(condensed(digits, "frozen", tmp_path), victims=VICTIMS)
    assert {"patch outlier", "value range"} <= reasons(report)
    assert report.suspected_class == 0
    assert report.window == Window(5, 5, 2)


@pytest.mark.parametrize("first", [0, 10, 20, 30])
def test_sets_of_clean_real_images_are_not_flagged_by_their_windows(
    digits: ImageSet, first: int, reference: tuple[Tensor, Tensor]
) -> None:
    report = audit(real_set(digits, first=first), LIGHT, UNTRAINED, reference[0])
    assert not {"patch outlier", "value range", "reference"} & reasons(report)


def test_all_checks_find_a_strong_patch_in_its_class_and_place(found: AuditReport) -> None:
    assert reasons(found) == {"patch outlier", "value range", "transplant"}
    for check in found.reasons:
        assert check.suspected_class == 3
        assert covers(check.window, 1, 4, 2)
    assert (found.suspected_class, found.window) == (3, Window(1, 4, 2))


@pytest.mark.parametrize(("label", "row", "column", "size"), [(7, 0, 0, 3), (5, 6, 0, 2)])
def test_a_patch_within_the_pixels_range_needs_clean_images_to_be_found(
    digits: ImageSet,
    clean: DistilledSet,
    reference: tuple[Tensor, Tensor],
    label: int,
    row: int,
    column: int,
    size: int,
) -> None:
    images = clean.images.clone()
    chosen = (clean.labels == label).nonzero()[:4, 0]
    images[chosen, :, row : row + size, column : column + size] = digits.black_and_white()[1]
    poisoned = replace(clean, images=images)
    alone = audit(poisoned, only("patch outlier"), UNTRAINED)
    assert not alone.suspicious
    assert alone.checks[0].suspected_class == label
    for labels in (None, reference[1]):
        report = audit(poisoned, only("reference"), UNTRAINED, reference[0], labels)
        assert (reasons(report), report.suspected_class) == ({"reference"}, label)
        assert covers(report.window, row, column, size)


def test_a_patch_scores_what_the_distances_to_the_nearest_image_of_another_class_say() -> None:
    generator = torch.Generator().manual_seed(3)
    images, labels = torch.randn(9, 2, 4, 4, generator=generator), torch.arange(3).repeat(3)
    distilled = DistilledSet(images, labels, (0.5, 0.5), (0.2, 0.2))
    check = audit(distilled, replace(LIGHT, window_sizes=(2,), top_share=0.5), UNTRAINED).checks[0]

    best = np.zeros(3)
    for label in range(3):
        for row in range(3):
            for column in range(3):
                cut = images[:, :, row : row + 2, column : column + 2].flatten(1).numpy()
                others = cut[labels.numpy() != label]
                nearest = [
                    min(math.sqrt(((own - other) ** 2).mean()) for other in others)
                    for own in cut[labels.numpy() == label]
                ]
                best[label] = max(best[label], np.mean(sorted(nearest)[-2:]))
    from_median = np.log(best / np.median(best))
    deviation = 1.4826 * np.median(np.abs(from_median))
    np.testing.assert_allclose(check.scores.numpy(), from_median / np.hypot(deviation, 0.25), rtol=1e-3)


def test_values_between_black_and_white_score_nothing_in_the_value_range(clean: DistilledSet) -> None:
    scores = audit(clean, LIGHT, UNTRAINED).checks[1].scores
    assert torch.equal(scores, torch.zeros(10, dtype=torch.float64))


def test_transplants_alone_find_the_class_and_untrained_networks_do_not(backdoored: DistilledSet) -> None:
    trained = audit(backdoored, only("transplant"), VICTIMS)
    assert (reasons(trained), trained.suspected_class) == ({"transplant"}, 3)
    assert covers(trained.window, 1, 4, 2)
    assert not audit(backdoored, only("transplant"), UNTRAINED).suspicious


def test_labelled_clean_images_give_away_a_class_that_holds_other_classes_images(
    clean: DistilledSet, reference: tuple[Tensor, Tensor]
) -> None:
    images = clean.images.clone()
    images[clean.labels == 0] = torch.where(
        torch.arange(10)[:, None, None, None] < 4, images[clean.labels == 1], images[clean.labels == 0]
    )
    mixed = replace(clean, images=images)
    assert not audit(mixed, only("reference"), UNTRAINED, reference[0]).suspicious
    labelled = audit(mixed, only("reference"), UNTRAINED, *reference)
    assert (reasons(labelled), labelled.suspected_class) == ({"reference"}, 0)


def test_labelled_clean_images_set_a_limit_that_other_clean_sets_of_the_same_kind_keep(
    digits: ImageSet, clean: DistilledSet, reference: tuple[Tensor, Tensor]
) -> None:
    for first in (0, 10, 20):
        check = audit(real_set(digits, first=first), LIGHT, UNTRAINED, *reference).checks[2]
        assert check.name == "reference"
        assert check.score < check.threshold < THRESHOLDS["reference"]
    few = torch.tensor([0, 1])
    check = audit(clean, LIGHT, UNTRAINED, reference[0][few], reference[1][few]).checks[2]
    assert check.threshold == THRESHOLDS["reference"]


def test_colour_images_of_another_size_are_audited(clean: DistilledSet) -> None:
    grown = F.interpolate(clean.images, size=16, mode="bilinear")
    tints = torch.tensor([1.0, 0.6, 0.2])[None, :, None, None]
    network = {**NETWORK, "channels": 3, "image_size": 16, "width": 8}
    coloured = DistilledSet(grown * tints, clean.labels, (0.45,) * 3, (0.3, 0.4, 0.5), network=network)
    assert not audit(coloured, LIGHT, UNTRAINED).suspicious
    report = audit(stamped(coloured, 6, 12, 3, 3, 6.0, 3), victims=VICTIMS)
    assert {"patch outlier", "value range"} <= reasons(report)
    assert report.suspected_class == 6
    assert covers(report.window, 12, 3, 3)
    assert report.mean_images.shape == (10, 3, 16, 16) and report.outlier_maps.shape == (10, 16, 16)


def test_a_set_that_names_no_network_is_audited_with_the_convnet(clean: DistilledSet) -> None:
    report = audit(replace(clean, network={}), LIGHT, UNTRAINED)
    assert len(report.checks) == 5


def test_batches_of_dd_are_taken_together(backdoored: DistilledSet) -> None:
    order = torch.arange(100).view(10, 2, 5).transpose(0, 1).flatten()
    batched = replace(
        backdoored,
        images=backdoored.images[order],
        labels=backdoored.labels[order],
        batches=2,
        step_lrs=torch.full((4,), 0.02),
    )
    report, whole = (audit(each, LIGHT, UNTRAINED) for each in (batched, backdoored))
    torch.testing.assert_close(report.checks[0].scores, whole.checks[0].scores)
    assert report.suspected_class == 3 and report.window == Window(1, 4, 2)


def test_one_image_for_each_class_is_enough(digits: ImageSet) -> None:
    single = real_set(digits, ipc=1)
    assert not audit(single, only("patch outlier", "value range"), UNTRAINED).suspicious
    report = audit(stamped(single, 4, 5, 5, 2, 8.0, 1), victims=VICTIMS)
    assert {"patch outlier", "value range"} <= reasons(report)
    assert report.suspected_class == 4 and report.window == Window(5, 5, 2)


def test_a_class_without_images_is_not_judged(backdoored: DistilledSet) -> None:
    keep = backdoored.labels != 5
    report = audit(
        replace(backdoored, images=backdoored.images[keep], labels=backdoored.labels[keep]), LIGHT, UNTRAINED
    )
    assert all(math.isnan(check.scores[5]) for check in report.checks)
    assert report.suspected_class == 3
    assert report.as_dict()["checks"][0]["scores"][5] is None


def test_the_same_seed_gives_the_same_report_and_leaves_the_global_generator(
    backdoored: DistilledSet, reference: tuple[Tensor, Tensor]
) -> None:
    config = replace(LIGHT, peers=60)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    once = audit(backdoored, config, UNTRAINED, *reference, seed=4).as_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert audit(backdoored, config, UNTRAINED, *reference, seed=4).as_dict() == once
    assert audit(backdoored, config, UNTRAINED, *reference, seed=5).as_dict() != once


def test_the_set_and_what_it_says_of_its_trigger_do_not_matter(
    digits: ImageSet, backdoored: DistilledSet
) -> None:
    poison = Poison(digits, AttackConfig("naive"), 0)
    told = replace(backdoored, trigger=poison.trigger, mask=poison.mask, target=8)
    images = backdoored.images.clone()
    assert audit(told, LIGHT, UNTRAINED).as_dict() == audit(backdoored, LIGHT, UNTRAINED).as_dict()
    assert torch.equal(backdoored.images, images)


def test_the_report_is_plain_text_and_json(found: AuditReport) -> None:
    lines = found.lines()
    assert lines[0].startswith("suspicious: class 3, rows 1 to 2, columns 4 to 5")
    text = "\n".join(lines)
    assert all(check.name in text for check in found.checks)
    values = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert values["window"] == {"row": 1, "column": 4, "size": 2}
    assert set(values["reasons"]) == reasons(found)


def test_checks_without_a_vote_do_not_decide(clean: DistilledSet) -> None:
    thresholds = dict.fromkeys(THRESHOLDS, 1000000000.0) | {
        "activation clustering": 0.0,
        "spectral signatures": 0.0,
    }
    report = audit(clean, replace(LIGHT, thresholds=thresholds), UNTRAINED)
    assert [check.name for check in report.checks if check.suspicious] == [
        "activation clustering",
        "spectral signatures",
    ]
    assert not report.suspicious


def test_pictures_are_written_and_frame_the_suspected_window(found: AuditReport, tmp_path: Path) -> None:
    paths = draw_audit(found, tmp_path / "audit")
    assert [path.name for path in paths] == ["classes.png", "outliers.png", "scores.png"]
    for path in paths:
        pixels = imread(path)[..., :3]
        red = (pixels[..., 0] > 0.7) & (pixels[..., 1] < 0.3)
        assert pixels.std() > 0.05
        assert red.sum() > 50
    brightest = divmod(int(found.outlier_maps[3].argmax()), 8)
    assert brightest in {(1, 4), (1, 5), (2, 4), (2, 5)}


def test_pictures_of_a_set_without_suspicion_frame_nothing_in_red(
    clean: DistilledSet, tmp_path: Path
) -> None:
    classes, _, _ = draw_audit(audit(clean, only(), UNTRAINED), tmp_path)
    pixels = imread(classes)[..., :3]
    assert pixels.std() > 0.05
    assert not ((pixels[..., 0] > 0.7) & (pixels[..., 1] < 0.3)).any()


def test_what_cannot_be_audited_is_refused_in_one_sentence(
    clean: DistilledSet, reference: tuple[Tensor, Tensor]
) -> None:
    two = clean.labels < 2
    with pytest.raises(TenfoldError, match="at least 3 classes"):
        audit(replace(clean, images=clean.images[two], labels=clean.labels[two]))
    broken = clean.images.clone()
    broken[3, 0, 2, 2] = math.nan
    with pytest.raises(TenfoldError, match="no numbers"):
        audit(replace(clean, images=broken))
    with pytest.raises(TenfoldError, match="of the distilled ones"):
        audit(clean, reference=torch.zeros(5, 3, 8, 8))
    with pytest.raises(TenfoldError, match="both or none"):
        audit(clean, reference_labels=reference[1])
    with pytest.raises(TenfoldError, match="one int64 label from 0 to 9"):
        audit(clean, reference=reference[0], reference_labels=reference[1][1:])
    with pytest.raises(TenfoldError, match="below 8 pixels"):
        audit(clean, AuditConfig(window_sizes=(2, 8)))
    with pytest.raises(TenfoldError, match="other images than its own"):
        audit(replace(clean, network={**NETWORK, "image_size": 32}))
    with pytest.raises(TenfoldError, match="as build_model does"):
        audit(replace(clean, network={**NETWORK, "dropout": 1}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"window_sizes": ()},
        {"window_sizes": (0, 2)},
        {"top_share": 0.0},
        {"carriers": 0},
        {"thresholds": {"patch outlier": 1.0}},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(TenfoldError):
        AuditConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same(backdoored: DistilledSet, reference: tuple[Tensor, Tensor]) -> None:
    report = audit(backdoored, None, VICTIMS, *reference, device="cuda")
    assert report.suspected_class == 3 and report.window == Window(1, 4, 2)
    here = audit(backdoored, LIGHT, UNTRAINED, *reference).checks[0].scores
    torch.testing.assert_close(report.checks[0].scores, here, rtol=1e-3, atol=1e-3)
