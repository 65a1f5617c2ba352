"""One epoch of PMT-IQA's training: crops of images that were decoded once, against decoding a file for every crop.

The reference opens and decodes the file for each crop, mirrors, crops and normalises it with PIL and torchvision, as
the authors' loader does. Both sides make the same crops, which is checked before timing. Without the network, what is
compared is torchvision, the named peer; with it, the usual way of writing an epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torchvision.transforms import functional

from tenfold.pmt_iqa.backbones import MEAN, STD
from tenfold.pmt_iqa.model import build_model
from tenfold.pmt_iqa.pixels import PixelStore, decode, normalise, random_crops

IMAGES, CROP, CROPS_PER_IMAGE, BATCH = 24, 224, 4, 48
FORMS: dict[str, tuple[tuple[int, int], tuple[int, int] | None]] = {
    "LIVE-C": ((500, 500), None),
    "KonIQ-10k": ((768, 1024), (384, 512)),
}
"""Height and width of the files, and what they are resized to."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """JPEG files of each form."""
    rng = np.random.default_rng(0)
    found: dict[str, list[Path]] = {}
    for form, (size, _) in FORMS.items():
        folder = tmp_path_factory.mktemp(form)
        found[form] = [folder / f"{number}.jpg" for number in range(IMAGES)]
        for path in found[form]:
            smooth = gaussian_filter(rng.normal(128, 400, (*size, 3)), (3, 3, 0))
            Image.fromarray(np.clip(smooth, 0, 255).astype(np.uint8)).save(path, quality=92)
    return found


def drawn(sizes: Tensor) -> Tensor:
    """Where the crops of an epoch are."""
    generator = torch.Generator().manual_seed(0)
    return random_crops(torch.arange(IMAGES), sizes, CROP, CROPS_PER_IMAGE, generator)


def one_file_for_each_crop(paths: list[Path], resize: tuple[int, int] | None, where: Tensor) -> Tensor:
    """A batch, crop by crop."""
    crops = []
    for image, top, left, mirrored in where.tolist():
        with Image.open(paths[image]) as file:
            picture = file.convert("RGB")
        if resize is not None:
            picture = picture.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
        if mirrored:  # before the crop, as the authors do: the mirrored column is counted from the other side
            picture, left = functional.hflip(picture), picture.width - CROP - left
        picture = functional.crop(picture, top, left, CROP, CROP)
        crops.append(functional.normalize(functional.to_tensor(picture), MEAN, STD))
    return torch.stack(crops)


def make_epoch(
    load: Callable[[Tensor], Tensor], where: Tensor, network: torch.nn.Module | None
) -> Callable[[], Tensor]:
    """All batches of an epoch, with a step of the network on each or without."""

    def epoch() -> Tensor:
        total = torch.zeros(())
        for batch in where.split(BATCH):
            crops = load(batch)
            if network is None:
                total += crops[:, :, 0, 0].sum()
                continue
            loss = network(crops).score.abs().mean()
            network.zero_grad()
            loss.backward()
            total += loss.detach()
        return total

    return epoch


@pytest.mark.parametrize(
    ("form", "with_network", "needed"),
    [("KonIQ-10k", False, 5), ("LIVE-C", False, 3), ("KonIQ-10k", True, 1)],
    ids=["crops of KonIQ", "crops of LIVE", "KonIQ with the network"],
)
def test_an_epoch_against_decoding_for_every_crop(
    benchmark: BenchmarkFixture,
    measure_ratio: Callable[..., Any],
    form: str,
    with_network: bool,
    needed: float,
    files: dict[str, list[Path]],
) -> None:
    torch.set_num_threads(1)
    paths, resize = files[form], FORMS[form][1]
    started = time.perf_counter()
    store: PixelStore = decode(paths, resize, threads=1)
    decode_seconds = time.perf_counter() - started
    where = drawn(store.sizes)

    def from_store(batch: Tensor) -> Tensor:
        return normalise(store.crop(batch, CROP))

    reference = one_file_for_each_crop(paths, resize, where[:BATCH])
    torch.testing.assert_close(from_store(where[:BATCH]), reference, rtol=1e-4, atol=1e-5)
    network = build_model("small").to(memory_format=torch.channels_last) if with_network else None
    ours = make_epoch(from_store, where, network)
    theirs = make_epoch(lambda batch: one_file_for_each_crop(paths, resize, batch), where, network)
    what = "epoch of the small network" if with_network else "crops of an epoch"
    measured = measure_ratio(
        ours,
        theirs,
        rounds=3 if with_network else 5,
        best_of=3,
        reference=f"{what}, files of {form}'s form decoded for every crop, PIL and torchvision",
        peer=None if with_network else "torchvision",
        unit=f"epochs of {IMAGES * CROPS_PER_IMAGE} crops of {CROP} pixels from {IMAGES} JPEG files",
        decode_once_seconds=decode_seconds,
    )
    benchmark.extra_info["crops_per_second"] = IMAGES * CROPS_PER_IMAGE / min(measured.seconds)
    assert measured.median > needed
