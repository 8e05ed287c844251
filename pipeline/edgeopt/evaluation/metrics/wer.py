"""Word error rate."""

from typing import Self

from pydantic import Field, model_validator

from edgeopt.evaluation.metrics._error_rate import ErrorRate, Units


class Wer(ErrorRate):
    """Edit operations per reference word, over the whole set; 0 is perfect, and it may exceed 1.

    Words are what the ``separator`` splits; without it, every token is a word. The operations are
    substitutions, insertions and deletions of words (Levenshtein 1966). Labels are ``n`` arrays of tokens, or
    padded ``[n, k]``. A word with a predicted token that no symbol has is wrong.
    """

    separator: int | str | None = Field(
        None, description="token between words, or its character in 'symbols'; null: every token is a word"
    )

    @model_validator(mode="after")
    def _known_separator(self) -> Self:
        if isinstance(self.separator, str) and (
            len(self.separator) != 1 or self.separator not in (self.symbols or "")
        ):
            raise ValueError(f"the separator {self.separator!r} is not a character of 'symbols'")
        if isinstance(self.separator, int) and (
            self.separator < 0 or (self.symbols is not None and self.separator >= len(self.symbols))
        ):
            raise ValueError(f"the separator {self.separator} is not a token")
        return self

    def units(self, symbols: Units) -> Units:
        if self.separator is None:
            return symbols
        separator = self.separator
        if isinstance(separator, int) and self.symbols is not None:
            separator = self.symbols[separator]
        words: list[Units] = [[]]
        for symbol in symbols:
            if symbol == separator:
                words.append([])
            else:
                words[-1].append(symbol)
        return [tuple(word) for word in words if word]
