"""How replies are made, as a value: apart from what makes them, because torch is not wherever replies are read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Decoding:
    """How replies are made.

    Attributes:
        max_new_tokens: longest reply.
        temperature: 0: the most likely token each time, else tokens are drawn.
        samples: replies to each prompt; more than one only where they are drawn.
        seed: of the draws; each prompt's replies depend on it and on the prompt alone, not on the batch.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.samples < 1 or self.temperature < 0 or self.seed < 0:
            raise ValueError(f"{self}: at least one token and one sample are needed; nothing may be below 0")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"{self}: at temperature 0 all samples are alike; ask for one, or raise the temperature")
