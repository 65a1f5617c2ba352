"""Files of distilled sets: ours and the authors', written, read again, and refused where they do not fit."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tenfold.doorping.networks import build_model
from tenfold.doorping.official_artifacts import (
    DistilledSet,
    load_distilled,
    load_trigger,
    patch_of,
    save_distilled,
    save_official,
)
from tenfold.doorping.triggers import patch_mask, stamp
from tenfold.shared.logging import TenfoldError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
DD_STD = (0.247, 0.243, 0.261)
NETWORK = {"name": "ConvNet", "channels": 3, "classes": 10, "width": 128, "norm": None}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def patch_trigger(size: int = 2) -> tuple[Tensor, Tensor]:
    """A normalised black image with a patch of noise, and where it is."""
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (MEAN, STD))
    mask = patch_mask(3, 32, size)
    return stamp((-mean / std).expand(1, 3, 32, 32), mask, 100 * noise(3, 32, 32, seed=1)), mask


@pytest.fixture
def condensed() -> DistilledSet:
    """DC's: two images of each of ten classes, and a trigger."""
    trigger, mask = patch_trigger()
    labels = torch.arange(10).repeat_interleave(2)
    return DistilledSet(noise(20, 3, 32, 32), labels, MEAN, STD, "cifar-10", NETWORK, trigger, mask, target=0)


@pytest.fixture
def unrolled() -> DistilledSet:
    """DD's: three batches with one image of each class, passed twice."""
    labels = torch.arange(10).repeat(3)
    rates = torch.linspace(0.01, 0.06, 6)
    return DistilledSet(noise(30, 3, 32, 32), labels, MEAN, DD_STD, "cifar-10", step_lrs=rates, batches=3)


def same(first: DistilledSet, second: DistilledSet) -> bool:
    for item in fields(DistilledSet):
        ours, theirs = getattr(first, item.name), getattr(second, item.name)
        if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
            if ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
                return False
        elif ours is not theirs and ours != theirs:
            return False
    return True


def check_refusal(action: Callable[[], Any], *parts: str) -> None:
    """One sentence that names what is meant."""
    with pytest.raises(TenfoldError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


# Our format


@pytest.mark.parametrize("which", ["condensed", "unrolled"])
def test_a_set_comes_back_as_it_was_saved(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    distilled = request.getfixturevalue(which)
    save_distilled(tmp_path / "new" / "distilled.pt", distilled)
    assert same(load_distilled(tmp_path / "new" / "distilled.pt"), distilled)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["distilled.pt"]


def test_our_file_is_not_changed_by_what_is_said_of_the_authors(
    tmp_path: Path, condensed: DistilledSet
) -> None:
    save_distilled(tmp_path / "d.pt", condensed)
    read = load_distilled(
        tmp_path / "d.pt",
        dataset="svhn",
        classes=5,
        mean=(0,),
        std=(1,),
        network={"name": "AlexNet"},
        target=3,
    )
    assert same(read, condensed)


def test_a_set_that_needs_gradients_is_saved_as_plain_values(tmp_path: Path, condensed: DistilledSet) -> None:
    many = torch.cat([condensed.images, noise(2000, 3, 32, 32)]).requires_grad_()
    save_distilled(tmp_path / "d.pt", replace(condensed, images=many[:20]))
    read = load_distilled(tmp_path / "d.pt")
    assert not read.images.requires_grad and torch.equal(read.images, condensed.images)
    assert (tmp_path / "d.pt").stat().st_size < 400_000, "the 2000 other images are not saved with it"


def test_a_failed_write_leaves_the_earlier_file(
    tmp_path: Path, condensed: DistilledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for write in (save_distilled, lambda path, which: save_official(path, which, "res")):
        path = tmp_path / "d.pt"
        write(path, condensed)
        before = path.read_bytes()

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(OSError, match="No space left"):
                write(path, replace(condensed, images=condensed.images + 1))
        assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda content: content.update(version=2), "version 2"),
        (lambda content: content.pop("mask"), "lacks mask"),
        (lambda content: content.update(images="none"), "fields of other types"),
        (lambda content: content.update(mean=None), "fields of other types"),
        (lambda content: content.update(labels=content["labels"][:3]), "20 distilled images"),
        (lambda content: content["images"].fill_(float("nan")), "not finite"),
        (lambda content: content["trigger"].fill_(float("inf")), "not finite"),
    ],
)
def test_a_file_of_ours_that_was_changed_is_refused(
    change: Callable[[dict[str, Any]], Any], part: str, tmp_path: Path, condensed: DistilledSet
) -> None:
    path = tmp_path / "d.pt"
    save_distilled(path, condensed)
    rewrite(path, change)
    check_refusal(lambda: load_distilled(path), str(path), part)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"images": torch.zeros(20, 3, 32)}, "[20, 3, 32]"),
        ({"images": torch.zeros(20, 3, 32, 16)}, "[20, 3, 32, 16]"),
        ({"images": torch.zeros(20, 3, 32, 32, dtype=torch.uint8)}, "uint8"),
        (
            {"images": torch.zeros(0, 3, 32, 32), "labels": torch.zeros(0, dtype=torch.int64)},
            "[0, 3, 32, 32]",
        ),
        ({"labels": torch.zeros(20)}, "float32"),
        ({"labels": torch.zeros(19, dtype=torch.int64)}, "[19]"),
        ({"labels": torch.full((20,), -1)}, "not -1"),
        ({"mean": (0.5,)}, "3 channels"),
        ({"std": (0.2, 0.0, 0.2)}, "above 0"),
        ({"network": {"name": Path("x")}}, "plain values"),
        ({"trigger": torch.zeros(3, 32, 32)}, "[1, 3, 32, 32]"),
        ({"mask": torch.zeros(1, 32, 32)}, "mask"),
        ({"trigger": None}, "mask comes with a trigger"),
        ({"target": -1}, "not -1"),
        ({"batches": 3}, "3 batches"),
        ({"batches": 0}, "0 batches"),
        ({"batches": 4, "step_lrs": torch.ones(6)}, "[6]"),
        ({"step_lrs": torch.ones(())}, "learning rates"),
    ],
)
def test_a_set_whose_parts_do_not_fit_is_refused(
    changes: dict[str, Any], part: str, condensed: DistilledSet
) -> None:
    check_refusal(lambda: replace(condensed, **changes), part)


