"""Scoring pictures: scores, levels, maps, export, and files that cannot be scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image

from tenfold.pmt_iqa.config import RunConfig
from tenfold.pmt_iqa.datasets import ImageSet, ScoreScale
from tenfold.pmt_iqa.degradations import DISTORTIONS, bundled_photographs
from tenfold.pmt_iqa.export import ScoreOfBytes, export_onnx
from tenfold.pmt_iqa.pixels import normalise
from tenfold.pmt_iqa.scoring import Scorer, artifact, config_from_plain, pictures_in
from tenfold.pmt_iqa.training import make_network, train
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run, plain, save_atomically


@pytest.fixture
def scorer(cpu: Fabric, make_config: Callable[..., RunConfig]) -> Scorer:
    torch.manual_seed(0)
    config = make_config()
    network = make_network(config.model)
    network.start_at(6.0)
    return Scorer(network, config, torch.linspace(0.5, 9.5, 10), ScoreScale(0.0, 10.0, True), fabric=cpu)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def test_a_score_is_the_mean_over_the_crops_on_a_scale_of_100(scorer: Scorer, picture: np.ndarray) -> None:
    score = scorer.score(picture)
    crops = torch.from_numpy(
        np.stack([picture[top : top + 32, left : left + 32] for top in (0, 18) for left in (0, 38)])
    )
    with torch.no_grad():
        output = scorer.network(normalise(crops.permute(0, 3, 1, 2)))
    assert score.raw_score == pytest.approx(float(output.score.mean()), rel=1e-4)
    assert score.score == pytest.approx(10 * score.raw_score, rel=1e-6)
    assert score.spread == pytest.approx(10 * float(output.score.std(correction=0)), rel=1e-2, abs=1e-3)
    assert sum(score.levels) == pytest.approx(1, abs=1e-5)
    expected = output.level_logits.softmax(dim=1).mean(dim=0) @ scorer.level_scores
    assert score.level_score == pytest.approx(10 * float(expected), rel=1e-4)
    assert score.entropy is not None
    assert 0 < score.entropy <= 1


def test_lower_is_better_turns_scores_and_levels_round(scorer: Scorer, picture: np.ndarray) -> None:
    turned = Scorer(
        scorer.network, scorer.config, scorer.level_scores, ScoreScale(0.0, 10.0, False), fabric=scorer.fabric
    )
    first, second = scorer.score(picture), turned.score(picture)
    assert second.score == pytest.approx(100 - first.score)
    assert second.levels == first.levels[::-1]
    assert second.spread == pytest.approx(first.spread)


def test_scores_stay_on_the_scale() -> None:
    scale = ScoreScale(0.0, 10.0, True)
    assert scale.percent(np.array([-3.0, 5.0, 12.0])).tolist() == [0.0, 50.0, 100.0]


def test_a_network_without_level_head_says_nothing_about_levels(
    cpu: Fabric, with_model: Callable[..., RunConfig], picture: np.ndarray
) -> None:
    config = with_model(kind="plain")
    scale = ScoreScale(0.0, 10.0, True)
    score = Scorer(make_network(config.model), config, torch.zeros(10), scale, fabric=cpu).score(picture)
    assert (score.levels, score.level_score, score.entropy) == ((), None, None)


def test_a_file_is_scored_as_its_pixels(scorer: Scorer, picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "photo.png")
    from_file, from_pixels = scorer.score(tmp_path / "photo.png"), scorer.score(picture)
    assert from_file.name == "photo.png"
    assert from_file.score == from_pixels.score


def test_pictures_are_resized_as_the_data_set_was(
    scorer: Scorer, picture: np.ndarray, tmp_path: Path
) -> None:
    resized = Scorer(
        scorer.network, scorer.config, scorer.level_scores, scorer.scale, (40, 44), fabric=scorer.fabric
    )
    smaller = np.array(Image.fromarray(picture).resize((44, 40), Image.Resampling.BILINEAR))
    Image.fromarray(picture).save(tmp_path / "photo.png")
    assert resized.score(picture).score == scorer.score(smaller).score
    assert resized.score(tmp_path / "photo.png").score == scorer.score(smaller).score


def test_the_map_is_the_mean_of_the_crops_over_each_pixel(scorer: Scorer, picture: np.ndarray) -> None:
    found = scorer.quality_map(picture, stride=19)
    assert found.shape == (50, 70)
    corner = scorer.score(picture[:32, :32])
    assert found[0, 0] == pytest.approx(corner.score, rel=1e-4)
    both = [scorer.score(picture[:32, left : left + 32]).score for left in (0, 19)]
    assert found[0, 25] == pytest.approx(np.mean(both), rel=1e-4)
    assert found[0, 69] == pytest.approx(scorer.score(picture[:32, 38:]).score, rel=1e-4)


def test_what_is_no_picture_is_said(scorer: Scorer, tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match="has 20 x 40 pixels, less than the crops of 32"):
        scorer.score(np.zeros((40, 20, 3), dtype=np.uint8))
    with pytest.raises(TenfoldError, match=r"bytes \[H, W, 3\], not float64"):
        scorer.score(np.zeros((40, 40, 3)))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(TenfoldError, match=r"broken.jpg is damaged or no image"):
        scorer.score(tmp_path / "broken.jpg")


def test_a_saved_network_scores_as_the_trained_one(
    images: ImageSet,
    cpu: Fabric,
    make_config: Callable[..., RunConfig],
    make_run: Callable[..., Run],
    tmp_path: Path,
) -> None:
    config = make_config(epochs=1)
    with make_run("trained") as run:
        trained = train(images, config, 0, cpu, run)
        path = run.save_artifact("model.pt", artifact(trained, config, images))
    scorer = Scorer.load(path, cpu)
    assert scorer.config == config
    assert scorer.dataset == "noisy"
    for index, prediction in zip(trained.test.tolist(), trained.predictions.tolist(), strict=True):
        assert scorer.score(images.pixels.picture(index)).raw_score == pytest.approx(prediction, rel=1e-4)


def test_configurations_survive_a_file(make_config: Callable[..., RunConfig]) -> None:
    config = make_config(fixed_weights=(0.3, 0.7))
    assert config_from_plain({**plain(config), "seed": 3}) == config


def test_foreign_files_are_refused(cpu: Fabric, tmp_path: Path) -> None:
    save_atomically(tmp_path / "other.pt", {"weights": torch.zeros(2)})
    with pytest.raises(TenfoldError, match="holds no network of this package"):
        Scorer.load(tmp_path / "other.pt", cpu)
    with pytest.raises(TenfoldError, match="no checkpoint at"):
        Scorer.load(tmp_path / "absent.pt", cpu)


def test_pictures_of_a_folder_are_found_in_order(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("b.png", "a.JPG", "notes.txt", "more/c.bmp"):
        (tmp_path / name).write_bytes(b"")
    assert [path.relative_to(tmp_path).as_posix() for path in pictures_in(tmp_path)] == [
        "a.JPG",
        "b.png",
        "more/c.bmp",
    ]
    assert pictures_in(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    with pytest.raises(TenfoldError, match="no file or folder"):
        pictures_in(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TenfoldError, match="there are no pictures"):
        pictures_in(tmp_path / "empty")


def test_the_bundled_network_scores_out_of_the_box(cpu: Fabric) -> None:
    scorer = Scorer.load(fabric=cpu)
    assert scorer.dataset == "proxy"
    photograph = bundled_photographs()["chelsea"][:256, :256]
    clean = scorer.score(photograph).score
    for kind, (apply, strengths) in DISTORTIONS.items():
        spoiled = apply(photograph, strengths[-1], np.random.default_rng(0))
        assert clean > scorer.score(spoiled).score + 10, kind


def test_an_exported_network_scores_as_the_original(
    scorer: Scorer, picture: np.ndarray, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    export_onnx(scorer, tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    crops = np.stack([picture[:32, left : left + 32].transpose(2, 0, 1) for left in (0, 10, 38)])
    score, levels = session.run(None, {"crops": crops})
    with torch.no_grad():
        expected = ScoreOfBytes(scorer)(torch.from_numpy(crops))
    np.testing.assert_allclose(score, expected[0].numpy(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(levels, expected[1].numpy(), rtol=1e-3, atol=1e-4)
    assert score[0] == pytest.approx(scorer.score(picture[:32, :32]).score, rel=1e-3)
