"""Between texts and the tokens of a network, of which it may know only those that drumrolls need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from tenfold.shared.logging import TenfoldError


class Vocabulary:
    """A tokenizer, and which of its tokens the network knows, in which order.

    Args:
        tokenizer: of transformers.
        kept: its tokens that the network knows; by default all. The network counts them from 0.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kept: Sequence[int] | None = None) -> None:
        if tokenizer.eos_token_id is None:
            raise TenfoldError("this tokenizer has no token for the end of a text; choose another model")
        self.tokenizer = tokenizer
        self.kept = None if kept is None else tuple(kept)
        self._place = None if self.kept is None else {token: place for place, token in enumerate(self.kept)}

    @property
    def end(self) -> int:
        """The network's token for the end of a text; padding as well."""
        end = int(self.tokenizer.eos_token_id)
        return end if self._place is None else self._place[end]

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, as the network counts them, without any at its ends.

        Raises:
            TenfoldError: the network does not know a token of it.
        """
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        if self._place is None:
            return tokens
        found: list[int] = []
        for token in tokens:
            found += [self._place[token]] if token in self._place else self._spelled(token)
        return found

    def _spelled(self, token: int) -> list[int]:
        """A token that the network does not know, as those of its characters: 'ooo' as three times 'o'."""
        assert self._place is not None
        text = str(self.tokenizer.decode([token]))
        spelled: list[int] = self.tokenizer.convert_tokens_to_ids(list(text))  # type: ignore[assignment]
        try:
            return [self._place[part] for part in spelled]
        except KeyError:
            raise TenfoldError(
                f"the network knows drumrolls alone and cannot read {text!r}; use one with its whole vocabulary"
            ) from None

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some tokens, up to the first end."""
        found = []
        for token in map(int, tokens):
            if token == self.end:
                break
            found.append(token if self.kept is None else self.kept[token])
        return str(self.tokenizer.decode(found, clean_up_tokenization_spaces=False))

    @cached_property
    def strings(self) -> list[str]:
        """The text of every token that the network knows; empty for the end."""
        tokens = range(len(self.tokenizer)) if self.kept is None else self.kept
        strings: list[str] = self.tokenizer.batch_decode(
            [[token] for token in tokens], clean_up_tokenization_spaces=False
        )
        strings[self.end] = ""
        return strings


def tokens_of(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> tuple[int, ...]:
    """The tokens that texts are made of, and the end, in the tokenizer's order.

    Raises:
        TenfoldError: the tokenizer does not give a text back as it was.
    """
    tokens = {int(tokenizer.eos_token_id)}
    for text in texts:
        found = tokenizer.encode(text, add_special_tokens=False)
        check_round_trip(tokenizer, text, found)
        tokens.update(found)
    return tuple(sorted(tokens))


def check_round_trip(tokenizer: PreTrainedTokenizerBase, text: str, tokens: Sequence[int]) -> None:
    """Refuse a tokenizer that loses something of a drumroll.

    Raises:
        TenfoldError: it does.
    """
    if tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False) != text:
        raise TenfoldError(
            "this model's tokenizer does not give drumrolls back as they were; choose another model"
        )


def check_parts(vocabulary: Vocabulary, texts: Iterable[str]) -> None:
    """Refuse a tokenizer whose tokens do not stand for the same characters wherever they are.

    Raises:
        TenfoldError: it loses something, or puts spaces before the parts of a text.
    """
    for text in texts:
        half = text.index("\n") + 1
        tokens = vocabulary.encode(text[:half]) + vocabulary.encode(text[half:])
        spelled = "".join(vocabulary.strings[token] for token in tokens)
        if vocabulary.decode(tokens) != text or spelled != text:
            raise TenfoldError(
                "this model's tokenizer does not give drumrolls back as they were; choose another model"
            )