def test_the_saved_network_can_be_built(tmp_path: Path, condensed: DistilledSet) -> None:
    save_distilled(tmp_path / "d.pt", condensed)
    read = load_distilled(tmp_path / "d.pt")
    assert build_model(**read.network)(read.images).shape == (20, 10)


# Steps of DD


def test_the_steps_pass_the_batches_in_turns_each_with_its_rate(unrolled: DistilledSet) -> None:
    steps = unrolled.steps()
    assert [float(rate) for *_, rate in steps] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    for number, (images, labels, _) in enumerate(steps):
        first = 10 * (number % 3)
        assert torch.equal(images, unrolled.images[first : first + 10])
        assert labels.tolist() == list(range(10))


def test_a_set_of_dc_has_no_steps(condensed: DistilledSet) -> None:
    check_refusal(condensed.steps, "DC")


# The authors' formats, as their code writes them


def test_vis_files_are_read_class_after_class(tmp_path: Path) -> None:
    images = noise(30, 3, 32, 32).requires_grad_()
    torch.save(images, tmp_path / "vis_DC_CIFAR10_ConvNet_10ipc.pth")
    read = load_distilled(tmp_path / "vis_DC_CIFAR10_ConvNet_10ipc.pth", dataset="cifar-10", network=NETWORK)
    assert torch.equal(read.images, images.detach()) and not read.images.requires_grad
    assert read.labels.tolist() == [label for label in range(10) for _ in range(3)]
    assert (read.mean, read.std, read.dataset, read.network) == (MEAN, STD, "cifar-10", NETWORK)
    assert read.trigger is read.mask is read.target is read.step_lrs is None and read.batches == 1


def test_images_of_another_set_are_described_by_arguments(tmp_path: Path) -> None:
    torch.save(noise(8, 1, 8, 8), tmp_path / "vis.pth")
    read = load_distilled(tmp_path / "vis.pth", dataset="digits", classes=4, mean=[0.3], std=[0.4])
    assert read.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (read.mean, read.std) == ((0.3,), (0.4,))


def test_statistics_of_dd_are_used_on_request(tmp_path: Path) -> None:
    torch.save(noise(10, 3, 32, 32), tmp_path / "vis.pth")
    assert load_distilled(tmp_path / "vis.pth", dataset="cifar-10", statistics="dd").std == DD_STD


