"""The feel of drummers: what it learns, what it predicts of unseen pieces, and what humanised drumrolls keep."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tenfold.drum_gpt.corpus import bundled_midi, bundled_pieces, groove_midi
from tenfold.drum_gpt.encoding import (
    DRUMS,
    MEASURE,
    Hit,
    Performance,
    drumroll_to_midi,
    midi_bytes,
    midi_to_drumroll,
    read_midi,
)
from tenfold.drum_gpt.performance import (
    Feel,
    LogLikelihood,
    Table,
    fit_feels,
    humanise,
    played_hits,
    write_feels,
)
from tenfold.shared.logging import TenfoldError

EVERYTHING = "oooooo\n"
STYLES = ("afrobeat", "funk", "hiphop", "jazz", "latin", "neworleans", "rock", "soul")


Unseen = dict[str, list[Performance]]
"""Performances by style."""


@pytest.fixture(scope="module")
def unseen() -> Unseen:
    """Performances of the bundle in 4/4 that no feel was learnt from."""
    pieces = {piece.name: piece for piece in bundled_pieces()}
    found: Unseen = {}
    for name, content in bundled_midi().items():
        if name in pieces and pieces[name].split != "train" and pieces[name].metre == "4-4":
            found.setdefault(pieces[name].style, []).append(read_midi(content))
    return found


def everything(unseen: Unseen) -> list[Performance]:
    return [performance for performances in unseen.values() for performance in performances]


def performance_of(hits: list[Hit]) -> Performance:
    return Performance(tuple(hits), 480, 4, 4, 120.0)


def everywhere(value: float) -> Table:
    return tuple((value,) * MEASURE for _ in DRUMS)


def constant() -> Feel:
    """One mean and one spread: those of all training pieces in 4/4."""
    return replace(
        Feel.load(),
        velocity_mean=everywhere(71.0),
        velocity_std=everywhere(36.03),
        offset_mean=everywhere(-0.0534),
        offset_std=everywhere(0.2),
    )


def by_style(unseen: Unseen) -> LogLikelihood:
    """Each piece under the feel of its style, where there is one, weighted by hits."""
    sums, hits = np.zeros(2), 0
    for style, performances in unseen.items():
        feel = Feel.load(style if style in STYLES else None)
        count = len(played_hits(performances).steps)
        sums += count * np.array(feel.log_likelihood(performances))
        hits += count
    return LogLikelihood(*(sums / hits).tolist())


def made_up() -> Feel:
    """Of known values, with every velocity and offset far from where it would be clipped."""
    rng = np.random.default_rng(0)
    return replace(
        Feel.load(),
        velocity_mean=tuple(tuple(row) for row in rng.uniform(54, 70, (6, 16)).tolist()),
        velocity_std=everywhere(9.0),
        offset_mean=tuple(tuple(row) for row in rng.uniform(-0.06, 0.06, (6, 16)).tolist()),
        offset_std=everywhere(0.07),
        velocity_share=0.4,
        velocity_memory=0.97,
        offset_share=0.6,
        offset_memory=0.9,
    )


def left_over(feel: Feel, performance: Performance) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the offsets that the cells do not explain."""
    played = played_hits([performance])
    return played.steps, played.offsets - np.array(feel.offset_mean).ravel()[played.cells]


def test_unseen_hits_are_likelier_under_the_feel_of_their_style_than_under_a_constant(unseen: Unseen) -> None:
    flat, found = constant().log_likelihood(everything(unseen)), by_style(unseen)
    assert found.velocity > flat.velocity + 0.05
    assert found.offset > flat.offset + 0.03


def test_the_feel_of_their_style_foretells_unseen_hits_better_than_that_of_all(unseen: Unseen) -> None:
    of_all, found = Feel.load().log_likelihood(everything(unseen)), by_style(unseen)
    assert found.velocity > of_all.velocity + 0.02
    assert found.offset > of_all.offset + 0.01


def test_the_dev_split_is_likelier_under_the_feel_of_all_than_under_a_constant(data_root: Path) -> None:
    performances = [
        read_midi(content)
        for name, split, content in groove_midi(data_root / "groove")
        if split == "dev" and name.endswith("4-4")
    ]
    flat, found = constant().log_likelihood(performances), Feel.load().log_likelihood(performances)
    assert len(performances) == 46
    assert found.velocity > flat.velocity + 0.08
    assert found.offset > flat.offset + 0.01


