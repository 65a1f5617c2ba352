"""Judging pictures with a trained network: scores, what is uncertain about them, and where quality is low."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tenfold.pmt_iqa.backbones import load_strictly
from tenfold.pmt_iqa.config import JudgeConfig, ModelConfig, RunConfig, TrainConfig
from tenfold.pmt_iqa.datasets import ImageSet, ScoreScale
from tenfold.pmt_iqa.pixels import Picture, PixelStore, judging_crops, read_picture
from tenfold.pmt_iqa.training import Judged, Network, Trained, judge_crops, make_network
from tenfold.shared.accelerator import AcceleratorConfig, channels_last, make_fabric
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint, plain

FORMAT = "tenfold-pmt-iqa"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jp2")


@dataclass(frozen=True)
class Score:
    """What is said about one picture."""

    name: str
    score: float
    """From 0 (worst) to 100 (best), on the scale of the data set that was learned."""
    raw_score: float
    """In the units of that data set."""
    spread: float
    """Standard deviation of the score between crops, in points of 100."""
    levels: tuple[float, ...]
    """Probability of each quality level, the worst first; empty without a level head."""
    level_score: float | None
    """Expected score under these probabilities, 0 to 100."""
    entropy: float | None
    """Of these probabilities as a share of the largest there can be: 0 is certain, 1 knows nothing."""

    def row(self) -> dict[str, Any]:
        """Flat, for a table."""
        levels = {f"level_{number}": value for number, value in enumerate(self.levels)}
        return {**{name: value for name, value in vars(self).items() if name != "levels"}, **levels}


class Scorer:
    """Scores pictures.

    Example::

        scorer = Scorer.load("runs/pmt-iqa/livec/.../model.pt")
        print(scorer.score("photo.jpg").score)

    Args:
        network: trained.
        config: of its training.
        level_scores: score that stands for each level, [K].
        scale: of the data set that was learned.
        resize: height and width that its images were given, if any.
        dataset: its name.
        fabric: launched; by default one on the best device.
    """

    def __init__(
        self,
        network: Network,
        config: RunConfig,
        level_scores: Tensor,
        scale: ScoreScale,
        resize: tuple[int, int] | None = None,
        dataset: str = "",
        fabric: Fabric | None = None,
    ) -> None:
        if fabric is None:
            fabric = make_fabric(AcceleratorConfig())
            fabric.launch()
        self.fabric, self.config, self.level_scores = fabric, config, level_scores
        self.scale, self.resize, self.dataset = scale, resize, dataset
        self.network: Network = channels_last(network.to(fabric.device), fabric.device).eval()

    @classmethod
    def load(cls, path: Path | str | None = None, fabric: Fabric | None = None) -> Scorer:
        """A scorer from a run's ``model.pt``; by default the one of the package, which learned a proxy, not opinions.

        Raises:
            TenfoldError: the file is missing, damaged, or holds no network of this package.
        """
        if path is None:
            with resources.as_file(
                resources.files("tenfold.pmt_iqa").joinpath("weights/proxy.pt")
            ) as bundled:
                return cls.load(bundled, fabric)
        content = load_checkpoint(Path(path))
        if content.get("format") != FORMAT:
            raise TenfoldError(f"{path} holds no network of this package; give the model.pt of a run")
        config = config_from_plain(content["config"])
        network = make_network(replace(config.model, pretrained=False))
        load_strictly(network, content["network"])
        resize = None if content["resize"] is None else (content["resize"][0], content["resize"][1])
        scale = ScoreScale(**content["scale"])
        return cls(network, config, content["level_scores"], scale, resize, content["dataset"], fabric)

    def score(self, picture: Path | str | Picture) -> Score:
        """Judge one picture.

        Args:
            picture: file, or RGB bytes [H, W, 3].

        Raises:
            TenfoldError: the file is damaged, or the picture is smaller than a crop.
        """
        store, name = self._store(picture)
        size, judge = self.config.train.crop_size, self.config.judge
        where = judging_crops(torch.tensor([0]), store.sizes, size, judge.crops, judge.crop_rule, [name])
        judged = self._judged(store, where, judge.crops)
        crops = judged.crop_scores[0].double().numpy() * 100 / (self.scale.high - self.scale.low)
        raw = float(judged.scores[0])
        levels = judged.levels[0].double().numpy()
        if not len(levels):
            return Score(name, float(self.scale.percent(raw)), raw, float(crops.std()), (), None, None)
        expected = float(self.scale.percent(float(levels @ self.level_scores.double().numpy())))
        entropy = float(-(levels * np.log(np.maximum(levels, 1e-12))).sum() / np.log(len(levels)))
        ordered = tuple(levels.tolist()) if self.scale.higher_is_better else tuple(levels[::-1].tolist())
        return Score(
            name, float(self.scale.percent(raw)), raw, float(crops.std()), ordered, expected, entropy
        )

    def quality_map(self, picture: Path | str | Picture, stride: int | None = None) -> NDArray[np.float64]:
        """Where quality is high and low: every pixel's mean over the crops that cover it, 0 to 100, [H, W].

        Args:
            picture: file, or RGB bytes [H, W, 3].
            stride: between crops; by default a quarter of their side.

        Raises:
            TenfoldError: the file is damaged, the picture is smaller than a crop, or the stride is below 1.
        """
        if stride is not None and stride < 1:
            raise TenfoldError(f"crops are at least 1 pixel apart, not {stride}")
        store, _ = self._store(picture)
        size = self.config.train.crop_size
        height, width = store.sizes[0].tolist()
        step = stride or max(size // 4, 1)
        tops, lefts = (_places(side, size, step) for side in (height, width))
        where = torch.cartesian_prod(torch.tensor(tops), torch.tensor(lefts))
        zeros = torch.zeros(len(where), 1, dtype=torch.int64)
        judged = self._judged(store, torch.cat((zeros, where, zeros), dim=1), len(where))
        scores = self.scale.percent(judged.crop_scores[0].double().numpy())
        sums, counts = np.zeros((height, width)), np.zeros((height, width))
        for (top, left), score in zip(where.tolist(), scores, strict=True):
            sums[top : top + size, left : left + size] += score
            counts[top : top + size, left : left + size] += 1
        return sums / counts

    def _store(self, picture: Path | str | Picture) -> tuple[PixelStore, str]:
        if isinstance(picture, np.ndarray):
            if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
                raise TenfoldError(f"a picture is bytes [H, W, 3], not {picture.dtype} {list(picture.shape)}")
            name, pixels = "picture", picture
            if self.resize is not None:
                size = (self.resize[1], self.resize[0])
                pixels = np.array(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
        else:
            name, pixels = Path(picture).name, read_picture(Path(picture), self.resize)
        store = PixelStore.of([pixels])
        store.check_size(self.config.train.crop_size, [name])
        return store, name

    def _judged(self, store: PixelStore, where: Tensor, crops: int) -> Judged:
        device_store = store.to(self.fabric.device)
        return judge_crops(
            self.network, self.config, self.fabric, device_store, where, self.level_scores, crops
        )


def artifact(trained: Trained, config: RunConfig, images: ImageSet) -> dict[str, Any]:
    """What a run's ``model.pt`` holds: tensors and plain values."""
    return {
        "format": FORMAT,
        "config": plain(config),
        "network": {
            name: value.detach().cpu().contiguous() for name, value in trained.network.state_dict().items()
        },
        "level_scores": trained.level_scores,
        "scale": plain(images.scale),
        "resize": None if images.resize is None else list(images.resize),
        "dataset": images.name,
    }


def config_from_plain(content: Mapping[str, Any]) -> RunConfig:
    """The inverse of :func:`tenfold.shared.runs.plain` for a run's configuration."""
    own = dict(content)
    model, train, judge = (dict(own.pop(name)) for name in ("model", "train", "judge"))
    model["scales"], train["fixed_weights"] = tuple(model["scales"]), tuple(train["fixed_weights"])
    own.pop("seed", None)
    return RunConfig(
        **own, model=ModelConfig(**model), train=TrainConfig(**train), judge=JudgeConfig(**judge)
    )


def pictures_in(path: Path) -> list[Path]:
    """A file, or all pictures below a folder in order of their names.

    Raises:
        TenfoldError: there is nothing.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise TenfoldError(f"there is no file or folder {path}")
    found = sorted(_walk(path))
    if not found:
        raise TenfoldError(f"there are no pictures ({', '.join(PICTURE_SUFFIXES)}) in {path}")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if name.lower().endswith(PICTURE_SUFFIXES))


def _places(side: int, size: int, step: int) -> list[int]:
    """Starts of crops that cover a side from end to end."""
    places = list(range(0, side - size + 1, step))
    return places if places[-1] == side - size else [*places, side - size]
