"""The structural evaluation, against slow references, hand counts and the paper's recomputed table."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.drum_gpt.corpus import Split, bundled_pieces
from tenfold.drum_gpt.structure import (
    is_empty,
    levenshtein,
    measure_occurrences,
    measure_stability,
    measures_of,
    random_baseline,
    repeat_baseline,
    structural_summary,
    two_means,
)


def measure(*hits: tuple[int, int], line: str = "o-----") -> str:
    """Sixteen equal lines, with some more hits at (line, column)."""
    lines = [list(line) for _ in range(16)]
    for place, column in hits:
        lines[place][column] = "o"
    return "".join("".join(characters) + "\n" for characters in lines)


# Each further hit is one substitution, and no text of this length with more hits is nearer than that.
A, B, C = measure(), measure((4, 2)), measure((4, 2), (6, 3), (12, 2))
"""d(A, B) = 1, d(B, C) = 2, d(A, C) = 3."""
SILENCE = "------\n" * 16


def texts_of(split: Split) -> list[str]:
    return [piece.text for piece in bundled_pieces() if piece.split == split]


# Levenshtein distance


def slow_levenshtein(a: str, b: str) -> int:
    """The full table of the dynamic programme."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, j in product(range(len(a) + 1), range(len(b) + 1)):
        if not i or not j:
            table[i][j] = i + j
        else:
            replaced = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, replaced)
    return table[-1][-1]


@given(st.text("o-\n", max_size=25), st.text("o-\n", max_size=25))
@settings(deadline=None)
def test_edits_are_those_of_the_dynamic_programme(a: str, b: str) -> None:
    assert levenshtein(a, b) == slow_levenshtein(a, b)


@pytest.mark.parametrize(
    ("a", "b", "edits"),
    [
        ("", "", 0),
        ("", "o--", 3),
        ("kitten", "sitting", 3),
        ("o-o-o-", "-o-o-o", 2),
        ("o-----\n", "-o----\n", 2),
        ("oooooo", "------", 6),
    ],
)
def test_edits_between_texts_worked_out_by_hand(a: str, b: str, edits: int) -> None:
    """A line that is one place late costs two edits, not six."""
    assert levenshtein(a, b) == levenshtein(b, a) == edits


# Measures and their stability


def slow_stability(text: str) -> list[int]:
    """From the specification: measures of 16 lines, each with its newline, joined by one more."""
    lines = [f"{line}\n" for line in text.split("\n")[:-1]]
    measures = ["\n".join(lines[start : start + 16]) for start in range(0, len(lines), 16)][:16]
    return [
        min(slow_levenshtein(here, before), slow_levenshtein(here, after))
        for before, here, after in zip(measures, measures[1:], measures[2:], strict=False)
    ]


@pytest.mark.parametrize("name", ["7_93_hiphop_75_beat_4-4", "8_8_funk_96_beat_4-4"])
def test_stability_of_real_pieces_is_that_of_the_dynamic_programme(name: str) -> None:
    (piece,) = [piece for piece in bundled_pieces() if piece.name == name]
    text = "".join(piece.text.splitlines(keepends=True)[: 16 * 7])
    assert measure_stability(text) == slow_stability(text) != [0] * 5


def test_stability_of_random_measures_is_that_of_the_dynamic_programme() -> None:
    text = "".join(random_baseline(1)[0].splitlines(keepends=True)[: 16 * 5 + 9])
    assert measure_stability(text) == slow_stability(text)


def test_stability_is_the_distance_to_the_more_similar_neighbour() -> None:
    """Inner measures B, C, A of A B C A A: min(1, 2), min(2, 3), min(3, 0)."""
    assert measure_stability(A + B + C + A + A) == [1, 2, 0]


def test_a_fill_between_repeats_is_a_peak() -> None:
    assert measure_stability(A * 3 + C + A * 3) == [0, 0, 3, 0, 0]


def test_a_shift_by_one_line_costs_two_lines_at_most() -> None:
    """Fifteen lines are still there: one goes at the one end and one comes at the other, with their newlines."""
    one = [f"{number:06b}".replace("0", "-").replace("1", "o") for number in range(1, 18)]
    first, second = ("".join(f"{line}\n" for line in one[start : start + 16]) for start in (0, 1))
    assert measure_stability(first + second + first)[0] <= 2 * 8


@pytest.mark.parametrize("text", ["", "o-----\n", A, A + B, A + B[:7]])
def test_fewer_than_three_measures_have_no_stability(text: str) -> None:
    assert measure_stability(text) == []


def test_a_last_measure_may_be_shorter() -> None:
    """To go without a line of 7 characters costs 7 edits and the newline before it; A has 5 hits less a line."""
    full = "oooooo\n"
    text = A + full * 16 + full * 15
    assert [len(lines) for lines in measures_of(text)] == [16, 16, 15]
    assert measure_stability(text) == [min(5 * 16, 7 + 1)]
    assert measure_stability(A + full * 16 + full) == [5 * 16]