def test_what_one_measure_leaves_over_foretells_the_next_in_unseen_pieces(unseen: Unseen) -> None:
    pairs = []
    for performance in everything(unseen):
        steps, left = left_over(Feel.load(), performance)
        measures = [left[steps // MEASURE == number] for number in range(steps.max() // MEASURE + 1)]
        means = [measure.mean() if len(measure) >= 8 else None for measure in measures]
        pairs += [(a, b) for a, b in pairwise(means) if a is not None and b is not None]
    assert np.corrcoef(np.array(pairs).T)[0, 1] > 0.3


def test_the_feel_of_humanised_drumrolls_is_the_feel_they_were_humanised_with() -> None:
    feel = made_up()
    rng = np.random.default_rng(1)
    texts = [
        "".join("".join(rng.choice(["o", "-"], 6)) + "\n" for _ in range(40 * MEASURE)) for _ in range(30)
    ]
    found = Feel.fit(performance_of(humanise(text, feel, seed)) for seed, text in enumerate(texts))
    # A cell has some 600 hits, and is drawn to its drum as by 100.
    np.testing.assert_allclose(found.velocity_mean, feel.velocity_mean, atol=2.5)
    np.testing.assert_allclose(found.offset_mean, feel.offset_mean, atol=0.025)
    np.testing.assert_allclose(found.velocity_std, 9.0, atol=1.5)
    np.testing.assert_allclose(found.offset_std, 0.07, atol=0.015)
    assert found.velocity_share == pytest.approx(0.4, abs=0.08)
    assert found.velocity_memory == pytest.approx(0.97, abs=0.015)
    assert found.offset_share == pytest.approx(0.6, abs=0.08)
    assert found.offset_memory == pytest.approx(0.9, abs=0.03)


def test_hits_of_two_drums_at_once_move_together_but_not_as_one() -> None:
    feel = made_up()
    hits = humanise(EVERYTHING * 4000, feel, 0)
    offsets = np.array([hit.tick for hit in hits]).reshape(-1, 6) / 120 - np.arange(4000)[:, None]
    means = np.array(feel.offset_mean).T[np.arange(4000) % MEASURE]
    correlations = np.corrcoef((offsets - means).T)[np.triu_indices(6, 1)]
    np.testing.assert_allclose(correlations, feel.offset_share, atol=0.1)


def test_a_cell_with_few_hits_is_drawn_to_its_drum_and_one_with_many_is_not() -> None:
    # A kick of 40 on every first sixteenth but one, and a single one of 120 elsewhere.
    often = [Hit(measure * 1920, 3, 40) for measure in range(4000)]
    feel = Feel.fit([performance_of([*often, Hit(6 * 120, 3, 120)])])
    assert feel.velocity_mean[3][0] == pytest.approx(40, abs=0.1)
    assert feel.velocity_mean[3][6] == pytest.approx(40.8, abs=0.1)
    assert feel.counts[3][0] == 4000 and feel.counts[3][6] == 1 and sum(map(sum, feel.counts)) == 4001


def test_grace_notes_are_left_out() -> None:
    flam = [Hit(1920 * measure + 900, 2, 20) for measure in range(4)]
    stroke = [Hit(1920 * measure + 965, 2, 110) for measure in range(4)]
    played = played_hits([performance_of(sorted(flam + stroke, key=lambda hit: hit.tick))])
    assert played.velocities.tolist() == [110] * 4
    np.testing.assert_allclose(played.offsets, 5 / 120)


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.0])
def test_humanised_pieces_encode_to_the_same_text(strength: float) -> None:
    feel = Feel.load("jazz")  # the widest spread of offsets
    for number, piece in enumerate(bundled_pieces()[::16]):
        hits = humanise(piece.text, feel, number, strength)
        midi = drumroll_to_midi(piece.text, bpm=piece.bpm, hits=hits)
        assert midi_to_drumroll(midi_bytes(midi)) == piece.text, piece.name


def test_strength_0_is_on_the_grid_with_mean_velocities() -> None:
    feel = Feel.load()
    hits = humanise(EVERYTHING * 32, feel, 0, strength=0)
    assert [hit.tick for hit in hits] == [step * 120 for step in range(32) for _ in DRUMS]
    means = [feel.velocity_mean[column][step % MEASURE] for step in range(32) for column in range(6)]
    assert [hit.velocity for hit in hits] == [round(mean) for mean in means]


