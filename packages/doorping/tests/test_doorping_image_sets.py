"""Image sets: what is read from files of every form, how it is resized and normalised, and what is refused."""

from __future__ import annotations

import hashlib
import io
import lzma
import pickle
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import InterpolationMode, Resize

from tenfold.doorping import image_sets
from tenfold.doorping.image_files import CIFAR10_CLASSES, read_fashion_mnist_xz, resize
from tenfold.doorping.image_sets import DESCRIPTIONS, ImageSet, load_image_set
from tenfold.shared.logging import TenfoldError


@pytest.fixture(scope="module", autouse=True)
def _forget_what_was_read() -> Iterator[None]:
    """Leave the memory to the tests that follow."""
    yield
    image_sets._loaded.clear()


def noise(count: int, channels: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def some_labels(count: int, classes: int = 10) -> Tensor:
    return (torch.arange(count) * 7 + 3) % classes


def check_refusal(name: str, root: Path, *parts: str, **options: Any) -> None:
    """One sentence that names what is meant."""
    with pytest.raises(TenfoldError) as caught:
        load_image_set(name, root, **options)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


# Folders as torchvision keeps them, with few images. Its integrity checks stay on, and know the sums of these files.


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324


Written = tuple[Tensor, Tensor, Tensor, Tensor]


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, kind: type[datasets.CIFAR10]) -> Written:
    hundred = kind is datasets.CIFAR100
    key, classes = ("fine_labels", 100) if hundred else ("labels", 10)
    counts = {name: 6 for name, _ in kind.train_list} | {name: 4 for name, _ in kind.test_list}
    folder = root / kind.base_folder
    folder.mkdir()
    images, labels = [], []
    for number, (name, count) in enumerate(counts.items()):
        images.append(noise(count, 3, 32, number))
        labels.append((some_labels(count, classes) + 11 * number) % classes)
        content = {"data": images[-1].flatten(1).numpy(), key: labels[-1].tolist()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    meta = folder / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: [str(number) for number in range(classes)]}))
    names = list(counts)
    for attribute, part in (("train_list", names[:-1]), ("test_list", names[-1:])):
        monkeypatch.setattr(kind, attribute, [[name, md5(folder / name)] for name in part])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
    return torch.cat(images[:-1]), torch.cat(labels[:-1]), images[-1], labels[-1]


def write_stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    folder = root / "stl10_binary"
    folder.mkdir()
    written = noise(10, 3, 96), some_labels(10), noise(5, 3, 96, 1), some_labels(5)
    for part, images, labels in (("train", *written[:2]), ("test", *written[2:])):
        (folder / f"{part}_X.bin").write_bytes(images.transpose(2, 3).contiguous().numpy().tobytes())
        (folder / f"{part}_y.bin").write_bytes((labels + 1).to(torch.uint8).numpy().tobytes())
    (folder / "unlabeled_X.bin").write_bytes(b"")
    for attribute in ("train_list", "test_list"):
        names = [name for name, _ in getattr(datasets.STL10, attribute)]
        monkeypatch.setattr(datasets.STL10, attribute, [[name, md5(folder / name)] for name in names])
    return written


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    written = noise(12, 3, 32), some_labels(12), noise(5, 3, 32, 1), some_labels(5)
    known = {}
    for part, images, labels in (("train", *written[:2]), ("test", *written[2:])):
        path = root / f"{part}_32x32.mat"
        numbered_from_1 = torch.where(labels == 0, 10, labels).to(torch.uint8)[:, None]
        scipy.io.savemat(path, {"X": images.permute(2, 3, 1, 0).numpy(), "y": numbered_from_1.numpy()})
        known[part] = ["", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", known)
    return written


def idx(values: Tensor) -> bytes:
    header = np.array([0x800 + values.ndim, *values.shape], dtype=">i4").tobytes()
    return header + values.to(torch.uint8).numpy().tobytes()


def write_fashion_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    written = noise(12, 1, 28), some_labels(12), noise(6, 1, 28, 1), some_labels(6)
    for part, images, labels in (("train", *written[:2]), ("t10k", *written[2:])):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images[:, 0]))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return written


