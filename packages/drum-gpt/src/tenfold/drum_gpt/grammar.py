"""A grammar of completions as an automaton over tokens: lines of six characters, measures of sixteen lines.

A completion is ``(line{16} SEP\\n){m-1} line{16} END`` with ``line = [-o]{6}\\n`` and at most so many measures m.
A network that draws from what it allows writes nothing malformed, at the cost of one table look-up for each token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tenfold.drum_gpt.encoding import DRUMS, HIT, MEASURE, REST
from tenfold.drum_gpt.prompts import END, SEPARATOR
from tenfold.shared.logging import TenfoldError

State = tuple[int, ...] | str
"""(measure, line, column); (measure, characters of the separator); or the characters of the end that stand."""


def next_states(state: State, measures: int) -> dict[str, State]:
    """What each character that may follow leads to."""
    if isinstance(state, str):
        return {END[len(state)]: END[: len(state) + 1]} if state != END else {}
    if len(state) == 2:
        measure, done = state
        separator = f"{SEPARATOR}\n"
        is_last = done == len(separator) - 1
        return {separator[done]: (measure + 1, 0, 0) if is_last else (measure, done + 1)}
    measure, line, column = state
    if line == MEASURE:
        is_full = measure == measures - 1
        return {END[0]: END[:1]} | ({} if is_full else {SEPARATOR[0]: (measure, 1)})
    if column == len(DRUMS):
        return {"\n": (measure, line + 1, 0)}
    return dict.fromkeys((HIT, REST), (measure, line, column + 1))


class Grammar:
    """The automaton for the tokens of one network.

    Args:
        strings: text of every token.
        end: the token that ends a text, the only one that may follow a complete completion.
        measures: most measures of a completion.

    Raises:
        TenfoldError: these tokens cannot write a drumroll, or there is no measure.
    """

    def __init__(self, strings: Sequence[str], end: int, measures: int) -> None:
        if measures < 1:
            raise TenfoldError(f"a completion has at least one measure, not {measures}")
        transitions: dict[State, dict[str, State]] = {}
        waiting: list[State] = [(0, 0, 0)]
        while waiting:
            state = waiting.pop()
            if state not in transitions:
                transitions[state] = next_states(state, measures)
                waiting += transitions[state].values()
        numbers = {state: number for number, state in enumerate(sorted(transitions, key=_start_first))}
        alphabet = {character for followers in transitions.values() for character in followers}
        writable = [
            token for token, text in enumerate(strings) if token != end and text and set(text) <= alphabet
        ]
        self.end = end
        self.tokens = torch.tensor([*writable, end])
        """[K], the tokens that may ever come."""
        self.table = torch.full((len(numbers), len(self.tokens)), -1)
        """[states, K], the state after each of them, or -1 where it may not come; state 0 is the beginning."""
        for state, number in numbers.items():
            for column, token in enumerate(writable):
                place: State | None = state
                for character in strings[token]:
                    place = transitions[place].get(character) if place is not None else None
                if place is not None:
                    self.table[number, column] = numbers[place]
        self.table[numbers[END], -1] = numbers[END]
        self._check_reachable(
            {numbers[state]: set(followers) for state, followers in transitions.items()}, strings
        )

    def accepts(self, tokens: Sequence[int]) -> bool:
        """Whether some tokens, their end among them, are a complete completion."""
        column_of = {token: column for column, token in enumerate(self.tokens.tolist())}
        state = 0
        for token in tokens:
            state = int(self.table[state, column_of[token]]) if token in column_of else -1
            if state < 0:
                return False
        return bool(tokens) and tokens[-1] == self.end

    def _check_reachable(self, followers: dict[int, set[str]], strings: Sequence[str]) -> None:
        """In every state that can be reached there is a token for each character that may follow."""
        reached = torch.zeros(len(self.table), dtype=torch.bool)
        reached[0] = True
        while True:
            following = self.table[reached]
            more = reached.clone()
            more[following[following >= 0]] = True
            if torch.equal(more, reached):
                break
            reached = more
        first = [strings[token][0] for token in self.tokens[:-1].tolist()]
        for state in reached.nonzero().flatten().tolist():
            allowed = (self.table[state, :-1] >= 0).nonzero().flatten().tolist()
            if {first[column] for column in allowed} != followers[state]:
                raise TenfoldError(
                    "this model's tokens cannot write every drumroll; sample without the grammar"
                )


class GrammarProcessor(LogitsProcessor):
    """Takes the probability of what the grammar does not allow, while transformers samples.

    Use a new one for each call of ``generate``.
    """

    def __init__(self, grammar: Grammar, device: torch.device) -> None:
        self._tokens = grammar.tokens.to(device)
        self._table = grammar.table.to(device)
        self._states: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Args: tokens so far [B, T] and logits of the next [B, V]; what may not come gets -inf."""
        if self._states is None:
            self._states = torch.zeros(len(input_ids), dtype=torch.int64, device=input_ids.device)
        else:
            column = (self._tokens == input_ids[:, -1:]).to(torch.int8).argmax(dim=1)
            self._states = self._table[self._states, column].clamp(min=0)
        allowed = self._table[self._states] >= 0
        masked = torch.full_like(scores, float("-inf"))
        masked[:, self._tokens] = scores[:, self._tokens].masked_fill(~allowed, float("-inf"))
        return masked


def _start_first(state: State) -> tuple[bool, str]:
    return state != (0, 0, 0), str(state)
