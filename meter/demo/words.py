"""Text without a model: prompts become tokens, and answers are plausible words.

Tokens of prompts are hashes of short pieces of text (about one token a word, as real tokenizers
give), so that texts that begin alike begin with the same tokens. Tokens of answers are indices of
the vocabulary below. Everything follows from a seed.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterable

_PIECE = re.compile(r"\s*(?:\w{1,7}|[^\w\s])")
_PROMPT_TOKENS_FROM = 1000
_PROMPT_TOKENS = 120_000

END = 0
STOP_WORD = "."
_WORDS = """. , the a of and to in is for with on that this by from as at every each one most some
meter energy power joule watt second hour request answer token prompt model card engine batch step
cache memory bandwidth weight layer head context window server room rack fan grid sun wind price
market night morning tenant account ledger receipt counter reading interval clock signal noise
share part sum total cost bill proof true small large long short fast slow cold warm idle busy quiet
measures moves reads writes counts splits shares pays keeps costs saves grows falls runs waits
begins ends joins leaves returns holds shows says knows gives takes makes needs uses
only also then now still never always often together alone exactly nearly about between under over
before after while because where when what who how much less more than same other""".split()  # noqa: SIM905
VOCABULARY = ("", *_WORDS)


def tokens_of(text: str) -> list[int]:
    """The tokens of a prompt."""
    return [
        _PROMPT_TOKENS_FROM + zlib.crc32(piece.lstrip().encode()) % _PROMPT_TOKENS
        for piece in _PIECE.findall(text)
    ]


class Writer:
    """Writes one answer: the next token, the text so far, and whether it ends here.

    ``mean_tokens``: how long answers are on average before they end by themselves (``None``: they
    never do); ``stop``: strings that end it, which are not part of the text. One thread writes;
    others may read ``text`` and ``safe_text`` at any time.
    """

    def __init__(
        self, seed: str, mean_tokens: float | None = None, stop: Iterable[str] = ()
    ) -> None:
        self._random = random.Random(seed)
        self._stop = tuple(stop)
        self._held_back = max((len(stop) for stop in self._stop), default=1) - 1
        self._starts_sentence = True
        self._ended = False
        self._length = self._draw_length(mean_tokens)
        self.text = ""

    @property
    def safe_text(self) -> str:
        """The text that no stop string can take back any more."""
        text = self.text
        return text if self._ended else text[: max(0, len(text) - self._held_back)]

    def next_token(self, position: int) -> int:
        """The token at ``position`` of the output (from 0)."""
        if self._length is not None and position + 1 >= self._length:
            return END
        after_word = position > 0 and not self._starts_sentence
        return self._random.randint(1 if after_word else 3, len(_WORDS))

    def ends(self, count: int, token: int) -> bool:
        """Take the ``count``-th token into the text; true where the answer ends with it."""
        if token == END:
            self._ended = True
            return True
        self.text += self._piece(VOCABULARY[token])
        found = [at for stop in self._stop if (at := self.text.find(stop, self._from(stop))) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self._ended = True
        return bool(found)

    def finish(self) -> None:
        """Nothing more will come: all text is safe."""
        self._ended = True

    def _piece(self, word: str) -> str:
        if word in {".", ","}:
            self._starts_sentence = word == STOP_WORD
            return word
        text = word.capitalize() if self._starts_sentence else word
        self._starts_sentence = False
        return f" {text}" if self.text else text

    def _from(self, stop: str) -> int:
        """Where a new occurrence may begin: no token is longer than 20 characters."""
        return max(0, len(self.text) - len(stop) - 20)

    def _draw_length(self, mean_tokens: float | None) -> int | None:
        if mean_tokens is None:
            return None
        return max(2, round(mean_tokens * self._random.lognormvariate(-0.18, 0.6)))