def test_only_the_first_sixteen_measures_count() -> None:
    text = (A + B) * 8
    assert measure_stability(text) == [1] * 14
    assert measure_stability(text + C * 4) == [1] * 14
    assert measure_stability(A * 16 + C) == [0] * 14


def test_silent_measures_at_the_end_are_as_stable_as_any_unless_trimmed() -> None:
    text = A + B + C + SILENCE * 13
    distance = 16 + 3  # every hit of C goes
    assert measure_stability(text) == [1, 2] + [0] * 12
    assert measure_stability(text, trim_silence=True) == [1]
    assert measure_stability(A + SILENCE + C + SILENCE, trim_silence=True) == [16]
    assert measure_stability(A + C + SILENCE, trim_silence=False) == [min(3, distance)]


@pytest.mark.parametrize("text", ["", SILENCE, SILENCE * 16, SILENCE + "------\n" * 3])
def test_a_silent_piece_has_no_measures_when_trimmed(text: str) -> None:
    assert measures_of(text, trim_silence=True) == []
    assert measure_stability(text, trim_silence=True) == []


def test_human_pieces_end_in_silence_as_often_as_the_paper_s() -> None:
    sounding = [sum(not is_empty(lines) for lines in measures_of(text)) for text in texts_of("test")]
    assert sum(count < 16 for count in sounding) == 14
    assert sorted(sounding)[:3].count(1) == 2
    for text in texts_of("test"):
        trimmed = measures_of(text, trim_silence=True)
        assert not is_empty(trimmed[-1])
        assert all(map(is_empty, measures_of(text)[len(trimmed) :]))


# Two clusters


def partitions(values: Sequence[Fraction]) -> list[tuple[Fraction, Fraction, Fraction]]:
    """Squared error, gap and mean distance to the own centre of every split into two, exactly."""
    found = []
    for sides in product([False, True], repeat=len(values) - 1):
        parts = [values[0]], []
        for value, side in zip(values[1:], sides, strict=True):
            parts[side].append(value)
        if not parts[1]:
            continue
        centres = [sum(part, Fraction(0)) / len(part) for part in parts]
        left = [abs(value - centre) for part, centre in zip(parts, centres, strict=True) for value in part]
        squared = sum((distance**2 for distance in left), Fraction(0))
        found.append((squared, abs(centres[0] - centres[1]), sum(left, Fraction(0)) / len(values)))
    return found


def check_two_means(values: Sequence[float]) -> None:
    """The result belongs to one of the best of all partitions, of which there may be several."""
    tried = partitions([Fraction(value) for value in values])
    least = min(squared for squared, _, _ in tried)
    best = [rest for squared, *rest in tried if squared <= least + Fraction(1, 10**9)]
    assert any(two_means(values) == pytest.approx([float(x) for x in rest], abs=1e-6) for rest in best)


@given(st.lists(st.integers(0, 127), min_size=2, max_size=8).filter(lambda values: len(set(values)) > 1))
@settings(deadline=None, max_examples=60)
def test_two_means_of_distances_are_the_best_of_all_partitions(values: list[int]) -> None:
    check_two_means(values)


@given(st.lists(st.integers(-9999, 9999).map(lambda x: x / 100), min_size=2, max_size=7, unique=True))
@settings(deadline=None, max_examples=40)
def test_two_means_of_any_numbers_are_the_best_of_all_partitions(values: list[float]) -> None:
    check_two_means(values)


def test_two_means_worked_out_by_hand() -> None:
    """Centres 1 and 11, distances 1 0 1 and 1 1; of 0 0 9 they are 0 and 9 with none."""
    assert two_means([2, 10, 0, 12, 1]) == pytest.approx((10, 4 / 5))
    assert two_means([0, 9, 0]) == (9, 0)
    assert two_means([3, 7]) == (4, 0)


@pytest.mark.parametrize("method", ["exact", "n_init=1", "n_init=10"])
@pytest.mark.parametrize("values", [[], [5], [5, 5], [0] * 14])
def test_fewer_than_two_different_values_are_one_cluster(values: list[int], method: Any) -> None:
    assert two_means(values, method) == (0, 0)


@pytest.mark.parametrize("method", ["exact", "n_init=1", "n_init=10"])
def test_far_clusters_are_found_by_every_method_in_any_order(method: Any) -> None:
    values = [0, 1, 0, 0, 50, 1, 0, 48, 0, 0, 1, 0, 52, 1]
    expected = (50 - 4 / 11, (4 * (7 / 11) + 7 * (4 / 11) + 4) / 14)
    assert two_means(values, method) == pytest.approx(expected)
    random.Random(0).shuffle(values)
    assert two_means(values, method) == pytest.approx(expected)


# The paper's table

TABLE = {
    ("human", "exact"): (5.0792, 10.0070, 1.4114),
    ("human", "n_init=1"): (5.0792, 10.3452, 1.4452),
    ("human", "n_init=10"): (5.0792, 10.0759, 1.4171),
    ("random", "exact"): (40.3803, 5.7050, 1.2405),
    ("random", "n_init=1"): (40.3803, 5.7477, 1.2611),
    ("repeat", "exact"): (0, 0, 0),
    ("repeat", "n_init=1"): (0, 0, 0),
    ("repeat", "n_init=10"): (0, 0, 0),
}


