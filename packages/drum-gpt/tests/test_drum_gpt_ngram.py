"""The back-off model over lines, against its formula with dictionaries of counts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.drum_gpt.corpus import bundled_pieces, pieces_of
from tenfold.drum_gpt.ngram import LineNgram, as_completion, music_of, training_texts
from tenfold.drum_gpt.prompts import lines_of, without_silent_beginning
from tenfold.shared.logging import TenfoldError

ALL_LINES = ["".join(characters) for characters in product("-o", repeat=6)]
ONE, TWO, THREE = "o-----", "--o---", "------"


def text_of(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def slow_probabilities(texts: Sequence[str], order: int, context: Sequence[str]) -> dict[str, float]:
    """p_k(x | c) = (n(c x) + t(c) p_{k-1}(x | c')) / (n(c) + t(c)), from p_{-1} = 1 / 64 up to k = order.

    A context that was never seen has no counts: its shorter one stands for it.
    """
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for text in texts:
        lines = ["start"] * order + text.splitlines()
        for place, k in product(range(order, len(lines)), range(order + 1)):
            counts[tuple(lines[place - k : place])][lines[place]] += 1
    chances = dict.fromkeys(ALL_LINES, 1 / 64)
    padded = ["start"] * order + list(context)
    for k in range(order + 1):
        seen = counts.get(tuple(padded[len(padded) - k :]), Counter())
        if seen:
            n, t = seen.total(), len(seen)
            chances = {line: (seen[line] + t * chance) / (n + t) for line, chance in chances.items()}
    return chances


def probability(model: LineNgram, context: Sequence[str], line: str) -> float:
    return math.exp(model.log_likelihood([*context, line], given=len(context)))


pieces = st.lists(
    st.lists(st.sampled_from([ONE, TWO, THREE]), max_size=12).map(text_of), min_size=1, max_size=3
)


@given(
    pieces.filter(any), st.integers(0, 5), st.lists(st.sampled_from([ONE, TWO, THREE, "oooooo"]), max_size=8)
)
@settings(deadline=None, max_examples=60)
def test_probabilities_are_those_of_the_formula(texts: list[str], order: int, context: list[str]) -> None:
    model = LineNgram(texts, order)
    expected = slow_probabilities(texts, order, context)
    for line in ALL_LINES:
        assert probability(model, context, line) == pytest.approx(expected[line], rel=1e-9), line
    found = model.probabilities(context)
    np.testing.assert_allclose(np.sort(found), np.sort(list(expected.values())), rtol=1e-9)
    assert found.sum() == pytest.approx(1, abs=1e-12)


def test_probabilities_on_real_pieces_are_those_of_the_formula() -> None:
    texts = [piece.text for piece in pieces_of("dev")[:3]]
    model = LineNgram(texts, order=8)
    for context_end in (0, 3, 40, 200):
        context = texts[1].splitlines()[:context_end]
        expected = slow_probabilities(texts, 8, context)
        for line in ALL_LINES[::7]:
            assert probability(model, context, line) == pytest.approx(expected[line], rel=1e-9)


# By hand: lines 1 2 1 1 with contexts of one line. Without a context, 3 of 4 are ONE and 2 different lines came.
P0 = {ONE: (3 + 2 / 64) / 6, TWO: (1 + 2 / 64) / 6, THREE: (2 / 64) / 6}


@pytest.fixture
def small() -> LineNgram:
    return LineNgram([text_of([ONE, TWO, ONE, ONE])], order=1)


@pytest.mark.parametrize(
    ("context", "line", "expected"),
    [
        ([], ONE, (1 + P0[ONE]) / 2),
        ([], TWO, (0 + P0[TWO]) / 2),
        ([ONE], ONE, (1 + 2 * P0[ONE]) / 4),
        ([ONE], TWO, (1 + 2 * P0[TWO]) / 4),
        ([ONE], THREE, 2 * P0[THREE] / 4),
        ([TWO], ONE, (1 + P0[ONE]) / 2),
        ([THREE], ONE, P0[ONE]),
        ([THREE], THREE, P0[THREE]),
        ([THREE, TWO, ONE], TWO, (1 + 2 * P0[TWO]) / 4),
    ],
)
def test_a_model_of_four_lines_has_the_probabilities_worked_out_by_hand(
    small: LineNgram, context: list[str], line: str, expected: float
) -> None:
    assert probability(small, context, line) == pytest.approx(expected)


def test_the_log_likelihood_is_the_sum_of_logs(small: LineNgram) -> None:
    factors = [(1 + P0[ONE]) / 2, (1 + 2 * P0[TWO]) / 4, (1 + P0[ONE]) / 2, 2 * P0[THREE] / 4]
    lines = [ONE, TWO, ONE, THREE]
    assert small.log_likelihood(lines) == pytest.approx(sum(map(math.log, factors)))
    assert small.log_likelihood(lines, given=2) == pytest.approx(sum(map(math.log, factors[2:])))


def test_given_lines_are_a_context_and_not_judged(small: LineNgram) -> None:
    assert small.log_likelihood([ONE, TWO], given=2) == 0
    assert small.log_likelihood([]) == 0


def test_a_model_without_context_counts_lines() -> None:
    model = LineNgram([text_of([ONE, TWO, ONE, ONE])], order=0)
    for context in ([], [TWO], [THREE, ONE]):
        assert {line: probability(model, context, line) for line in P0} == pytest.approx(P0)


def test_pieces_do_not_follow_one_another() -> None:
    """What begins the second piece never came after what ends the first."""
    apart = LineNgram([text_of([ONE]), text_of([TWO])], order=1)
    # One of each without a context; after ONE and after TWO nothing came.
    assert probability(apart, [ONE], TWO) == pytest.approx((1 + 2 / 64) / 4)
    assert probability(apart, [], TWO) == pytest.approx((1 + 2 * (1 + 2 / 64) / 4) / 4)


def test_a_short_context_is_the_beginning_of_a_piece() -> None:
    """TWO came second once and third once; at the second place ONE alone stands before it."""
    model = LineNgram([text_of([ONE, TWO, TWO])], order=2)
    assert probability(model, [ONE], TWO) > probability(model, [THREE, ONE], TWO)


# The bundled pieces


@pytest.fixture(scope="module")
def drummer() -> LineNgram:
    return LineNgram(training_texts(piece.text for piece in pieces_of("train")))


def test_every_line_of_every_test_prompt_has_probabilities_that_sum_to_one(drummer: LineNgram) -> None:
    for piece in pieces_of("test")[:5]:
        lines = piece.text.splitlines()
        for end in range(0, 60, 5):
            found = drummer.probabilities(lines[:end])
            assert found.shape == (64,) and (found > 0).all()
            assert found.sum() == pytest.approx(1, abs=1e-12)


def test_pieces_that_were_learned_are_likelier_than_others_and_all_than_chance(drummer: LineNgram) -> None:
    def nats_per_line(split_pieces: Sequence[str]) -> float:
        lines = [text.splitlines() for text in split_pieces]
        return -sum(map(drummer.log_likelihood, lines)) / sum(map(len, lines))

    learned = nats_per_line(training_texts(piece.text for piece in pieces_of("train")[:3]))
    unseen = nats_per_line(training_texts(piece.text for piece in pieces_of("test")[:3]))
    assert learned < unseen < math.log(64)


def test_a_piece_falls_into_prompt_and_completion(drummer: LineNgram) -> None:
    piece = pieces_of("test")[0]
    assert piece.example is not None
    lines, given = music_of(*piece.example)
    assert given == 32
    assert lines == without_silent_beginning(piece.text.splitlines())
    whole = drummer.log_likelihood(lines)
    parts = drummer.log_likelihood(lines[:given]), drummer.log_likelihood(lines, given)
    assert whole == pytest.approx(sum(parts))


# Continuations


def test_continuations_depend_on_the_generator_alone(drummer: LineNgram) -> None:
    lines = pieces_of("test")[2].text.splitlines()[:32]
    one, same, other = (drummer.continue_piece(lines, 48, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert one == same != other
    assert len(one) == 48 and set(one) <= set(ALL_LINES)


def test_a_continuation_in_two_parts_is_that_in_one(drummer: LineNgram) -> None:
    lines = pieces_of("test")[2].text.splitlines()[:32]
    whole = drummer.continue_piece(lines, 40, np.random.default_rng(0))
    generator = np.random.default_rng(0)
    first = drummer.continue_piece(lines, 25, generator)
    assert first + drummer.continue_piece(lines + first, 15, generator) == whole


def test_no_further_line_is_drawn_where_none_is_asked_for(small: LineNgram) -> None:
    assert small.continue_piece([ONE], 0, np.random.default_rng(0)) == []


def test_lines_are_drawn_as_often_as_they_are_likely(small: LineNgram) -> None:
    generator = np.random.default_rng(0)
    drawn = Counter(small.continue_piece([ONE], 1, generator)[0] for _ in range(2000))
    for line in (ONE, TWO):
        chance = probability(small, [ONE], line)
        assert abs(drawn[line] / 2000 - chance) < 4 * math.sqrt(chance * (1 - chance) / 2000)


# Texts


@pytest.mark.parametrize("wrong", ["", "-----", "-------", "o-x---", "SEP", "END"])
def test_a_line_that_is_not_six_characters_is_named(small: LineNgram, wrong: str) -> None:
    message = rf"^'{wrong}' is not six characters of hit and rest$"
    with pytest.raises(TenfoldError, match=message):
        LineNgram([text_of([ONE, wrong, TWO])])
    with pytest.raises(TenfoldError, match=message):
        small.probabilities([wrong])
    with pytest.raises(TenfoldError, match=message):
        small.log_likelihood([ONE, wrong])
    with pytest.raises(TenfoldError, match=message):
        small.continue_piece([wrong], 1, np.random.default_rng(0))


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_nothing_can_be_learned_from_no_line(texts: list[str]) -> None:
    with pytest.raises(TenfoldError, match=r"^there is no line to learn from$"):
        LineNgram(texts)


def test_training_texts_begin_with_their_first_sound() -> None:
    silent = [THREE] * 16
    lines = [THREE, ONE, *[THREE] * 14, TWO]
    assert training_texts([text_of(silent * 2 + lines), text_of(silent)]) == [text_of(lines), ""]


def test_lines_become_a_completion_as_networks_write_it() -> None:
    lines = [*[ONE] * 16, *[TWO] * 16, *[THREE] * 16]
    measures = [text_of(lines[start : start + 16]) for start in (0, 16, 32)]
    assert as_completion(lines) == "SEP\n".join(measures) + "END"
    assert lines_of(as_completion(lines)) == lines


def test_completions_of_whole_pieces_are_those_of_their_lines() -> None:
    for piece in bundled_pieces():
        if piece.split == "dev" and piece.example is not None:
            assert as_completion(lines_of(piece.example.completion)) == piece.example.completion
