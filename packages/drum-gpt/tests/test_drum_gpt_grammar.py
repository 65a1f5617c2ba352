"""The automaton over tokens, against a regular expression of its language; and how it masks logits."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.drum_gpt.corpus import pieces_of
from tenfold.drum_gpt.grammar import Grammar, GrammarProcessor
from tenfold.drum_gpt.ngram import as_completion
from tenfold.shared.logging import TenfoldError

LETTERS = ["o", "-", "\n", "S", "E", "P", "N", "D"]
PIECES = ["", "--", "----", "------", "oo", "SE", "P", "END", "\n", "o", "-", "E", "S", "N", "D"]
"""As SmolLM2 cuts drumrolls, its end first, and letters for what nobody should write."""
STRANGE = [
    *PIECES,
    "\n\n",
    "o\n",
    "\nSEP\n",
    "\nEND",
    "SEP\n",
    "P\n--",
    "ENDS",
    "x",
    " o",
    "---o---",
    "\n-",
    "END\n",
]
"""As the whole vocabulary of a network: tokens across lines and measures, and such as never fit."""
VOCABULARIES = {"letters": ["", *LETTERS], "pieces": PIECES, "strange": STRANGE}
MEASURES = 3
GRAMMARS = {name: Grammar(strings, 0, MEASURES) for name, strings in VOCABULARIES.items()}


def is_completion(text: str, measures: int = MEASURES) -> bool:
    """(line{16} SEP){m-1} line{16} END with at most so many measures."""
    measure = r"(?:[-o]{6}\n){16}"
    return re.fullmatch(rf"(?:{measure}SEP\n){{0,{measures - 1}}}{measure}END", text) is not None


def may_become_completion(text: str, measures: int = MEASURES) -> bool:
    """Whether it is the beginning of one: compared with every possible shape, in which L is a hit or a rest."""
    measure = "LLLLLL\n" * 16
    shape = text.translate({ord("o"): "L", ord("-"): "L"})
    return any((f"{measure}SEP\n" * m + f"{measure}END").startswith(shape) for m in range(measures))


def cut(text: str, strings: Sequence[str], rng: random.Random) -> list[int]:
    """A text in tokens, each one drawn from those that fit."""
    found, place = [], 0
    while place < len(text):
        fitting = [token for token, string in enumerate(strings) if string and text.startswith(string, place)]
        found.append(rng.choice(fitting))
        place += len(strings[found[-1]])
    return found


def random_completion(measures: int, rng: random.Random) -> str:
    line = lambda: "".join(rng.choice("-o") for _ in range(6)) + "\n"  # noqa: E731
    return "SEP\n".join("".join(line() for _ in range(16)) for _ in range(measures)) + "END"


# The language


@pytest.mark.parametrize("name", VOCABULARIES)
@given(st.integers(1, MEASURES), st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_every_completion_is_accepted_however_it_is_cut_into_tokens(
    name: str, measures: int, seed: int
) -> None:
    rng = random.Random(seed)
    text = random_completion(measures, rng)
    assert is_completion(text)
    assert GRAMMARS[name].accepts([*cut(text, VOCABULARIES[name], rng), 0])


@st.composite
def corrupted(draw: st.DrawFn) -> str:
    """A completion, of which one or two pieces are missing, doubled, or something else."""
    rng = random.Random(draw(st.integers(0, 10_000)))
    text = random_completion(draw(st.integers(1, MEASURES)), rng)
    for _ in range(draw(st.integers(1, 2))):
        start = draw(st.integers(0, len(text)))
        size = draw(st.sampled_from([0, 1, 1, 2, 4, 7, 7, 112, 116]))
        other = draw(
            st.sampled_from(
                ["", "o", "-", "\n", "SEP\n", "END", "S", "E", "o-----\n", text[start:][:size] * 2]
            )
        )
        text = text[:start] + other + text[start + size :]
    return text


@pytest.mark.parametrize("name", VOCABULARIES)
@given(corrupted(), st.integers(0, 10_000))
@settings(deadline=None, max_examples=100)
def test_exactly_the_texts_of_the_regular_expression_are_accepted(name: str, text: str, seed: int) -> None:
    tokens = cut(text, VOCABULARIES[name], random.Random(seed))
    assert GRAMMARS[name].accepts([*tokens, 0]) == is_completion(text)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_whatever_is_drawn_within_the_grammar_is_a_completion(name: str) -> None:
    strings, grammar = VOCABULARIES[name], GRAMMARS[name]
    rng, lengths = random.Random(0), set()
    for _ in range(40):
        state, text = 0, ""
        for _ in range(MEASURES * (16 * 7 + 4)):
            column = rng.choice((grammar.table[state] >= 0).nonzero().flatten().tolist())
            token = int(grammar.tokens[column])
            if token == grammar.end:
                break
            state, text = int(grammar.table[state, column]), text + strings[token]
        assert is_completion(text)
        lengths.add(text.count("SEP") + 1)
    assert lengths == {1, 2, 3}


@pytest.fixture(scope="module")
def of_14_measures() -> Grammar:
    return Grammar(PIECES, 0, 14)


def accepts(text: str, grammar: Grammar = GRAMMARS["pieces"]) -> bool:
    return grammar.accepts([*cut(text, PIECES, random.Random(0)), 0])


def test_completions_of_drummers_are_accepted(of_14_measures: Grammar) -> None:
    for piece in pieces_of("test")[:12]:
        assert piece.example is not None
        assert accepts(piece.example.completion, of_14_measures), piece.name


def test_completions_as_the_ngram_model_writes_them_are_accepted() -> None:
    assert accepts(as_completion(["o-o--o"] * 32))
    assert not accepts(as_completion(["o-o--o"] * 31))


@pytest.mark.parametrize("lines", [0, 1, 15, 17, 31])
def test_the_end_comes_after_whole_measures_alone(lines: int) -> None:
    text = "".join("o-----\n" + "SEP\n" * (number % 16 == 0) for number in range(1, lines + 1))
    assert not accepts(f"{text}END")
    assert not accepts("o-----\n" * 16 + "SEP\nEND")


def of_measures(count: int) -> str:
    return "SEP\n".join(["------\n" * 16] * count) + "END"


def test_so_many_measures_are_written_and_no_more(of_14_measures: Grammar) -> None:
    for grammar, most in ((Grammar(PIECES, 0, 1), 1), (GRAMMARS["pieces"], MEASURES), (of_14_measures, 14)):
        assert all(accepts(of_measures(count), grammar) for count in range(1, most + 1))
        assert not accepts(of_measures(most + 1), grammar)


def test_only_the_token_of_the_end_ends_a_text() -> None:
    rng = random.Random(0)
    text = random_completion(2, rng)
    tokens = cut(text, PIECES, rng)
    grammar = GRAMMARS["pieces"]
    assert grammar.accepts([*tokens, 0])
    assert not grammar.accepts(tokens)
    assert not grammar.accepts([])
    assert not grammar.accepts([0])
    assert not grammar.accepts([*tokens[:-1], 0])
    assert not grammar.accepts([*tokens, 0, PIECES.index("o")])
    assert not grammar.accepts([*tokens, len(PIECES)])


def test_the_token_of_the_end_may_stand_anywhere_and_have_a_text() -> None:
    """Some vocabularies write it as <|endoftext|>, some as what would be a line."""
    for strings in ([*LETTERS, "<end>"], [*LETTERS, "o"]):
        grammar = Grammar(strings, len(LETTERS), 1)
        tokens = cut("o-o-o-\n" * 16 + "END", LETTERS, random.Random(0))
        assert grammar.accepts([*tokens, len(LETTERS)])
        assert not grammar.accepts([len(LETTERS), *tokens[1:], len(LETTERS)])


# Tokens that cannot write a drumroll


@pytest.mark.parametrize("missing", LETTERS)
def test_a_vocabulary_that_cannot_write_every_drumroll_is_refused(missing: str) -> None:
    strings = ["", *(letter for letter in LETTERS if letter != missing)]
    with pytest.raises(TenfoldError, match=r"cannot write every drumroll"):
        Grammar(strings, 0, 2)


@pytest.mark.parametrize("strings", [["end"], ["end", "x", "drum"], ["end", "------", "\n"]])
def test_a_vocabulary_without_drumrolls_is_refused(strings: list[str]) -> None:
    with pytest.raises(TenfoldError, match=r"cannot write every drumroll"):
        Grammar(strings, 0, 2)


def test_a_separator_need_not_be_written_where_there_is_one_measure() -> None:
    strings = ["", "o", "-", "\n", "END"]
    grammar = Grammar(strings, 0, 1)
    assert grammar.accepts([*cut("o-----\n" * 16 + "END", strings, random.Random(0)), 0])


# Masks


def allowed(text: str, strings: Sequence[str], end: int) -> list[bool]:
    """By the shapes of completions, without any automaton."""
    return [
        is_completion(text) if token == end else bool(string) and may_become_completion(text + string)
        for token, string in enumerate(strings)
    ]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_logits_are_masked_step_by_step_for_rows_in_different_states(name: str) -> None:
    """Three rows with different prompts; one that has ended waits for the others."""
    strings = VOCABULARIES[name]
    processor = GrammarProcessor(GRAMMARS[name], torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(len(strings), (3, 5), generator=generator)
    written, ended, waited = [""] * 3, torch.zeros(3, dtype=torch.bool), False
    for _ in range(MEASURES * (16 * 7 + 4) + 1):
        logits = torch.randn(3, len(strings), generator=generator)
        kept = logits.clone()
        masked = processor(tokens, logits)
        for row, text in enumerate(written):
            expected = torch.tensor(allowed(text, strings, 0))
            assert torch.equal(masked[row].isfinite(), expected), text
            assert torch.equal(masked[row][expected], kept[row][expected])
            assert (masked[row][~expected] == float("-inf")).all()
        drawn = torch.multinomial(masked.softmax(dim=1), 1, generator=generator)
        tokens = torch.cat([tokens, drawn], dim=1)
        ended |= drawn[:, 0] == 0
        waited |= bool(ended.any()) and not bool(ended.all())
        written = [text + strings[token] for text, token in zip(written, drawn[:, 0].tolist(), strict=True)]
        if ended.all():
            break
    assert all(map(is_completion, written))
    assert waited


def test_a_new_processor_begins_anew_whatever_was_written_before() -> None:
    """The first call sees prompts, which are no part of the completion."""
    grammar = GRAMMARS["pieces"]
    for prompt in (torch.zeros(2, 1, dtype=torch.int64), torch.full((2, 40), PIECES.index("END"))):
        processor = GrammarProcessor(grammar, torch.device("cpu"))
        masked = processor(prompt, torch.zeros(2, len(PIECES)))
        for row in masked:
            assert row.isfinite().tolist() == allowed("", PIECES, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_keep_their_type(dtype: torch.dtype) -> None:
    processor = GrammarProcessor(GRAMMARS["pieces"], torch.device("cpu"))
    masked = processor(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, len(PIECES), dtype=dtype))
    assert masked.dtype == dtype and (masked[masked.isfinite()] == 1).all()


def test_a_completion_without_a_measure_is_refused() -> None:
    with pytest.raises(TenfoldError, match="at least one measure"):
        Grammar(["o", "-", "\n", ""], 3, 0)