def write_fashion_mnist_xz(root: Path) -> Written:
    folder = root / "fashion_mnist"
    folder.mkdir()
    written = noise(12, 1, 28), some_labels(12), noise(6, 1, 28, 1), some_labels(6)
    contents = {
        f"train-images-{part}-of-6.idx3-ubyte.xz": written[0][2 * part - 2 : 2 * part, 0]
        for part in range(1, 7)
    }
    contents |= {"train-labels.idx1-ubyte.xz": written[1], "test-images.idx3-ubyte.xz": written[2][:, 0]}
    for name, values in (contents | {"test-labels.idx1-ubyte.xz": written[3]}).items():
        (folder / name).write_bytes(lzma.compress(idx(values)))
    return written


WRITERS: dict[str, Callable[[Path, pytest.MonkeyPatch], Written]] = {
    "fashion-mnist": write_fashion_mnist,
    "cifar-10": lambda root, patch: write_cifar(root, patch, datasets.CIFAR10),
    "cifar-100": lambda root, patch: write_cifar(root, patch, datasets.CIFAR100),
    "stl-10": write_stl10,
    "svhn": write_svhn,
}
FOLDERS = {
    "fashion-mnist": "FashionMNIST",
    "cifar-10": "cifar-10-batches-py",
    "cifar-100": "cifar-100-python",
    "stl-10": "stl10_binary",
    "svhn": "train_32x32.mat",
}


def as_pil_resizes(images: Tensor, mode: InterpolationMode) -> Tensor:
    """One image after another, as torchvision's Resize does with images of PIL."""
    pictures = (Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()) for image in images)
    pixels = torch.stack(
        [torch.from_numpy(np.array(Resize((32, 32), mode)(picture))) for picture in pictures]
    )
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_is_read_as_torchvision_keeps_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, train_labels, test, test_labels = WRITERS[name](tmp_path, monkeypatch)
    read = load_image_set(name, tmp_path)
    for images, expected in ((read.train_images, train), (read.test_images, test)):
        assert images.dtype == torch.uint8 and images.is_contiguous()
        if expected.shape[-1] != 32:
            expected = as_pil_resizes(expected, InterpolationMode.BILINEAR)
        # Processors without AVX2 round once where PIL rounds twice.
        assert int((images.int() - expected.int()).abs().max()) <= (
            1 if name in ("fashion-mnist", "stl-10") else 0
        )
    assert read.train_labels.dtype == read.test_labels.dtype == torch.int64
    assert torch.equal(read.train_labels, train_labels) and torch.equal(read.test_labels, test_labels)
    assert (read.name, read.classes) == (name, DESCRIPTIONS[name].classes)
    assert (read.channels, read.image_size, read.white) == (1 if name == "fashion-mnist" else 3, 32, 255)


PRINTED = {
    ("fashion-mnist", "dc"): ((0.2861,), (0.3530,)),
    ("fashion-mnist", "dd"): ((0.2861,), (0.3530,)),
    ("cifar-10", "dc"): ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ("cifar-10", "dd"): ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    ("cifar-100", "dc"): ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    ("cifar-100", "dd"): ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    ("stl-10", "dc"): ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ("stl-10", "dd"): ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    ("svhn", "dc"): ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    ("svhn", "dd"): ((0.43791, 0.44398, 0.47293), (0.19803, 0.20102, 0.19704)),
}


@pytest.mark.parametrize(("name", "statistics"), PRINTED)
def test_a_set_is_normalised_with_the_authors_statistics(
    name: str, statistics: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](tmp_path, monkeypatch)
    read = load_image_set(name, tmp_path, statistics=statistics)
    assert (read.mean, read.std) == PRINTED[name, statistics]
    mean, std = (torch.tensor(values)[:, None, None] for values in PRINTED[name, statistics])
    pixels = read.test_images.float() / 255
    torch.testing.assert_close(read.test()[0], (pixels - mean) / std)
    torch.testing.assert_close(read.denormalise(read.test()[0]), pixels)


# Resizing