@pytest.mark.parametrize(("who", "method"), TABLE)
def test_the_recomputed_table_of_the_paper_is_reproduced(who: str, method: Any) -> None:
    human = texts_of("test")
    texts = {
        "human": human,
        "random": random_baseline(37),
        "repeat": [repeat_baseline(text) for text in human],
    }[who]
    found = structural_summary(texts, method)
    assert list(found) == ["mean_stability", "gap", "own_centre_distance"]
    assert [round(value, 4) for value in found.values()] == list(TABLE[who, method])


def test_stability_is_pooled_over_pieces_and_clusters_are_averaged() -> None:
    """Stability 1 of the one, 3 3 0 0 of the other, none of the third, which has no measure inside."""
    found = structural_summary([A + B + A, A + C + A + A + A + A, A + B])
    assert measure_stability(A + C + A + A + A + A) == [3, 0, 0, 0]
    assert found["mean_stability"] == pytest.approx((1 + 3) / 5)
    assert found["gap"] == pytest.approx((0 + 3) / 2)
    assert found["own_centre_distance"] == 0


@pytest.mark.parametrize("texts", [[], [""], [A + B, SILENCE]])
def test_pieces_without_an_inner_measure_have_no_summary(texts: list[str]) -> None:
    assert all(math.isnan(value) for value in structural_summary(texts).values())


def test_a_trimmed_summary_leaves_silence_at_the_end_out() -> None:
    text = A + C + A + B + SILENCE * 12
    assert structural_summary([text])["mean_stability"] == pytest.approx((3 + 1 + 1) / 14)
    found = structural_summary([text], trim_silence=True)
    assert found["mean_stability"] == pytest.approx((3 + 1) / 2)
    assert (found["gap"], found["own_centre_distance"]) == (2, 0)


def test_drummers_are_less_stable_where_the_silence_after_them_is_left_out() -> None:
    human = texts_of("test")
    trimmed = [measure_stability(text, trim_silence=True) for text in human]
    pooled = [value for values in trimmed for value in values]
    found = structural_summary(human, trim_silence=True)["mean_stability"]
    assert found == pytest.approx(sum(pooled) / len(pooled)) and found > 5.0792


# Baselines


def test_the_random_baseline_is_fair_coins_of_whole_pieces() -> None:
    texts = random_baseline(37)
    lines = [line for text in texts for line in text.splitlines()]
    assert len(lines) == 37 * 256 and {len(line) for line in lines} == {6}
    hits = "".join(lines).count("o")
    assert abs(hits / (6 * len(lines)) - 0.5) < 4 * 0.5 / math.sqrt(6 * len(lines))
    assert len(set(lines)) == 64


def test_the_random_baseline_depends_on_its_seed_and_touches_no_other_generator() -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    texts = random_baseline(2)
    assert random.random() == expected
    assert random_baseline(5)[:2] == texts
    assert random_baseline(2, seed=30) != texts
    assert random_baseline(0) == []


def test_the_repeat_baseline_is_the_first_measure_and_fifteen_times_the_second() -> None:
    assert repeat_baseline(A + B + C * 14) == A + B * 15
    assert repeat_baseline(A + B) == A + B * 15
    assert measure_stability(repeat_baseline(C + A)) == [0] * 14


# Duplicated measures


def test_duplicates_of_test_pieces_in_the_training_pieces_are_the_paper_s() -> None:
    counts = measure_occurrences(texts_of("test"), texts_of("train"))
    assert len(counts) == 467
    assert round(sum(count == 0 for count in counts) / 467, 3) == 0.797
    assert round(sum(counts) / 467, 3) == 0.899


def test_occurrences_are_those_counted_by_hand() -> None:
    """Silence is not asked for; a measure that stands across two measures of the reference is not there."""
    reference = [A + B + A, C[:70] + B + C[70:], SILENCE * 3]
    assert measure_occurrences([A + SILENCE + B, B + C], reference) == [2, 1, 1, 0]


def test_a_measure_that_is_cut_off_is_no_duplicate_of_a_whole_one() -> None:
    assert measure_occurrences([A + A[:70]], [A * 3]) == [3, 0]
    assert measure_occurrences([A[:70]], [A + A[:70]]) == [1]


def test_every_measure_occurs_in_its_own_piece() -> None:
    for text in texts_of("dev"):
        counts = measure_occurrences([text], [text])
        strings = ["".join(lines) for lines in measures_of(text) if not is_empty(lines)]
        assert counts == [strings.count(string) for string in strings]


def test_repeats_have_no_edits_and_only_they() -> None:
    """Stability 0 and a duplicate beside it are one and the same."""
    for text in texts_of("dev")[:10]:
        strings = ["".join(lines) for lines in measures_of(text)[:16]]
        same = [one == other for one, other in pairwise(strings)]
        repeats = [before or after for before, after in pairwise(same)]
        assert [value == 0 for value in measure_stability(text)] == repeats
