"""The text of a reply while its tokens come.

    said = Detokenizer(encoder)
    for token in …:
        send(said.add(token))
    send(said.rest())

What is sent is, put together, what `Encoder.decode` makes of all tokens. A character may take several tokens, and is
sent with the last of them.
"""

from __future__ import annotations

from vcot.tokens.encoder import Encoder

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Of one reply.

    Args:
        encoder: of the model that says it.
        rationale: it begins with a rationale that is a turn of its own, if the encoder's contract has such turns.
    """

    def __init__(self, encoder: Encoder, *, rationale: bool = True) -> None:
        self._encoder, self._ends = encoder, encoder.eos_token_ids
        self._held: list[int] = []  # tokens whose text is not sent, from the beginning of a character on
        self._put = list(encoder.between) if rationale else []  # what must still come behind a rationale's end
        self._in_rationale = bool(self._put)
        self.ended = False

    def add(self, token: int) -> str:
        """What can be sent now; empty while a character is not whole."""
        if self.ended:
            return ""
        if self._put and not self._in_rationale:
            # As `decode` has it: what stands between the turns is a line break, once all of it is there.
            self.ended = token != self._put.pop(0)
            return "" if self._put or self.ended else "\n"
        if token in self._ends:
            self.ended = not (self._in_rationale and token == self._ends[0])
            self._in_rationale = False
            return self.rest()
        self._held.append(token)
        text = self._encoder.text_of(self._held)
        if text.endswith(_UNFINISHED):
            return ""
        self._held.clear()
        return text

    def rest(self) -> str:
        """What was held back, when no more will come."""
        text = self._encoder.text_of(self._held) if self._held else ""
        self._held.clear()
        return text
