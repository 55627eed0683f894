"""What a model generates, greedily or drawn at random, and how likely it finds what is put into its mouth.

    generate(model, batch, Decoding(…), eos_token_ids=…)    per prompt, per draw: tokens and their log-probabilities
    score_continuations(model, batch, continuations)        per prompt, per continuation: log-probabilities
    reply_logits(model, batch, reply)                       of one prompt: all that a reply was chosen from

All compute a prompt once and go on from its keys and values, as often as there are draws or continuations. The
library's generate() would put each prompt through the language model once per draw: it expands the batch first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vcot.models.decoding import Decoding
from vcot.models.families import family_of
from vcot.models.families.base import Grid
from vcot.models.loading import whole_model

COMPUTED = 0.9
"""Replies that have ended are left out of a batch once no more than this share of it goes on: not each by itself,
because that copies the keys and values of all others."""


class Generated(NamedTuple):
    """One reply.

    ids: its tokens, with the end token where it ended by itself, without padding.
    logprobs: of each of them, natural logarithm, under the model's own distribution (temperature 1, nothing cut off),
        at whatever temperature it was drawn; 0 of those that were put there.
    ended: it came to its end, and was not cut off.
    """

    ids: list[int]
    logprobs: list[float]
    ended: bool


class Step(NamedTuple):
    """The next token of each reply that goes on.

    replies: which they are, prompt by prompt, draw by draw: number of the prompt · samples + number of the draw.
    ids, logprobs: of each its token, as in `Generated`; its end token, too.
    top: of each the likeliest tokens with their log-probabilities, the likeliest first; as many as were asked for.
    """

    replies: list[int]
    ids: list[int]
    logprobs: list[float]
    top: list[list[tuple[int, float]]]


def generate(
    model: Any, batch: Mapping[str, Tensor], decoding: Decoding, *, eos_token_ids: Sequence[int],
    between: Sequence[int] = (), seeds: Sequence[int] | None = None,
    listener: Callable[[Step], Collection[int]] | None = None, top: int = 0,
) -> list[list[Generated]]:  # fmt: skip
    """Continues each prompt, token by token.

    Whatever the base's generation_config.json asks for, no repetition penalty (it punishes digits that were used
    before, and so bends coordinates), and tokens are drawn from the whole distribution, but for those that stand for
    an image or a video: a model that reads a reply with one of them looks for the image that belongs to it.

    The first draws of many are those that fewer would have been. A draw is the same in any batch as far as the model
    computes the same there: rounding differs a little with padding and number of rows, most so in bfloat16.

    Args:
        batch: as `Encoder.prompts` makes it: input_ids, attention_mask, mm_token_type_ids [B, T], padded on the
            left; pixel_values and image_grid_thw where there are images.
        eos_token_ids: a reply ends at the first of these.
        between: of a model whose rationale is a turn of its own (`Encoder.between`): what is put behind the end of that
            turn, the first of `eos_token_ids`, before the reply goes on to its next end. It counts among the new
            tokens. A prompt whose last turn has begun with it is already past it.
        seeds: of each prompt, in the place of the decoding's.
        listener: is told each token as soon as it is chosen, and returns the replies that are to end with it. Nobody
            listening costs nothing; a listener waits for the device at each token.
        top: how many of the likeliest tokens the listener is told each time.

    Returns:
        Per prompt its draws, `decoding.samples` of them.
    """
    with _inference(model) as inner:
        prompts = prompts_of(inner, batch)
        prefix = Prefix(inner, batch, prompts)
        device, samples = prefix.logits.device, decoding.samples
        noise = None
        if decoding.temperature > 0:
            each = [replace(decoding, seed=seed) for seed in seeds] if seeds else [decoding] * len(prompts)
            drawn = [_noise(prompt, own) for prompt, own in zip(prompts, each, strict=True)]
            noise = torch.from_numpy(np.concatenate(drawn)).to(device)
        rows = torch.arange(len(prompts), device=device).repeat_interleave(samples)
        if samples > 1:
            prefix.select(rows)
        logits, ends = prefix.logits, torch.tensor(list(eos_token_ids), device=device)
        never = torch.tensor(placeholders(inner.config), device=device)
        ids = torch.zeros(len(rows), decoding.max_new_tokens, dtype=torch.long, device=device)
        logprobs = torch.zeros(ids.shape, device=device)
        computed = torch.arange(len(rows), device=device)  # which replies the rows of the batch are
        going_on = torch.ones(len(rows), dtype=torch.bool, device=device)  # which of these have not ended
        opens = [bool(between) and _in_rationale(prompt.ids, eos_token_ids[0], between) for prompt in prompts]
        put = torch.tensor(list(between), dtype=torch.long, device=device)
        stopped: dict[int, int] = {}  # reply → its length, where the listener has ended it
        # Of each reply: 0 in its rationale, n where the n-th token between comes next, more than there are after them.
        turn = torch.tensor([0 if one else len(put) + 1 for one in opens], device=device).repeat_interleave(samples)
        for place in range(decoding.max_new_tokens):
            if place:
                logits = prefix.extend(ids[computed, place - 1, None])[:, -1].float()
            sayable = logits.index_fill(1, never, -torch.inf)
            if noise is None:
                chosen = sayable.argmax(-1)
            else:
                chosen = _drawn(sayable / decoding.temperature, noise[computed, place])
            ended = torch.isin(chosen, ends)
            if between:
                at = turn[computed]
                given = (at > 0) & (at <= len(put))
                chosen = torch.where(given, put[(at - 1).clamp(0, len(put) - 1)], chosen)
                closes = (at == 0) & (chosen == ends[0])
                turn[computed] = at + (given | closes)
                ended &= ~(given | closes)
            ids[computed, place] = chosen
            # One step's distribution at a time: those of all steps would be gigabytes.
            distribution = logits.log_softmax(-1)
            likely = distribution.gather(1, chosen[:, None])[:, 0]
            if between:
                likely = likely.masked_fill(given, 0.0)
            logprobs[computed, place] = likely
            if listener is not None:
                step = _step(computed, chosen, likely, distribution, going_on, top)
                if enough := {*listener(step)} & {*step.replies}:
                    stopped |= dict.fromkeys(enough, place + 1)
                    ended |= torch.tensor([reply in enough for reply in computed.tolist()], device=device)
            going_on &= ~ended
            left = int(going_on.sum())
            if not left:
                break
            if left <= COMPUTED * len(going_on):
                prefix.select(going_on.nonzero()[:, 0])
                computed, going_on = computed[going_on], going_on[going_on]
    said, made = list[Generated](), zip(ids[:, : place + 1].tolist(), logprobs[:, : place + 1].tolist(), strict=True)
    for number, (row, own) in enumerate(made):
        row = row[: stopped.get(number)]
        # A row that has ended may be computed for a while; what it says then is cut off, and no other row sees it.
        after = put_there(row, eos_token_ids, between).stop if opens[number // samples] else 0
        end = next((at for at in range(after, len(row)) if row[at] in eos_token_ids), None)
        length = len(row) if end is None else end + 1
        said.append(Generated(row[:length], own[:length], end is not None))
    return [said[start : start + samples] for start in range(0, len(said), samples)]


def _step(
    computed: Tensor, chosen: Tensor, likely: Tensor, distribution: Tensor, going_on: Tensor, top: int
) -> Step:  # fmt: skip
    """What a listener is told of the rows that go on."""
    rows = going_on.nonzero()[:, 0]
    best = distribution[rows].topk(top)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    likeliest = [list(zip(ids, values, strict=True)) for ids, values in pairs]
    return Step(computed[rows].tolist(), chosen[rows].tolist(), likely[rows].tolist(), likeliest)


def placeholders(config: Any) -> list[int]:
    """Tokens in whose place a model of this configuration reads images or videos."""
    names = ("image_token_id", "video_token_id")
    return [token for name in names if (token := getattr(config, name, None)) is not None]


def put_there(ids: Sequence[int], eos_token_ids: Sequence[int], between: Sequence[int]) -> range:
    """Places of the tokens of a reply that `generate` has put between its rationale and its answer; none where its
    first end is not that of a rationale, or nothing follows it."""
    end = next((place for place, token in enumerate(ids) if token in eos_token_ids), None)
    if end is None or not between or ids[end] != eos_token_ids[0]:
        return range(0)
    return range(end + 1, min(end + 1 + len(between), len(ids)))


def _in_rationale(prompt: Sequence[int], end: int, between: Sequence[int]) -> bool:
    """Whether a reply to it begins with its rationale, or goes on with one."""
    last = max((place for place, token in enumerate(prompt) if token == end), default=-1)
    return list(prompt[last + 1 : last + 1 + len(between)]) != list(between)


def score_continuations(
    model: Any, batch: Mapping[str, Tensor], continuations: Sequence[Sequence[Sequence[int]]],
    begun: Sequence[tuple[int, Sequence[int]]] | None = None,
) -> list[list[list[float]]]:  # fmt: skip
    """How likely a model finds given continuations of each prompt, or of each beginning of a reply to one.

    Each prompt is computed once, each beginning once, and logits for the tokens of the continuations alone. They, and
    the keys and values of a prompt for each of its continuations, are in memory at once; the size of the batch bounds
    both.

    Args:
        batch: as in `generate`.
        continuations: per beginning any number of them, as token ids, without what stands before them.
        begun: of each beginning the prompt's row and its token ids; None: each prompt once, with nothing said yet.

    Returns:
        Per beginning, per continuation, the natural log-probability of each of its tokens (temperature 1), given all
        before it.
    """
    if begun is None:
        begun = [(row, ()) for row in range(len(batch["input_ids"]))]
    if len(continuations) != len(begun):
        raise ValueError(f"{len(continuations)} lists of continuations for {len(begun)} prompts")
    flat = [list(ids) for several in continuations for ids in several]
    longest = max(map(len, flat), default=0)
    if not longest:
        return [[[] for _ in several] for several in continuations]
    with _inference(model) as inner:
        prefix = Prefix(inner, batch, prompts_of(inner, batch))
        device = prefix.logits.device
        if most := max((len(said) for _, said in begun), default=0):
            prefix.select(torch.tensor([row for row, _ in begun], device=device))
            # Padded on the left, so that the last logits are those after each.
            said = torch.tensor([[0] * (most - len(each)) + [*each] for _, each in begun], device=device)
            is_said = torch.tensor([[place >= most - len(each) for place in range(most)] for _, each in begun])
            prefix.logits = prefix.extend(said, is_said.to(device))[:, -1].float()
        prefix.select(torch.tensor([row for row, several in enumerate(continuations) for _ in several], device=device))
        ids = torch.tensor([each + [0] * (longest - len(each)) for each in flat], device=device)
        there = torch.tensor([[place < len(each) for place in range(longest)] for each in flat], device=device)
        scores = torch.zeros(ids.shape, device=device)
        scores[:, 0] = prefix.logits.log_softmax(-1).gather(1, ids[:, :1])[:, 0]  # the prompt's last token says these
        if longest > 1:
            later = there[:, 1:]
            logits = prefix.extend(ids[:, :-1], later, keep=later)  # [tokens that are there, vocabulary]
            scores[:, 1:][later] = -functional.cross_entropy(logits.float(), ids[:, 1:][later], reduction="none")
    found = iter([row[: len(each)] for row, each in zip(scores.tolist(), flat, strict=True)])
    return [list(islice(found, len(several))) for several in continuations]


def reply_logits(model: Any, batch: Mapping[str, Tensor], reply: Sequence[int]) -> Tensor:
    """Of one prompt and a reply to it, the logits by which each token of the reply is chosen.

    Args:
        batch: of that prompt, as in `generate`. reply: token ids, at least one.

    Returns:
        float32 [tokens, vocabulary], on the CPU.
    """
    with _inference(model) as inner:
        prefix = Prefix(inner, batch, prompts_of(inner, batch))
        logits = [prefix.logits]
        if len(reply) > 1:
            ids = torch.tensor([list(reply[:-1])], device=prefix.logits.device)
            logits.append(prefix.extend(ids, keep=ids.shape[1])[0].float())
        return torch.cat(logits).cpu()


# --- prompts and what follows them -------------------------------------------------------------------------


@contextmanager
def _inference(model: Any) -> Iterator[Any]:
    """The model with its head, in evaluation mode, without gradients, in bfloat16 where its weights are."""
    inner = whole_model(model)
    weights = inner.get_input_embeddings().weight  # never quantised: a 4-bit weight calls itself uint8
    was_training, narrow = model.training, weights.dtype == torch.bfloat16
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(weights.device.type, dtype=torch.bfloat16, enabled=narrow):
            yield inner
    finally:
        model.train(was_training)


class _Prompt(NamedTuple):
    """A row of a batch without its padding."""

    ids: list[int]
    grids: list[Grid]
    pixels: list[Tensor]  # of each image


def prompts_of(inner: Any, batch: Mapping[str, Tensor]) -> list[_Prompt]:
    image, pixels = inner.config.image_token_id, batch.get("pixel_values")
    grids = [] if pixels is None else [tuple(grid) for grid in batch["image_grid_thw"].tolist()]
    patches = [rows * columns * frames for frames, rows, columns in grids]
    sizes = patches if pixels is not None and len(pixels) == sum(patches) else [1] * len(grids)  # or one tile each
    images = zip(grids, [] if pixels is None else torch.split(pixels, sizes), strict=True)
    prompts = []
    for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        ids = row[mask.bool()].tolist()
        own = list(islice(images, sum(before != image == token for before, token in pairwise([None, *ids]))))
        prompts.append(_Prompt(ids, [grid for grid, _ in own], [seen for _, seen in own]))
    return prompts


class Prefix:
    """Prompts that were computed, and all that was said after them.

    logits: float32 [B, vocabulary], of the token after each prompt.
    """

    def __init__(self, inner: Any, batch: Mapping[str, Tensor], prompts: Sequence[_Prompt]) -> None:
        self._inner, self._family = inner, family_of(inner.config)
        device = inner.get_input_embeddings().weight.device
        width = batch["input_ids"].shape[1]
        # Given, not left to the model: Qwen's keep the offset of the last batch in themselves, whoever asks next.
        places = [
            self._family.positions(
                prompt.ids, prompt.grids, image_token_id=inner.config.image_token_id, merge_size=self._family.merge_size
            )
            for prompt in prompts
        ]
        self._next = torch.tensor([int(each.max()) + 1 for each in places], device=device)  # [B]
        positions = torch.stack([functional.pad(each, (width - each.shape[1], 0)) for each in places], dim=1)
        inputs = self._family.model_inputs({**batch, "position_ids": positions})
        inputs = {name: value.to(device) for name, value in inputs.items()}
        self._mask = inputs["attention_mask"]
        made = inner(**inputs, use_cache=True, logits_to_keep=1)
        self._cache, self.logits = made.past_key_values, made.logits[:, -1].float()

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, int64 [R]; one may occur several times."""
        self._cache.batch_select_indices(rows)
        self._mask, self._next, self.logits = self._mask[rows], self._next[rows], self.logits[rows]

    def extend(self, ids: Tensor, there: Tensor | None = None, keep: int | Tensor = 1) -> Tensor:
        """Logits after tokens [B, L] that follow what was there.

        there: bool [B, L], False where a row is padded. keep: of which tokens, as the library's logits_to_keep.
        """
        given = self._following(torch.ones_like(ids) if there is None else there.to(ids))
        inputs = self._family.model_inputs({"input_ids": ids, **given})
        logits = self._inner(**inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=keep).logits
        assert isinstance(logits, Tensor)
        return logits

    def states(self, ids: Tensor, there: Tensor) -> Tensor:
        """The last hidden states [B, L, hidden] of tokens [B, L] that follow what was there. there: as of `extend`."""
        return self._states(ids, self._following(there))

    def beside(self, ids: Tensor, stops: Tensor, length: int) -> Tensor:
        """The same of tokens [B, T] that follow not all that was there, but all without the last `length` tokens and,
        of these, the first `stops` [B, S]: of each row S times, each of which does not see the others. What was there
        stays as it was.

        Returns:
            [B, S, T, hidden].
        """
        (rows, copies), size = stops.shape, ids.shape[1]
        here = torch.arange(copies * size, device=ids.device)
        copy, place = here // size, here % size
        own = (copy[:, None] == copy[None, :]) & (place[None, :] <= place[:, None])  # [S T, S T]
        stop = stops[:, copy]  # [B, S T]
        seen = torch.arange(length, device=ids.device) < stop[:, :, None]  # [B, S T, length]
        known = self._mask[:, None, : self._mask.shape[1] - length].bool().expand(-1, copies * size, -1)
        mask = torch.cat([known, seen, own.expand(rows, -1, -1)], dim=2)[:, None]
        said = self._mask[:, self._mask.shape[1] - length :].sum(dim=1) if length else 0
        positions = ((self._next - said)[:, None] + stop + place).expand(3, -1, -1)
        states = self._states(ids.repeat(1, copies), {"attention_mask": mask, "position_ids": positions})
        self._cache.crop(-copies * size)
        return states.view(rows, copies, size, -1)

    def _following(self, real: Tensor) -> dict[str, Tensor]:
        """Mask and positions of tokens that follow what was there. real: [B, L], 0 where a row is padded."""
        counted = real.cumsum(dim=1)  # [B, L], with the token itself
        self._mask = torch.cat([self._mask, real.to(self._mask)], dim=1)
        positions = (self._next[:, None] + counted - 1).expand(3, -1, -1)
        self._next = self._next + counted[:, -1]
        return {"attention_mask": self._mask, "position_ids": positions}

    def _states(self, ids: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        inputs = self._family.model_inputs({"input_ids": ids, **given})
        made = self._inner.model(**inputs, past_key_values=self._cache, use_cache=True).last_hidden_state
        assert isinstance(made, Tensor)
        return made


# --- chance ------------------------------------------------------------------------------------------------


def _noise(prompt: _Prompt, decoding: Decoding) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Uniform numbers in [0, 1), [samples, max_new_tokens], by the seed, the prompt with its images, and the draw.

    One number for each token, made here and not on the device, so that it is the same on any.
    """
    digest = hashlib.blake2b(np.array(prompt.ids, dtype=np.int64).tobytes(), digest_size=16)
    for pixels in prompt.pixels:
        digest.update(pixels.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    key = int.from_bytes(digest.digest(), "little")
    return np.stack(
        [np.random.default_rng([decoding.seed, key, draw]).random(decoding.max_new_tokens)
         for draw in range(decoding.samples)]
    )  # fmt: skip


def _drawn(logits: Tensor, noise: Tensor) -> Tensor:
    """int64 [B]: the token at which the cumulated probability [B, vocabulary] first exceeds the noise, float64 [B].

    Not torch.multinomial: it has one stream of random numbers for all rows, so a prompt's draws would depend on
    its neighbours.
    """
    cumulated = logits.double().softmax(-1).cumsum(-1)
    chosen = torch.searchsorted(cumulated, noise[:, None] * cumulated[:, -1:], right=True)[:, 0]
    return chosen.clamp(max=logits.shape[-1] - 1)