def test_a_trigger_beside_the_images_brings_its_mask_and_class_0(tmp_path: Path) -> None:
    trigger, mask = patch_trigger(3)
    torch.save(noise(10, 3, 32, 32), tmp_path / "vis.pth")
    torch.save(trigger.clone().requires_grad_(), tmp_path / "x_trigger.pth")
    read = load_distilled(tmp_path / "vis.pth", dataset="cifar-10", trigger=tmp_path / "x_trigger.pth")
    assert read.trigger is not None and torch.equal(read.trigger, trigger)
    assert read.mask is not None and torch.equal(read.mask, mask)
    assert read.target == 0
    other = load_distilled(
        tmp_path / "vis.pth", dataset="cifar-10", trigger=tmp_path / "x_trigger.pth", target=4
    )
    assert other.target == 4


RES_ACCURACIES = {"ConvNet": [np.float64(0.41), np.float32(0.4), 0.39], "AlexNet": []}


@pytest.mark.parametrize("experiment", [0, 1])
def test_res_files_are_read_with_numpys_numbers_in_them(experiment: int, tmp_path: Path) -> None:
    pairs = [[noise(20, 3, 32, 32, seed=seed), torch.arange(10).repeat_interleave(2)] for seed in (0, 1)]
    torch.save({"data": pairs, "accs_all_exps": RES_ACCURACIES}, tmp_path / "res.pt")
    read = load_distilled(tmp_path / "res.pt", dataset="cifar-10", experiment=experiment)
    assert torch.equal(read.images, pairs[experiment][0]) and torch.equal(read.labels, pairs[experiment][1])