@pytest.mark.parametrize("shape", [(300, 1, 28), (40, 3, 96)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_resized_as_pil_does_it(shape: tuple[int, int, int], interpolation: Any) -> None:
    images = noise(*shape)
    ours = resize(images, 32, interpolation)
    difference = (ours.int() - as_pil_resizes(images, InterpolationMode(interpolation)).int()).abs()
    assert int(difference.max()) <= 1
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert float((difference > 0).float().mean()) <= (0 if interpolation == "bilinear" else 0.003)


def test_dd_enlarges_fashion_mnist_with_cubics_and_dc_with_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, *_ = write_fashion_mnist(tmp_path, monkeypatch)
    cubic = load_image_set("fashion-mnist", tmp_path, statistics="dd").train_images
    linear = load_image_set("fashion-mnist", tmp_path, statistics="dc").train_images
    assert torch.equal(cubic, resize(train, 32, "bicubic"))
    assert torch.equal(linear, resize(train, 32, "bilinear"))
    assert float((cubic.float() - linear.float()).abs().mean()) > 2


def test_stl_10_is_reduced_alike_for_dc_and_dd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stl10(tmp_path, monkeypatch)
    sets = [load_image_set("stl-10", tmp_path, statistics=statistics) for statistics in ("dc", "dd")]
    assert torch.equal(sets[0].train_images, sets[1].train_images)


# FashionMNIST in xz


def test_fashion_mnist_is_read_from_xz(tmp_path: Path) -> None:
    train, train_labels, test, test_labels = write_fashion_mnist_xz(tmp_path)
    read = load_image_set("fashion-mnist", tmp_path)
    assert torch.equal(read.train_images, resize(train, 32)) and torch.equal(read.train_labels, train_labels)
    assert torch.equal(read.test_images, resize(test, 32)) and torch.equal(read.test_labels, test_labels)
    assert read.train_labels.dtype == torch.int64


def test_torchvisions_fashion_mnist_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion_mnist_xz(tmp_path)
    train, *_ = write_fashion_mnist(tmp_path, monkeypatch)
    raw = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    raw.write_bytes(idx(255 - train[:, 0]))
    assert torch.equal(load_image_set("fashion-mnist", tmp_path).train_images, resize(255 - train, 32))


XZ_FILES = ["train-images-4-of-6.idx3-ubyte.xz", "train-labels.idx1-ubyte.xz", "test-images.idx3-ubyte.xz"]


@pytest.mark.parametrize("name", XZ_FILES)
def test_a_missing_file_in_xz_is_named(name: str, tmp_path: Path) -> None:
    write_fashion_mnist_xz(tmp_path)
    (tmp_path / "fashion_mnist" / name).unlink()
    check_refusal("fashion-mnist", tmp_path, str(tmp_path / "fashion_mnist" / name), "--profile quick")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "no archive": lambda content: b"<html>not found</html>",
    "cut off": lambda content: content[: len(content) // 2],
    "archive of nothing": lambda content: lzma.compress(b""),
    "archive of something else": lambda content: lzma.compress(b"something else, long enough for a header"),
    "images cut off": lambda content: lzma.compress(lzma.decompress(content)[:-100]),
    "block spoilt": lambda content: content[:40] + b"\xff" * 40 + content[80:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_in_xz_is_named(damage: str, tmp_path: Path) -> None:
    write_fashion_mnist_xz(tmp_path)
    path = tmp_path / "fashion_mnist" / "test-images.idx3-ubyte.xz"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    check_refusal("fashion-mnist", tmp_path, str(path), "damaged")


@pytest.mark.parametrize(
    ("labels", "part"), [(some_labels(11), "12 images and 11 labels"), (torch.full((12,), 10), "0 to 9")]
)
def test_labels_that_do_not_fit_the_images_are_refused(labels: Tensor, part: str, tmp_path: Path) -> None:
    write_fashion_mnist_xz(tmp_path)
    (tmp_path / "fashion_mnist" / "train-labels.idx1-ubyte.xz").write_bytes(lzma.compress(idx(labels)))
    check_refusal("fashion-mnist", tmp_path, "damaged", part)


def test_a_failed_read_is_tried_again(tmp_path: Path) -> None:
    check_refusal("fashion-mnist", tmp_path, "not found")
    write_fashion_mnist_xz(tmp_path)
    assert len(load_image_set("fashion-mnist", tmp_path).train_labels) == 12


# What is missing or damaged


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_set_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    parts = (
        DESCRIPTIONS[name].title,
        str(tmp_path / FOLDERS[name]),
        "--download",
        "--data-root",
        "--profile quick",
    )
    check_refusal(name, tmp_path, *parts)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_missing_fashion_mnist_was_looked_for_in_both_places(tmp_path: Path) -> None:
    check_refusal("fashion-mnist", tmp_path, str(tmp_path / "FashionMNIST"), str(tmp_path / "fashion_mnist"))


def test_missing_sheets_are_refused_without_an_offer_to_fetch_them(tmp_path: Path) -> None:
    check_refusal("cifar-10-mosaic", tmp_path, str(tmp_path / "cifar10"), "--profile quick")
    with pytest.raises(TenfoldError) as caught:
        load_image_set("cifar-10-mosaic", tmp_path, download=True)
    assert "--download" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar-10", "cifar-10-batches-py/data_batch_3"),
        ("cifar-10", "cifar-10-batches-py/batches.meta"),
        ("cifar-100", "cifar-100-python/test"),
        ("stl-10", "stl10_binary/test_y.bin"),
        ("svhn", "train_32x32.mat"),
        ("svhn", "test_32x32.mat"),
        ("fashion-mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
        ("fashion-mnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte"),
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_or_incomplete_set_is_refused(
    name: str, file: str, missing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](tmp_path, monkeypatch)
    path = tmp_path / file
    content = path.read_bytes()
    path.unlink()
    if not missing:
        path.write_bytes(content[:-3])
    elif FOLDERS[name] == file:
        return check_refusal(name, tmp_path, "not found", "--download")
    return check_refusal(name, tmp_path, DESCRIPTIONS[name].title, str(tmp_path / FOLDERS[name]), "damaged")


def test_a_spoilt_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its MD5 is wrong, so what it would do is not done."""
    write_cifar(tmp_path, monkeypatch, datasets.CIFAR10)

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Touch()))
    check_refusal("cifar-10", tmp_path, "damaged")
    assert not (tmp_path / "touched").exists()


def test_what_cannot_be_fetched_is_told_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = (tmp_path / "nowhere.mat").as_uri()
    monkeypatch.setattr(
        datasets.SVHN,
        "split_list",
        {part: [nowhere, f"{part}_32x32.mat", None] for part in ("train", "test")},
    )
    check_refusal(
        "svhn", tmp_path, "SVHN could not be fetched", "nowhere.mat", "--profile quick", download=True
    )


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address, on this machine, that its files are fetched from."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_missing_set_is_fetched_on_request_alone(
    tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    train, *_ = write_svhn(folder, monkeypatch)
    known = {
        part: [f"{address}/{name}", name, checksum]
        for part, (_, name, checksum) in datasets.SVHN.split_list.items()
    }
    monkeypatch.setattr(datasets.SVHN, "split_list", known)
    root = tmp_path / "root"
    check_refusal("svhn", root, "not found")
    assert not root.exists()
    assert torch.equal(load_image_set("svhn", root, download=True).train_images, train)
    assert torch.equal(load_image_set("svhn", root).train_images, train)


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(
        TenfoldError, match=r"^unknown data set 'mnist'; choose one of digits, fashion-mnist, "
    ):
        load_image_set("mnist")


def test_unknown_statistics_are_refused() -> None:
    with pytest.raises(TenfoldError, match="unknown statistics 'dm'; choose dc or dd"):
        load_image_set("digits", statistics="dm")  # type: ignore[arg-type]


# Reading once


def test_a_set_is_read_once_for_a_root_and_its_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_fashion_mnist_xz(tmp_path / folder)
    first = load_image_set("fashion-mnist", tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert load_image_set("fashion-mnist", Path("a"), download=True) is first
    assert load_image_set("fashion-mnist", tmp_path / "b") is not first
    assert load_image_set("fashion-mnist", tmp_path / "a", statistics="dd") is not first


# A share of the training images


def as_rows(images: Tensor, labels: Tensor) -> list[bytes]:
    return [
        bytes([label]) + image.numpy().tobytes() for image, label in zip(images, labels.tolist(), strict=True)
    ]


def test_a_share_is_a_random_part_of_the_training_images_with_their_labels(digits: ImageSet) -> None:
    part = digits.subset(0.3, seed=0)
    assert len(part.train_images) == len(part.train_labels) == 389  # floor(0.3 x 1297)
    whole = as_rows(digits.train_images, digits.train_labels)
    chosen = as_rows(part.train_images, part.train_labels)
    places = iter(whole)
    assert all(row in places for row in chosen), "in the order of the set, none twice"
    assert part.test_images is digits.test_images and part.mean == digits.mean
    assert part.train_labels.bincount(minlength=10).min() > 20  # 39 on average


def test_a_share_repeats_with_its_seed_whatever_the_global_generator_does(digits: ImageSet) -> None:
    first = digits.subset(0.5, seed=0).train_images
    state = torch.get_rng_state()
    torch.rand(3)
    before = torch.get_rng_state()
    assert torch.equal(digits.subset(0.5, seed=0).train_images, first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(digits.subset(0.5, seed=1).train_images, first)
    torch.set_rng_state(state)


def test_the_whole_share_is_the_whole_set(digits: ImageSet) -> None:
    whole = digits.subset(1.0, seed=3)
    assert torch.equal(whole.train_images, digits.train_images)
    assert torch.equal(whole.train_labels, digits.train_labels)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, 0.0001, float("nan")])
def test_a_share_without_images_or_of_more_than_all_is_refused(share: float, digits: ImageSet) -> None:
    with pytest.raises(TenfoldError, match="of 1297 training images leaves nothing; choose one above 0"):
        digits.subset(share, seed=0)


# CIFAR-10 in sheets, of which a small part is written here


def write_sheets(root: Path) -> dict[str, Any]:
    """All 50 sheets with the same 1000 images but for one pixel of the first, which counts the sheets."""
    folder = root / "cifar10"
    folder.mkdir()
    tiles = noise(1000, 3, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    for number in range(51):
        tiles[0, :, 0, 0] = number
        sheet = tiles.view(25, 40, 3, 32, 32).permute(0, 3, 1, 4, 2).reshape(800, 1280, 3)
        name = f"train_{number:02}.webp" if number < 50 else "test_exact_0000_0999.webp"
        Image.fromarray(sheet.numpy()).save(folder / name, lossless=True, quality=0, method=0)
    labels = torch.arange(50_000) // 1000 % 10
    np.save(folder / "train_labels.npy", labels.to(torch.uint8).numpy())
    np.save(folder / "test_exact_labels.npy", some_labels(1000).to(torch.uint8).numpy())
    with tarfile.open(folder / "test_jpeg_q75.tar.xz", "w:xz") as archive:
        for number, name in enumerate(reversed(CIFAR10_CLASSES)):
            content = io.BytesIO()
            Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(content, "JPEG")
            member = tarfile.TarInfo(f"test/{name}/0000.jpg")
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)
    return {"tiles": tiles, "labels": labels}


@pytest.fixture(scope="module")
def written_sheets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("sheets")
    return root, write_sheets(root)


def test_sheets_are_cut_into_their_images_row_by_row(written_sheets: tuple[Path, dict[str, Any]]) -> None:
    root, written = written_sheets
    read = load_image_set("cifar-10-mosaic", root)
    assert read.train_images.shape == (50_000, 3, 32, 32) and torch.equal(
        read.train_labels, written["labels"]
    )
    assert read.train_images[::1000, 0, 0, 0].tolist() == list(range(50))
    assert torch.equal(read.train_images[-999:], written["tiles"][1:])
    assert torch.equal(read.test_images, written["tiles"])
    assert torch.equal(read.test_labels, some_labels(1000))


def test_jpegs_have_the_class_of_their_folder(written_sheets: tuple[Path, dict[str, Any]]) -> None:
    images, labels = load_image_set("cifar-10-mosaic", written_sheets[0]).further_tests["jpeg"]
    assert images.shape == (10, 3, 32, 32) and images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert labels.tolist() == list(range(9, -1, -1))
    assert images[:, 0].float().mean(dim=(1, 2)).tolist() == pytest.approx([20 * n for n in range(10)], abs=4)


def small_picture(content: bytes) -> bytes:
    """A good picture, but no sheet of images."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "WEBP")
    return picture.getvalue()


SHEET_DAMAGE = {**DAMAGE, "of another size": small_picture}


@pytest.mark.parametrize(
    "name",
    ["train_01.webp", "test_exact_0000_0999.webp", "train_labels.npy", "test_jpeg_q75.tar.xz"],
)
@pytest.mark.parametrize("damage", ["empty", "no archive", "cut off", "of another size", "missing"])
def test_damaged_sheets_are_named(
    name: str, damage: str, tmp_path: Path, written_sheets: tuple[Path, dict[str, Any]]
) -> None:
    (tmp_path / "cifar10").mkdir()
    for path in (written_sheets[0] / "cifar10").iterdir():
        (tmp_path / "cifar10" / path.name).symlink_to(path)
    path = tmp_path / "cifar10" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(SHEET_DAMAGE[damage](content))
    check_refusal("cifar-10-mosaic", tmp_path, str(path), "lacks" if damage == "missing" else "damaged")


# Real data


@pytest.fixture(scope="module")
def fashion_mnist(data_root: Path) -> Path:
    if not (data_root / "fashion_mnist").is_dir():
        pytest.skip("needs FashionMNIST in xz")
    return data_root


def test_the_real_fashion_mnist_has_the_published_counts_and_statistics(fashion_mnist: Path) -> None:
    (train, train_labels), (test, test_labels) = read_fashion_mnist_xz(fashion_mnist / "fashion_mnist")
    assert train.shape == (60_000, 1, 28, 28) and test.shape == (10_000, 1, 28, 28)
    assert train_labels.bincount().tolist() == [6000] * 10 and test_labels.bincount().tolist() == [1000] * 10
    pixels = train.double() / 255
    assert pixels.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert pixels.std().item() == pytest.approx(0.3530, abs=5e-5)


def test_the_real_fashion_mnist_is_normalised_at_32_pixels(fashion_mnist: Path) -> None:
    read = load_image_set("fashion-mnist", fashion_mnist)
    assert read.train_images.shape == (60_000, 1, 32, 32) and read.test_images.shape == (10_000, 1, 32, 32)
    some = read.normalise(read.train_images[::7])  # of all classes, which take turns
    assert abs(float(some.mean())) < 0.02 and abs(float(some.std()) - 1) < 0.05


@pytest.fixture(scope="module")
def mosaic(data_root: Path) -> ImageSet:
    if not (data_root / "cifar10" / "train_labels.npy").exists():
        pytest.skip("needs the sheets of CIFAR-10")
    return load_image_set("cifar-10-mosaic", data_root)


def test_the_real_sheets_have_the_published_counts_and_statistics(mosaic: ImageSet) -> None:
    assert mosaic.train_images.shape == (50_000, 3, 32, 32) and mosaic.test_images.shape == (1000, 3, 32, 32)
    assert mosaic.train_labels.bincount().tolist() == [5000] * 10
    assert mosaic.train_labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    images, labels = mosaic.further_tests["jpeg"]
    assert images.shape == (10_000, 3, 32, 32) and labels.bincount().tolist() == [1000] * 10
    counts = torch.stack(
        [channel.flatten().bincount(minlength=256) for channel in mosaic.train_images.unbind(1)]
    )
    values = torch.arange(256).double() / 255
    shares = counts.double() / counts.sum(dim=1, keepdim=True)
    means = shares @ values
    stds = (shares @ values.square() - means.square()).sqrt()
    torch.testing.assert_close(means, torch.tensor([0.49140, 0.48216, 0.44653]).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(stds, torch.tensor([0.24703, 0.24349, 0.26159]).double(), rtol=0, atol=1e-5)


def test_the_real_exact_test_images_are_found_among_the_jpegs_of_their_class(mosaic: ImageSet) -> None:
    images, labels = mosaic.further_tests["jpeg"]
    for image, label in zip(mosaic.test_images[:10].float(), mosaic.test_labels[:10].tolist(), strict=True):
        error = (images[labels == label].float() - image).square().mean(dim=(1, 2, 3)).min()
        assert float(error) < 255**2 / 10**2.4  # 24 dB
