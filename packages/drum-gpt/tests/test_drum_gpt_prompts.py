"""Pieces as prompts and completions, their way back, and what is asked of a network besides."""

from __future__ import annotations

from collections import Counter
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.drum_gpt.corpus import SPLITS, Split, bundled_pieces, pieces_of
from tenfold.drum_gpt.prompts import (
    Example,
    condition,
    conditioned,
    drumroll_to_prompt,
    infilling,
    lines_of,
    prompt_of,
    to_drumroll,
    without_silent_beginning,
)
from tenfold.shared.logging import TenfoldError

EMPTY = "------"


def numbered(number: int) -> str:
    """A line of its own for each number below 63, and never an empty one."""
    return f"{number % 63 + 1:06b}".replace("0", "-").replace("1", "o")


def text_of(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def piece_of(count: int, silent: int = 0) -> list[str]:
    """Some empty lines, and a number of others."""
    return [EMPTY] * silent + [numbered(number) for number in range(count)]


# Prompt and completion


def test_a_separator_follows_every_whole_measure_and_end_follows_the_last() -> None:
    lines = piece_of(144)
    measures = [text_of(lines[start : start + 16]) for start in range(0, 144, 16)]
    example = drumroll_to_prompt(text_of(lines))
    assert example is not None
    assert example.prompt == measures[0] + "SEP\n" + measures[1] + "SEP\n"
    assert example.completion == "SEP\n".join(measures[2:]) + "END"


def test_no_separator_follows_a_measure_that_is_cut_off() -> None:
    lines = piece_of(129)
    example = drumroll_to_prompt(text_of(lines))
    assert example is not None
    assert example.completion.endswith(f"SEP\n{lines[-1]}\nEND")
    assert example.completion.split("\n").count("SEP") == 6


@pytest.mark.parametrize("count", [32, 127, 128])
def test_a_piece_of_at_most_128_lines_is_left_out(count: int) -> None:
    assert drumroll_to_prompt(text_of(piece_of(count))) is None
    assert drumroll_to_prompt(text_of(piece_of(129))) is not None


def test_silent_measures_at_the_beginning_are_dropped_and_do_not_count_as_length() -> None:
    lines = piece_of(129)
    assert drumroll_to_prompt(text_of([EMPTY] * 48 + lines)) == drumroll_to_prompt(text_of(lines))
    assert drumroll_to_prompt(text_of([EMPTY] * 48 + lines[:128])) is None


def test_a_measure_is_silent_where_its_first_four_lines_are() -> None:
    """What is played on its later lines is lost, as in the authors' code."""
    late = [EMPTY] * 4 + [numbered(0)] * 12
    lines = piece_of(160)
    assert without_silent_beginning(late + late + lines) == lines
    early = [EMPTY] * 3 + [numbered(0)] * 13
    assert without_silent_beginning(early + lines) == early + lines


def test_silence_after_the_first_sound_is_kept() -> None:
    lines = piece_of(16) + [EMPTY] * 128
    assert without_silent_beginning(lines) == lines
    example = drumroll_to_prompt(text_of(lines))
    assert example is not None and lines_of(example.completion) == [EMPTY] * 112


@pytest.mark.parametrize("count", [0, 1, 3, 4, 16, 20, 256])
def test_an_empty_piece_ends_without_a_line(count: int) -> None:
    assert without_silent_beginning([EMPTY] * count) == []
    assert drumroll_to_prompt(text_of([EMPTY] * count)) is None


def test_letters_of_the_separator_are_cut_off_both_ends_of_a_completion() -> None:
    """Characters, not the word: a line of the letters S, E and P alone would go as well."""
    lines = piece_of(144)
    lines[32], lines[143] = "SPEP", "EESS"
    example = drumroll_to_prompt(text_of(lines))
    assert example is not None
    assert example.completion.startswith(f"{lines[33]}\n")
    assert example.completion.endswith(f"{lines[142]}\nEND")


# The corpus


@pytest.mark.parametrize(
    ("split", "texts", "prompts", "stripped"),
    [("train", 373, 372, 89), ("dev", 47, 47, 15), ("test", 37, 37, 10)],
)
def test_the_splits_have_as_many_prompts_as_the_paper(
    split: Split, texts: int, prompts: int, stripped: int
) -> None:
    pieces = [piece for piece in bundled_pieces() if piece.split == split]
    assert (len(pieces), len(pieces_of(split))) == (texts, prompts)
    shorter = [
        piece
        for piece in pieces
        if len(without_silent_beginning(piece.text.splitlines())) < len(piece.text.splitlines())
    ]
    assert len(shorter) == stripped


def test_one_piece_is_empty_and_left_out() -> None:
    (left_out,) = [piece for piece in bundled_pieces() if piece.example is None]
    assert left_out.name == "7_22_rock_118_beat_4-4" and left_out.is_silent
    assert [piece for piece in bundled_pieces() if piece.is_silent] == [left_out]


def test_other_metres_than_four_quarters_can_be_left_out() -> None:
    assert len(pieces_of("train", only_4_4=True)) == 372 - 5
    assert len(pieces_of("test", only_4_4=True)) == 37


def test_prompts_and_completions_are_as_long_as_the_paper_s() -> None:
    """Two measures of 16 lines with 7 characters and a separator of 4 are 232."""
    examples = [piece.example for split in SPLITS for piece in pieces_of(split)]
    assert {len(example.prompt) for example in examples if example} == {232}
    completions = [example.completion for example in examples if example]
    assert median(map(len, completions)) == 1623
    separators = Counter(completion.split("\n").count("SEP") for completion in completions)
    assert {count for count, _ in separators.most_common(2)} == {12, 13}
    assert separators[12] + separators[13] > 0.95 * len(completions)


def test_styles_of_the_test_pieces_are_the_paper_s() -> None:
    assert Counter(piece.style for piece in pieces_of("test"))["rock"] == 17


# The way back


def test_every_piece_comes_back_from_its_prompt_and_completion() -> None:
    for split in SPLITS:
        for piece in pieces_of(split):
            assert piece.example is not None
            found = to_drumroll(*piece.example)
            assert found == text_of(without_silent_beginning(piece.text.splitlines())), piece.name


@given(st.lists(st.text("o-", min_size=6, max_size=6), min_size=129, max_size=300))
@settings(deadline=None, max_examples=40)
def test_any_drumroll_that_begins_with_sound_comes_back(lines: list[str]) -> None:
    lines[0] = "o-----"
    example = drumroll_to_prompt(text_of(lines))
    assert example is not None
    assert to_drumroll(*example) == text_of(lines)


def test_nothing_after_the_end_is_music() -> None:
    assert lines_of("o-----\nSEP\n-o----\nEND\n--o---\nSEP\n") == ["o-----", "-o----"]
    assert to_drumroll("o-----\nSEP\n", "-o----\nEND\nEND\n---o--") == "o-----\n-o----\n"


def test_a_line_that_was_cut_off_is_no_music() -> None:
    assert lines_of("o-----\n-o--") == lines_of("o-----\n") == ["o-----"]


def test_a_text_without_separators_or_end_is_music_throughout() -> None:
    assert to_drumroll("o-----", "-o----\n--o---") == "o-----\n-o----\n--o---\n"
    assert to_drumroll("", "") == ""


# A prompt alone


@pytest.mark.parametrize("split", SPLITS)
def test_the_prompt_of_a_piece_is_that_of_its_example(split: Split) -> None:
    for piece in pieces_of(split):
        assert piece.example is not None
        assert prompt_of(piece.text) == piece.example.prompt, piece.name


def test_two_measures_are_enough_for_a_prompt() -> None:
    lines = piece_of(32)
    expected = text_of(lines[:16]) + "SEP\n" + text_of(lines[16:]) + "SEP\n"
    assert prompt_of(text_of([EMPTY] * 16 + lines)) == expected
    assert prompt_of(text_of([*lines, "no music"])) == expected


@pytest.mark.parametrize(
    "lines",
    [[], piece_of(31), [EMPTY] * 256, piece_of(31, silent=16), piece_of(16, silent=240)],
    ids=["nothing", "31 lines", "silence", "silence and 31 lines", "one measure at the end"],
)
def test_less_than_two_measures_of_drums_are_no_prompt(lines: list[str]) -> None:
    with pytest.raises(TenfoldError, match=r"^my groove has no two measures of drums"):
        prompt_of(text_of(lines), "my groove")


@pytest.mark.parametrize(
    "wrong", ["", "-----", "-------", "o-x---", "SEP", "O-----", " o-----", "o----- ", "------o"]
)
def test_a_line_of_the_prompt_that_is_not_six_characters_is_named(wrong: str) -> None:
    """Lines are counted without the silent beginning."""
    lines = piece_of(40)
    lines[19] = wrong
    with pytest.raises(TenfoldError, match=r"^a\.txt: '.*', line 20 of the prompt, is not six characters"):
        prompt_of(text_of([EMPTY] * 32 + lines), "a.txt")


# Conditions and infilling


def test_a_condition_stands_before_the_prompt_in_english() -> None:
    assert condition("funk", 96) == "style: funk, bpm: 96\n"
    assert conditioned(Example("a\nSEP\n", "b\nEND"), "jazz", 120) == (
        "style: jazz, bpm: 120\na\nSEP\n",
        "b\nEND",
    )


def test_a_missing_measure_is_asked_for_between_the_others_and_at_the_end() -> None:
    lines = piece_of(48)
    one, two, three = (text_of(lines[start : start + 16]) for start in (0, 16, 32))
    assert infilling(text_of(lines), 1) == (f"{one}SEP\nFILL\nSEP\n{three}SEP\nFILL\n", f"{two}END")
    assert infilling(text_of(lines), 0) == (f"FILL\nSEP\n{two}SEP\n{three}SEP\nFILL\n", f"{one}END")
    assert infilling(text_of(lines), 2) == (f"{one}SEP\n{two}SEP\nFILL\nSEP\nFILL\n", f"{three}END")


def test_a_last_measure_that_is_cut_off_is_closed_or_asked_for_as_it_is() -> None:
    lines = piece_of(20)
    one, rest = text_of(lines[:16]), text_of(lines[16:])
    assert infilling(text_of(lines), 0) == (f"FILL\nSEP\n{rest}SEP\nFILL\n", f"{one}END")
    assert infilling(text_of(lines), 1) == (f"{one}SEP\nFILL\nSEP\nFILL\n", f"{rest}END")


@pytest.mark.parametrize("name", ["1_6_rock_102_beat_3-4", "1_111_rock-prog_110_beat_5-4"])
def test_a_measure_put_back_in_its_place_gives_the_piece(name: str) -> None:
    (piece,) = [piece for piece in bundled_pieces() if piece.name == name]
    for measure in range(len(piece.text.splitlines()) // 16):
        prompt, completion = infilling(piece.text, measure)
        assert prompt.count("FILL\n") == 2 and prompt.endswith("FILL\n")
        whole = prompt.removesuffix("FILL\n").replace("FILL\n", text_of(lines_of(completion)))
        assert to_drumroll(whole, "") == piece.text, measure


@pytest.mark.parametrize("measure", [-1, 3, 100])
def test_a_measure_that_does_not_exist_cannot_be_filled_in(measure: int) -> None:
    with pytest.raises(IndexError, match=rf"^there is no measure {measure} in 48 lines$"):
        infilling(text_of(piece_of(48)), measure)
