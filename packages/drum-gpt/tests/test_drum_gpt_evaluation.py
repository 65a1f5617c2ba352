"""What is said of generated grooves, counted by hand; and annotations by hand."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest

from tenfold.drum_gpt.annotations import Annotation, count_annotations, read_annotations
from tenfold.drum_gpt.corpus import bundled_pieces, pieces_of
from tenfold.drum_gpt.evaluation import (
    describe_completions,
    describe_grooves,
    describe_lines,
    measure_lengths,
)
from tenfold.shared.logging import TenfoldError

LINE = "o-----\n"


def measure(*hits: tuple[int, int], line: str = "o-----") -> str:
    """Sixteen equal lines, with some more hits at (line, column)."""
    lines = [list(line) for _ in range(16)]
    for place, column in hits:
        lines[place][column] = "o"
    return "".join("".join(characters) + "\n" for characters in lines)


# Each further hit is one edit.
A, B, C = measure(), measure((4, 2)), measure((4, 2), (6, 3), (12, 2))
"""d(A, B) = 1, d(B, C) = 2, d(A, C) = 3."""
SILENCE = "------\n" * 16

# Form


def test_form_is_counted_over_all_lines_and_measures() -> None:
    """Measures of 16, 15, 16 and of 16 lines; the last text leaves more without an end, and a line that was cut off."""
    ended = LINE * 16 + "SEP\n" + LINE * 15 + "SEP\n" + LINE * 15 + "o----\nEND"
    cut = LINE * 16 + "SEP\n" + "-o-o-o\nooooooo\no"
    found = describe_completions([ended, cut])
    assert found == pytest.approx(
        {
            "malformed_rate": 2 / (47 + 18),
            "whole_measure_rate": 3 / 4,
            "measures": (3 + 1) / 2,
            "ended_rate": 1 / 2,
        }
    )


@pytest.mark.parametrize(
    ("completion", "lengths"),
    [
        ("", []),
        (LINE * 16, []),
        (LINE * 16 + "END", [16]),
        (LINE * 16 + "SEP\n" + LINE * 3, [16]),
        (LINE * 16 + "SEP\n" + LINE * 3 + "END", [16, 3]),
        (LINE * 16 + "SEP\n" + LINE * 17 + "SEP\n" + LINE * 2 + "END\n" + LINE * 16 + "SEP\n", [16, 17, 2]),
        (LINE * 15 + "no line\nSEP\n", [16]),
        (LINE * 2 + "SEP\nSEP\n" + LINE + "END", [2, 0, 1]),
        (LINE * 16 + "SE\nEND", [17]),
    ],
)
def test_measures_are_as_long_as_the_lines_between_separators(completion: str, lengths: list[int]) -> None:
    assert measure_lengths(completion) == lengths


def test_a_completion_that_ends_at_once_has_no_measure() -> None:
    assert describe_completions(["END"])["measures"] == 0


def test_a_completion_without_a_line_is_malformed() -> None:
    expected = {"malformed_rate": 1, "whole_measure_rate": 0, "measures": 0, "ended_rate": 0}
    assert describe_completions([""]) == expected


def test_end_counts_as_a_line_of_its_own_only() -> None:
    for completion in ("o-----END", "END-", "------\nEN"):
        assert describe_completions([completion])["ended_rate"] == 0
    assert describe_completions(["o-----\nEND", "END"])["ended_rate"] == 1


def test_completions_of_drummers_are_well_formed_to_the_end() -> None:
    completions = [piece.example.completion for piece in pieces_of("test") if piece.example]
    found = describe_completions(completions)
    assert (found["malformed_rate"], found["whole_measure_rate"], found["ended_rate"]) == (0, 1, 1)
    assert found["measures"] == pytest.approx(sum(text.count("SEP") + 1 for text in completions) / 37)


# Lines


def test_rates_of_lines_are_those_counted_by_hand() -> None:
    """C has 16 crashes, snares on lines 5 and 13 and a kick on line 7; A has crashes alone."""
    found = describe_lines([C + A])
    assert found["hits_per_line"] == pytest.approx((16 + 3 + 16) / 32)
    rates = {name: found[f"{name}_rate"] for name in ("crash", "ride", "snare", "kick", "hi-hat", "toms")}
    assert rates == pytest.approx(
        {"crash": 1, "ride": 0, "snare": 2 / 32, "kick": 1 / 32, "hi-hat": 0, "toms": 0}
    )
    assert found["backbeat_rate"] == pytest.approx(2 / 4)


def test_the_entropy_is_the_mean_over_steps_in_bits() -> None:
    """Three of four measures agree on three steps, and all agree on the others."""
    of_a_quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert describe_lines([A + C, A + A])["entropy_per_step"] == pytest.approx(3 * of_a_quarter / 16)
    assert describe_lines([A + C])["entropy_per_step"] == pytest.approx(3 / 16)
    assert describe_lines([C + C + C])["entropy_per_step"] == pytest.approx(0)


def test_a_text_without_its_last_newline_is_described_alike() -> None:
    assert describe_lines([(A + C + A).rstrip("\n")]) == pytest.approx(describe_lines([A + C + A]))


def test_backbeats_are_asked_of_whole_measures_that_sound() -> None:
    assert describe_lines([C + SILENCE])["backbeat_rate"] == 1
    assert describe_lines([B + C[:-7]])["backbeat_rate"] == 1 / 2
    assert describe_lines([measure((5, 2), (13, 2), (0, 2), (8, 2))])["backbeat_rate"] == 0
    assert math.isnan(describe_lines([SILENCE + C[:-7]])["backbeat_rate"])


def test_hits_of_malformed_lines_are_those_of_their_first_six_characters() -> None:
    found = describe_lines(["o-----ooo\noo\n\n--x--o\n"])
    assert found["hits_per_line"] == pytest.approx((1 + 2 + 0 + 1) / 4)
    assert found["crash_rate"] == pytest.approx(2 / 4)
    assert found["toms_rate"] == pytest.approx(1 / 4)
    assert math.isnan(found["entropy_per_step"])


@pytest.mark.parametrize("texts", [[], [""]])
def test_nothing_is_said_of_no_line(texts: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = describe_lines(texts)
    assert len(found) == 9 and all(math.isnan(value) for value in found.values())


def test_drums_are_hit_as_often_in_the_training_pieces_as_in_the_paper_s() -> None:
    found = describe_lines([piece.text for piece in bundled_pieces() if piece.split == "train"])
    rates = {"crash": 0.009, "ride": 0.084, "snare": 0.227, "kick": 0.169, "hi-hat": 0.232, "toms": 0.049}
    assert {name: round(found[f"{name}_rate"], 3) for name in rates} == rates
    assert round(found["hits_per_line"], 2) == 0.77


# Grooves


def test_grooves_are_described_as_counted_by_hand() -> None:
    """A B are given; C A follows, of which A stands in the prompt and C was learned. Stability 1 2, of humans 1 1."""
    found = describe_grooves([A + B + C + A], [A + B + A + B], [A + B], [SILENCE + C + SILENCE])
    assert found["mean_stability"] == pytest.approx((1 + 2) / 2)
    assert (found["gap"], found["own_centre_distance"]) == (1, 0)
    assert found["stability_distance"] == pytest.approx((0 + 1) / 2)
    assert found["copied_from_prompt_rate"] == pytest.approx(1 / 2)
    assert found["unseen_measure_rate"] == pytest.approx(1 / 2)
    assert found["hits_per_line"] == pytest.approx((19 + 16) / 32)
    assert found["backbeat_rate"] == pytest.approx(2 / 4)


def test_a_copy_is_one_of_its_own_prompt() -> None:
    """A follows twice, after A A and after B B; it was learned."""
    found = describe_grooves([A + A + A, B + B + A], [A * 3, B * 3], [A + A, B + B], [A])
    assert found["copied_from_prompt_rate"] == pytest.approx(1 / 2)
    assert found["unseen_measure_rate"] == 0


def test_measures_are_weighted_alike_whatever_their_groove() -> None:
    found = describe_grooves([A + A + A, A + A + C * 3], [A * 3, A * 5], [A + A] * 2, [A])
    assert found["copied_from_prompt_rate"] == pytest.approx(1 / 4)
    assert found["unseen_measure_rate"] == pytest.approx(3 / 4)


def test_silent_measures_are_neither_copied_nor_new() -> None:
    found = describe_grooves([A + B + SILENCE + B], [A + B + A + B], [A + B], [A + SILENCE])
    assert (found["copied_from_prompt_rate"], found["unseen_measure_rate"]) == (1, 1)


def test_drummers_are_no_distance_from_themselves() -> None:
    pieces = [piece.text for piece in pieces_of("test")[:5]]
    prompts = ["".join(text.splitlines(keepends=True)[:32]) for text in pieces]
    found = describe_grooves(pieces, pieces, prompts, pieces)
    assert found["stability_distance"] == 0
    assert found["unseen_measure_rate"] == 0


def test_a_groove_of_its_prompt_alone_has_nothing_written() -> None:
    found = describe_grooves([A + B], [A + B], [A + B], [A])
    assert all(math.isnan(value) for value in found.values())


def test_grooves_and_prompts_go_in_pairs() -> None:
    with pytest.raises(ValueError, match="zip"):
        describe_grooves([A + B + C], [A + B + C], [], [A])


# Annotations

HEADER = "name,pattern,fill,musical,unsteady,deviates,short\n"


def table(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "annotations.csv"
    path.write_text(header + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def test_annotations_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = read_annotations(table(tmp_path, "one,Consistent,yes,x,-,x,", "two,-,-,-,-,-,12"))
    assert found == [
        Annotation("one", "Consistent", True, False, None, False, None),
        Annotation("two", None, None, None, None, None, 12),
    ]


def test_columns_may_stand_in_any_order_beside_others(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "3,yes,x,x,x,a remark,None,one",
        header="short,deviates,unsteady,musical,fill,remark,pattern,name\n",
    )
    assert read_annotations(path) == [Annotation("one", "None", False, False, False, True, 3)]


def test_annotations_are_counted_by_pattern_and_flag(tmp_path: Path) -> None:
    rows = ["a,Repetitive,x,x,x,x,", "b,Consistent,yes,yes,x,x,", "c,Consistent,yes,x,yes,x,"]
    rows += ["d,Chaotic,x,-,yes,yes,4", "e,None,x,x,x,x,0", "f,-,-,-,-,-,"]
    assert count_annotations(read_annotations(table(tmp_path, *rows))) == {
        "pattern: Repetitive": 1,
        "pattern: Consistent": 2,
        "pattern: Chaotic": 1,
        "pattern: None": 1,
        "pattern: not judged": 1,
        "fill": 2,
        "musical": 1,
        "unsteady": 2,
        "deviates": 1,
        "short": 2,
    }


def test_no_annotations_are_counted_as_none(tmp_path: Path) -> None:
    assert read_annotations(table(tmp_path)) == []
    assert set(count_annotations([]).values()) == {0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "two,consistent,x,x,x,x,",
            "a pattern is Repetitive, Consistent, Chaotic, None or -, not 'consistent'",
        ),
        ("two,,x,x,x,x,", "a pattern is .*, not ''"),
        ("two,Chaotic,no,x,x,x,", "fill is yes, x or -, not 'no'"),
        ("two,Chaotic,x,YES,x,x,", "musical is yes, x or -, not 'YES'"),
        ("two,Chaotic,x,x,,x,", "unsteady is yes, x or -, not ''"),
        ("two,Chaotic,x,x,x, x,", "deviates is yes, x or -, not ' x'"),
        ("two,Chaotic,x,x", "unsteady is yes, x or -, not None"),
        ("two,Chaotic,x,x,x,x,-3", "short is a number of measures or empty, not '-3'"),
        ("two,Chaotic,x,x,x,x,3.5", "short is a number of measures or empty, not '3.5'"),
        ("two,Chaotic,x,x,x,x,-", "short is a number of measures or empty, not '-'"),
        ("two,Chaotic,x,x,x,x,3²", "short is a number of measures or empty, not '3²'"),
    ],
)
def test_a_cell_that_is_something_else_is_named_with_its_line(tmp_path: Path, row: str, message: str) -> None:
    path = table(tmp_path, "one,None,x,x,x,x,", row, "three,None,x,x,x,x,")
    with pytest.raises(TenfoldError, match=rf"annotations\.csv, line 3: {message}$"):
        read_annotations(path)


def test_empty_lines_are_passed_by_and_counted(tmp_path: Path) -> None:
    path = table(tmp_path, "one,None,x,x,x,x,", "", "", "two,Nothing,x,x,x,x,")
    with pytest.raises(TenfoldError, match=r"annotations\.csv, line 5: a pattern is "):
        read_annotations(path)


def test_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    path = table(tmp_path, header="name,pattern,musical,unsteady,short\n")
    with pytest.raises(TenfoldError, match=r"annotations\.csv lacks the columns deviates, fill$"):
        read_annotations(path)
    path.write_text("")
    with pytest.raises(
        TenfoldError, match=r"lacks the columns deviates, fill, musical, name, pattern, short, uns"
    ):
        read_annotations(path)


def test_a_table_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError, match=r"^there is no file .*none\.csv$"):
        read_annotations(tmp_path / "none.csv")
    with pytest.raises(TenfoldError, match=r"^there is no file "):
        read_annotations(tmp_path)


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "annotations.csv"
    path.write_bytes((HEADER + "café,None,x,x,x,x,\n").encode("latin-1"))
    with pytest.raises(TenfoldError, match=r"annotations\.csv"):
        read_annotations(path)