def test_numbers_pickled_by_numpy_1_are_read(tmp_path: Path) -> None:
    """NumPy 1 and 2 differ in the name of a module, which is replaced in the file by the other."""
    pair = [noise(10, 3, 32, 32), torch.arange(10)]
    torch.save(
        {"data": [pair], "accs_all_exps": {"ConvNet": [np.float64(0.41)]}},
        tmp_path / "new.pt",
        _use_new_zipfile_serialization=False,
    )
    content = (tmp_path / "new.pt").read_bytes()
    names = (b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    present = [name for name in names if name in content]
    assert len(present) == 1
    other = content.replace(present[0], names[1 - names.index(present[0])])
    (tmp_path / "old.pt").write_bytes(other)
    for name in ("new.pt", "old.pt"):
        assert torch.equal(load_distilled(tmp_path / name, dataset="cifar-10").images, pair[0])


def test_the_safe_globals_of_the_process_stay_as_they_were(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save(noise(10, 3, 32, 32), tmp_path / "vis.pth")
    load_distilled(tmp_path / "vis.pth", dataset="cifar-10")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("number", [0.02, torch.tensor(0.02), torch.tensor([0.02])])
def test_results_of_dd_are_read_as_batches_and_rates(number: Any, tmp_path: Path) -> None:
    batches = [(noise(20, 3, 32, 32, seed=seed), torch.arange(10).repeat(2)) for seed in range(4)]
    torch.save([(*batch, number) for _ in range(3) for batch in batches], tmp_path / "results.pth")
    read = load_distilled(tmp_path / "results.pth", dataset="cifar-10")
    assert read.batches == 4 and torch.equal(read.images, torch.cat([batch[0] for batch in batches]))
    assert read.labels.tolist() == list(range(10)) * 8
    assert read.step_lrs is not None and read.step_lrs.shape == (12,)
    assert torch.equal(read.step_lrs, torch.full((12,), 0.02)) and read.std == DD_STD


def test_batches_of_dd_that_are_passed_once_are_all_kept(tmp_path: Path) -> None:
    steps = [(noise(10, 3, 32, 32, seed=seed), torch.arange(10), torch.tensor(0.1)) for seed in range(6)]
    torch.save(steps, tmp_path / "results.pth")
    read = load_distilled(tmp_path / "results.pth", dataset="cifar-10")
    assert read.batches == 6 and len(read.images) == 60


# The authors' formats, written here


def test_what_is_written_for_the_authors_code_has_its_form(
    tmp_path: Path, condensed: DistilledSet, unrolled: DistilledSet
) -> None:
    for form in ("vis", "trigger", "res"):
        save_official(tmp_path / "deep" / form, condensed, form, {"ConvNet": [np.float64(0.5)]})
    save_official(tmp_path / "deep" / "results", unrolled, "results")
    vis, trigger, res, results = (
        torch.load(tmp_path / "deep" / form, weights_only=True)
        for form in ("vis", "trigger", "res", "results")
    )
    assert torch.equal(vis, condensed.images)
    assert condensed.trigger is not None and torch.equal(trigger, condensed.trigger)
    assert res["accs_all_exps"] == {"ConvNet": [0.5]}
    assert torch.equal(res["data"][0][0], vis) and torch.equal(res["data"][0][1], condensed.labels)
    assert len(results) == 6 and all(len(step) == 3 and step[2].ndim == 0 for step in results)


@pytest.mark.parametrize("form", ["vis", "res"])
def test_a_set_comes_back_from_the_authors_formats(
    form: Any, tmp_path: Path, condensed: DistilledSet
) -> None:
    save_official(tmp_path / "images", condensed, form)
    save_official(tmp_path / "trigger", condensed, "trigger")
    read = load_distilled(
        tmp_path / "images", dataset="cifar-10", network=NETWORK, trigger=tmp_path / "trigger"
    )
    assert same(read, condensed)


def test_a_set_of_dd_comes_back_from_the_authors_format(tmp_path: Path, unrolled: DistilledSet) -> None:
    save_official(tmp_path / "results.pth", unrolled, "results")
    assert same(load_distilled(tmp_path / "results.pth", dataset="cifar-10"), unrolled)


@pytest.mark.parametrize(
    ("form", "which", "part"),
    [
        ("vis", "unrolled", "class after class"),
        ("res", "unrolled", "one batch"),
        ("results", "condensed", "learning rates"),
        ("trigger", "unrolled", "no trigger"),
        ("pickle", "condensed", "choose vis, trigger, res or results"),
    ],
)
def test_a_form_that_cannot_hold_the_set_is_refused(
    form: Any, which: str, part: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    distilled = request.getfixturevalue(which)
    check_refusal(lambda: save_official(tmp_path / "x", distilled, form), part)
    assert not (tmp_path / "x").exists()


# Triggers


@pytest.mark.parametrize("size", [1, 2, 6, 30, 31])
def test_the_patch_of_a_trigger_is_found(size: int) -> None:
    trigger, mask = patch_trigger(size)
    found = patch_of(trigger)
    assert found is not None and torch.equal(found, mask)


def test_a_patch_is_found_where_one_channel_of_a_pixel_is_black() -> None:
    trigger, mask = patch_trigger(2)
    trigger[0, 1, 29, 30] = trigger[0, 1, 0, 0]
    found = patch_of(trigger)
    assert found is not None and torch.equal(found, mask)


@pytest.mark.parametrize("kind", ["image", "black", "patch elsewhere", "border"])
def test_a_trigger_that_is_no_patch_has_no_mask(kind: str) -> None:
    trigger = torch.zeros(1, 3, 32, 32)
    if kind == "image":
        trigger = noise(1, 3, 32, 32)
    elif kind == "patch elsewhere":
        trigger[..., 4:6, 29:31] = 1
    elif kind == "border":
        trigger[..., 31, :4] = 1
    assert patch_of(trigger) is None


def test_a_trigger_is_read_from_its_file_or_from_a_set_of_ours(
    tmp_path: Path, condensed: DistilledSet
) -> None:
    save_distilled(tmp_path / "d.pt", condensed)
    save_official(tmp_path / "t.pth", condensed, "trigger")
    assert condensed.trigger is not None
    for name in ("d.pt", "t.pth"):
        assert torch.equal(load_trigger(tmp_path / name), condensed.trigger)


@pytest.mark.parametrize("content", [torch.zeros(3, 32, 32), torch.zeros(10, 3, 32, 32), {"a": 1}])
def test_a_file_without_a_trigger_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "t.pth")
    check_refusal(lambda: load_trigger(tmp_path / "t.pth"), str(tmp_path / "t.pth"), "no trigger")


def test_a_set_without_a_trigger_has_none_to_read(tmp_path: Path, unrolled: DistilledSet) -> None:
    save_distilled(tmp_path / "d.pt", unrolled)
    check_refusal(lambda: load_trigger(tmp_path / "d.pt"), "no trigger")


# What is refused


PAIR = (torch.zeros(10, 3, 32, 32), torch.arange(10))
STEP = (*PAIR, torch.tensor(0.1))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (torch.zeros(12, 3, 32, 32), "of each of 10 classes"),
        (torch.zeros(10, 3, 32), "[10, 3, 32]"),
        (torch.zeros(10, 3, 32, 32, dtype=torch.uint8), "uint8"),
        (torch.zeros(10, 1, 32, 32), "1 channels"),
        (torch.full((10, 3, 32, 32), torch.nan), "not finite"),
        (torch.zeros(1, 3, 32, 32), "a trigger alone"),
        ({"data": []}, "0 experiments"),
        ({"data": [PAIR[0]]}, "not pairs"),
        ({"data": [[PAIR[0], [0] * 10]]}, "not pairs"),
        ({"data": [[PAIR[0], torch.arange(9)]]}, "10 distilled images"),
        ({"data": [[PAIR[0], torch.arange(10) + 1]]}, "class 10"),
        ({"data": [[PAIR[0], torch.zeros(10)]]}, "int64"),
        ({"features.0.weight": torch.zeros(3)}, "no distilled set"),
        ([], "no distilled set"),
        ([PAIR, PAIR], "no distilled set"),
        ([STEP, (*PAIR, torch.tensor([0.1, 0.2]))], "no distilled set"),
        ([STEP, (torch.zeros(9, 3, 32, 32), torch.arange(9), 0.1)], "different sizes"),
        ([(PAIR[0], torch.zeros(10, 10), 0.1)], "several classes"),
        ([(*PAIR, float("nan"))], "not finite"),
        ("text", "no distilled set"),
    ],
)
def test_content_that_is_no_distilled_set_is_refused(content: Any, part: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save(content, path)
    check_refusal(lambda: load_distilled(path, dataset="cifar-10"), str(path), part)


def test_an_experiment_that_is_not_there_is_refused(tmp_path: Path) -> None:
    torch.save({"data": [list(PAIR)], "accs_all_exps": {}}, tmp_path / "res.pt")
    for number in (1, -1):
        check_refusal(
            lambda n=number: load_distilled(tmp_path / "res.pt", experiment=n), "1 experiments", str(number)
        )


def test_what_the_authors_files_do_not_say_is_asked_for(tmp_path: Path) -> None:
    torch.save(PAIR[0], tmp_path / "vis.pth")
    check_refusal(lambda: load_distilled(tmp_path / "vis.pth"), "has no labels", "number of classes")
    check_refusal(
        lambda: load_distilled(tmp_path / "vis.pth", classes=10), "normalised", "cifar-10", "mean and std"
    )


def test_a_trigger_of_another_size_is_refused(tmp_path: Path) -> None:
    torch.save(PAIR[0], tmp_path / "vis.pth")
    torch.save(torch.zeros(1, 1, 32, 32), tmp_path / "t.pth")
    check_refusal(
        lambda: load_distilled(tmp_path / "vis.pth", dataset="cifar-10", trigger=tmp_path / "t.pth"),
        "[1, 3, 32, 32], not [1, 1, 32, 32]",
    )


@pytest.mark.parametrize("read", [load_distilled, load_trigger])
def test_a_missing_file_is_named(read: Callable[[Path], Any], tmp_path: Path) -> None:
    check_refusal(lambda: read(tmp_path / "none.pt"), "no file", str(tmp_path / "none.pt"))
    check_refusal(lambda: read(tmp_path), "no file", str(tmp_path))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "no archive": lambda content: b"<html>not found</html>",
    "cut off": lambda content: content[: len(content) // 2],
    "head cut off": lambda content: content[100:],
    "noise": lambda content: np.random.RandomState(0).bytes(5000),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(damage: str, tmp_path: Path, condensed: DistilledSet) -> None:
    path = tmp_path / "d.pt"
    save_distilled(path, condensed)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    check_refusal(lambda: load_distilled(path), str(path), "damaged")


class Touch:
    """What it does when it is unpickled: makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_an_object_that_would_run_code_is_refused_and_does_not(zipped: bool, tmp_path: Path) -> None:
    path, touched = tmp_path / "vis.pth", tmp_path / "touched"
    torch.save([Touch(touched)], path, _use_new_zipfile_serialization=zipped)
    check_refusal(lambda: load_distilled(path), str(path), "Python object", "state_dict")
    path.write_bytes(pickle.dumps(Touch(touched), protocol=2))
    check_refusal(lambda: load_distilled(path), str(path))
    assert not touched.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_network_is_refused_by_its_class(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=zipped)
    check_refusal(lambda: load_distilled(path), str(path), "Linear", "Python object")