def test_any_strength_stays_within_the_sixteenth_and_within_midi() -> None:
    hits = humanise(EVERYTHING * 64, Feel.load(), 3, strength=50)
    performance = performance_of(hits)
    assert [performance.step_of(hit.tick) for hit in hits] == [step for step in range(64) for _ in DRUMS]
    assert min(hit.tick for hit in hits) >= 0
    velocities = [hit.velocity for hit in hits]
    assert min(velocities) == 1 and max(velocities) == 127


def test_the_same_seed_plays_the_same_and_another_differs() -> None:
    text = bundled_pieces()[0].text
    first = humanise(text, Feel.load(), 5)
    assert humanise(text, Feel.load(), 5) == first
    assert humanise(text, Feel.load(), 6) != first


def test_what_is_added_later_or_on_another_drum_leaves_the_other_hits_as_they_were() -> None:
    kicks = "---o--\n" * 32
    alone = humanise(kicks, Feel.load(), 0)
    among_others = humanise("--oo--\n" * 48, Feel.load(), 0)
    assert [hit for hit in among_others if hit.column == 3][:32] == alone


def test_a_drumroll_without_hits_has_none() -> None:
    assert humanise("------\n" * 16, Feel.load(), 0) == []


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_a_strength_below_0_or_not_finite_is_refused(strength: float) -> None:
    with pytest.raises(TenfoldError, match="strength"):
        humanise(EVERYTHING, Feel.load(), 0, strength)


def test_swung_jazz_plays_the_last_sixteenth_of_a_beat_early_where_funk_does_not() -> None:
    def last_of_beats(style: str) -> float:
        return float(np.mean(np.array(Feel.load(style).offset_mean)[1, 3::4]))

    assert last_of_beats("jazz") < last_of_beats("funk") - 0.05


def test_an_unknown_style_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TenfoldError, match=r"'polka'.*funk, hiphop, jazz.*rock"):
        Feel.load("polka")


def test_all_styles_together_are_no_style() -> None:
    with pytest.raises(TenfoldError, match="'all'"):
        Feel.load("all")


def test_a_piece_that_is_not_in_four_four_is_refused() -> None:
    five_four = read_midi(bundled_midi()["1_111_rock-prog_110_beat_5-4"])
    with pytest.raises(TenfoldError, match=r"performance 1 is in 5/4"):
        Feel.fit([five_four])


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(TenfoldError, match="no hit"):
        Feel.fit([performance_of([])])


def test_a_feel_survives_json() -> None:
    plain = Feel.load().plain()
    again = Feel.from_plain(json.loads(json.dumps(plain)))
    assert again == Feel.load()
    assert hash(again) == hash(Feel.load())


def test_a_damaged_feel_is_refused() -> None:
    plain = Feel.load().plain()
    with pytest.raises(TenfoldError, match="offset_mean of a feel has 6 rows of 16"):
        Feel.from_plain({**plain, "offset_mean": plain["offset_mean"][:5]})
    with pytest.raises(TenfoldError, match="has the values velocity_mean"):
        Feel.from_plain({name: value for name, value in plain.items() if name != "counts"})


def test_a_style_with_too_few_pieces_has_no_feel_of_its_own(unseen: Unseen) -> None:
    pieces = [("rock", unseen["rock"][0]), ("rock", unseen["rock"][1]), ("polka", unseen["jazz"][0])]
    assert list(fit_feels(pieces, fewest=2)) == ["all", "rock"]


def test_the_feels_that_are_written_are_those_of_the_training_pieces_in_four_four(tmp_path: Path) -> None:
    # Groove in small, as Magenta's archive: two training pieces in 4/4, one in 5/4, one of the test split.
    split = {piece.name: piece.split for piece in bundled_pieces()}
    by_kind = {
        (split[name], name.endswith("4-4")): (name, content)
        for name, content in bundled_midi().items()
        if name in split
    }
    chosen = [by_kind["train", True], by_kind["train", False], by_kind["test", True]]
    rows = ["drummer,midi_filename,beat_type,split"]
    for name, content in chosen:
        drummer, rest = name.split("_", 1)
        (tmp_path / f"{rest}.mid").write_bytes(content)
        rows.append(f"drummer{drummer},{rest}.mid,beat,{split[name]}")
    (tmp_path / "info.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    target = tmp_path / "feel.json"
    write_feels(tmp_path, target)
    written = json.loads(target.read_text(encoding="utf-8"))
    assert written == {"all": Feel.fit([read_midi(by_kind["train", True][1])]).plain()}
