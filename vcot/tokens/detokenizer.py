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
    """Of one reply. encoder: of the model that says it."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self._ends = encoder, encoder.eos_token_ids
        self._held: list[int] = []  # tokens whose text is not sent, from the beginning of a character on
        self._put = list(encoder.between)  # what must still come between a rationale and its answer
        self._in_rationale = bool(self._put)
        self._answered = False

    def add(self, token: int) -> str:
        """What can be sent now; empty while a character is not whole."""
        if self._answered:
            return ""
        if self._in_rationale or not self._put:
            if token not in self._ends:
                self._held.append(token)
                text = self._encoder.text_of(self._held)
                if text.endswith(_UNFINISHED):
                    return ""
                self._held.clear()
                return text
            self._answered = not (self._in_rationale and token == self._ends[0])
            self._in_rationale = False
            return self.rest()
        # As `decode` has it: what stands between the turns is a line break, once all of it is there.
        self._answered = token != self._put.pop(0)
        return "" if self._put or self._answered else "\n"

    def rest(self) -> str:
        """What was held back, when no more will come."""
        text = self._encoder.text_of(self._held) if self._held else ""
        self._held.clear()
        return text
