"""A model behind any OpenAI-compatible endpoint: `--subject https://host:8000/v1#served-name`.

    form = declared_form(family="qwen2.5-vl", min_pixels=3136, max_pixels=1003520)
    with EndpointModel(store, address, name, form, cache_uri=…) as model:
        model.ask("subject", prompts, decoding)    as a local model does: per prompt, per draw
        model.lacks                          what falls away, and why

It asks with the client of distill: bounded, tried again, paid from a budget, and each reply kept the moment it arrives,
so that a killed evaluation asks nothing twice.

An endpoint says neither how its model writes boxes nor what it makes of an image, so both are declared. Where the
pixels that the model may see are declared, an image is sent at the very size that its processor would make of it: a
server with these limits, or wider ones, then changes nothing. Images go as PNG: JPEG would show the model what no local
model is shown.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, cast, get_args

from PIL import Image

from vcot import logging
from vcot.distill.budget import Ledger, budget_of
from vcot.distill.client import Failures, TeacherClient
from vcot.distill.costs import Prices, read_prices
from vcot.distill.endpoint import Endpoint, Flags
from vcot.distill.request import Client, EarlierTurn, Part, ReplyCache, Request, RowFailed, ShownPixels
from vcot.distill.request import Prompt as SystemMessage
from vcot.distill.runner import Asking, Progress
from vcot.errors import SettingsError
from vcot.evaluation.config import Model, Way
from vcot.evaluation.ways import FORMS, Form, Prompt
from vcot.grounding import Frame, FrameName, FrameSpec, smart_resize
from vcot.grounding.tags import DIALECTS, SPELLINGS, render
from vcot.models import families
from vcot.models.decoding import Decoding
from vcot.records import Completion, Contract, Sample
from vcot.storage import Store, join
from vcot.tokens.encoder import prompt_text

FLAGS = Flags(address="--subject", model="", at_once="--subject-concurrency")

NOBODY = SystemMessage("evaluate", 1, "")
"""No system message: the server's chat template writes its own, where it has one, as the local model's does."""

BATCH_PIXELS = 1 << 28
"""Of all images of the questions that are asked together: 3 bytes each, 0.8 GB."""

# --- what is declared of it --------------------------------------------------------------------------------


@dataclass(frozen=True)
class EndpointForm:
    """How a model writes boxes and is asked for them, and the size at which it is shown images.

    Attributes:
        frame: the numbers of its boxes.
        own: its notation (`dialect`), and the words that stand below a question (`below`).
        min_pixels, max_pixels: area at which it sees an image; None: images are sent as they are.
        factor: pixels a side of one visual token.
    """

    frame: FrameSpec
    own: Form
    min_pixels: int | None
    max_pixels: int | None
    factor: int
    family: families.Family | None

    @classmethod
    def tuned(cls, contract: Contract) -> EndpointForm:
        """The one that a model was tuned in, where its server tells it."""
        return cls(
            contract.frame_spec, Form.tuned(contract), contract.min_pixels, contract.max_pixels, contract.factor, None
        )  # fmt: skip

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) at which an image of this size is sent. Raises ValueError for a side ratio above 200."""
        if self.min_pixels is None or self.max_pixels is None:
            return size
        resized = _resized if self.family is None else self.family.resized
        return resized(size, min_pixels=self.min_pixels, max_pixels=self.max_pixels, factor=self.factor)

    def request(self, prompt: Prompt, name: str, decoding: Decoding) -> Request:
        """What the model called `name` is asked. Raises SettingsError: a box in pixels would mean those of another
        image than it sees."""
        sample = prompt.sample
        if prompt.images and len(prompt.images) != len(sample.images):
            raise ValueError(f"{sample.id}: {len(prompt.images)} images are shown, it has {len(sample.images)}")
        shown = [ShownPixels(image, self.size(image.size)) for image in prompt.images]
        self._check_pixels(prompt, shown)
        images = iter(shown)

        def parts(count: int, text: str) -> tuple[Part, ...]:
            """So many of the next images, then the text, as the local model is given them."""
            seen = [image for _, image in zip(range(count if shown else 0), images, strict=False)]
            return (*seen, text) if text else (*seen,)

        frame = _frame(prompt)
        turns = tuple(
            EarlierTurn(turn.role, parts(turn.images, render(turn.said, frame, self.own.dialect)))
            for turn in sample.turns
        )
        return Request(
            purpose="evaluate", prompt=NOBODY, turns=turns, model=name, temperature=decoding.temperature,
            parts=parts(sample.images_asked, prompt_text(sample, prompt.instruction)),
            reply_tokens=decoding.max_new_tokens, options=_GREEDY if decoding.temperature == 0 else _DRAWN,
        )  # fmt: skip

    def _check_pixels(self, prompt: Prompt, shown: Sequence[ShownPixels]) -> None:
        image = prompt.sample.image
        if self.frame.name == "pixels" and image is not None and shown:
            sent, (width, height) = (image.width, image.height), shown[0].size
            if sent != (width, height):
                raise SettingsError(
                    f"--subject-frame pixels: {prompt.sample.id} is kept at {width}x{height} pixels, its original has "
                    f"{sent[0]}x{sent[1]}, and the model sees the former; choose --subject-frame thousandths"
                )


def _resized(size: tuple[int, int], *, min_pixels: int, max_pixels: int, factor: int) -> tuple[int, int]:
    return smart_resize(*size, min_pixels=min_pixels, max_pixels=max_pixels, factor=factor)


def declared_form(
    *, family: str | None = None, frame: str | None = None, dialect: str | None = None, min_pixels: int | None = None,
    max_pixels: int | None = None, instruction: str | None = None,
) -> EndpointForm:  # fmt: skip
    """The form of an endpoint's model, as `--native-form`, `-frame`, `-dialect`, `-min-pixels` and `-max-pixels`
    say; what is given beside a family takes the place of what the family usually does.

    Args:
        instruction: stands below a question in the place of the usual words; empty: nothing does.

    Raises:
        SettingsError: something is missing, unknown, or contradicts another.
    """
    _known("--native-form", family, FORMS)
    _known("--subject-frame", frame, get_args(FrameName))
    _known("--subject-dialect", dialect, DIALECTS)
    usual = None if family is None else FORMS[family]
    found_frame = cast("FrameName | None", frame or (usual and usual.frame))
    found_dialect = dialect or (usual and usual.dialect)
    if not found_frame or not found_dialect:
        raise SettingsError(
            "how the model behind --subject writes boxes cannot be seen from outside: say it with --native-form "
            f"({', '.join(FORMS)}), or with --subject-frame ({', '.join(get_args(FrameName))}) and "
            f"--subject-dialect ({', '.join(DIALECTS)})"
        )
    if (min_pixels is None) != (max_pixels is None):
        given = "--subject-min-pixels" if max_pixels is None else "--subject-max-pixels"
        raise SettingsError(f"{given} is given alone: it takes both, --subject-min-pixels and --subject-max-pixels")
    if min_pixels is not None and max_pixels is not None and not 0 < min_pixels <= max_pixels:
        raise SettingsError(
            f"--subject-min-pixels {min_pixels} and --subject-max-pixels {max_pixels}: the first should be 1 or more, "
            "and not above the second"
        )
    if found_frame == "resized_pixels" and min_pixels is None:
        raise SettingsError(
            "boxes in pixels of the resized image mean nothing without the limits that the server resizes by: give "
            "--subject-min-pixels and --subject-max-pixels (its --mm-processor-kwargs, or the model's "
            "preprocessor_config.json)"
        )
    if found_frame == "pixels" and min_pixels is not None:
        raise SettingsError(
            "--subject-frame pixels: these are pixels of the image as it is, so it is sent as it is; leave out "
            "--subject-min-pixels and --subject-max-pixels, or choose --subject-frame resized_pixels"
        )
    known = next((one for one in families.FAMILIES.values() if one.name == family), None)
    factor = 28 if known is None else known.patch_size * known.merge_size
    as_usual = usual is not None and (usual.frame, usual.dialect) == (found_frame, found_dialect)
    own = usual if usual is not None and as_usual else _form(found_frame, found_dialect)
    if instruction is not None:
        own = replace(own, instruction=instruction or None, by_text=instruction or None)
    spec = FrameSpec(found_frame, min_pixels, max_pixels, factor)
    return EndpointForm(spec, own, min_pixels, max_pixels, factor, known)


def _known(flag: str, value: str | None, known: Any) -> None:
    if value is not None and value not in known:
        raise SettingsError(f"{flag} {value}: it should be one of {', '.join(known)}")


_NUMBERS: dict[FrameName, str] = {
    "thousandths": "thousandths of the image's width and height, 0 to 1000",
    "resized_pixels": "pixels of the image",
    "pixels": "pixels of the image",
    "padded_square": "fractions of the image padded to a square, 0 to 1",
    "fractions": "fractions of the image's width and height, 0 to 1",
}


def _form(frame: FrameName, dialect: str) -> Form:
    """Of no family: words that say which notation and which numbers are meant."""
    by_text = FORMS["qwen2-vl"].by_text
    if dialect == "qwen-json":
        notation = '[{"bbox_2d": [x1, y1, x2, y2], "label": "name"}]'
    else:
        ref, box, pairs = SPELLINGS[dialect]
        notation = f"{ref[0]}name{ref[1]}{box[0]}{'(x1,y1),(x2,y2)' if pairs else '[x1, y1, x2, y2]'}{box[1]}"
    words = f"Locate what the answer rests on, each as {notation} in {_NUMBERS[frame]}. {by_text}"
    return Form("as declared", frame, dialect, words, by_text)


# --- asking ------------------------------------------------------------------------------------------------


class EndpointModel(Asking):
    """Generates, and nothing else. A context manager.

    Args:
        address, name: of the endpoint (mostly ending in /v1) and of its model. Key: OPENAI_API_KEY; without one, an
            address that is not api.openai.com is asked without.
        cache_uri: below it replies are kept, each endpoint's and model's by themselves.
        at_once: requests under way, at most. timeout: seconds of one try. retries: of a request that failed.
        max_unanswered: share of the questions that may stay without any answer.
        ledger: what it may cost; None: anything. prices: None: those of the package.
    """

    def __init__(
        self, store: Store, address: str, name: str, form: EndpointForm, *, cache_uri: str, at_once: int = 16,
        timeout: float = 300.0, retries: int = 5, max_unanswered: float = 0.05, ledger: Ledger | None = None,
        prices: Prices | None = None,
    ) -> None:  # fmt: skip
        self.address, self.name, self.declared = address, name, form
        # The same name may stand for other weights elsewhere, so what is kept goes by the address as well.
        own = join(cache_uri, hashlib.sha256(f"{address}#{name}".encode()).hexdigest()[:16])
        client = TeacherClient(
            Endpoint(at_once=at_once, timeout=timeout, address=address, flags=FLAGS),
            ReplyCache(store, own, keeps_empty=False),
            prices or read_prices(store), ledger or Ledger(store, own, budget_of(None, None, None)), retries=retries,
            # Of a share alone: some questions after another may be long.
            failures=Failures(sys.maxsize, max_unanswered),
        )  # fmt: skip
        super().__init__(client, Progress(client, "evaluate", "asking the endpoint"), ahead=4 * at_once)
        self._replies = self._with_logprobs = 0
        self._seen_small = ""

    names: tuple[Model, ...] = ("subject",)
    by_text = False
    keeps_replies = True
    can_score = False

    def form(self, model: Model = "subject") -> Form:
        return self.declared.own

    def sent_size(self, sample: Sample) -> tuple[int, int]:
        """Return (width, height) at which a sample's first image is sent."""
        return self.declared.size((sample.shown.kept.width, sample.shown.kept.height))

    def frame(self, model: Model, sample: Sample) -> Frame:
        return sample.frame(self.declared.frame)

    def prompt(self, model: Model, way: Way, sample: Sample, images: Sequence[Image.Image]) -> Prompt:
        form = self.declared.own
        return Prompt(sample, tuple(images), form.below(sample, way), self.declared.frame, dialect=form.dialect)

    def batches(self, samples: Sequence[Sample], draws: int = 1) -> list[list[int]]:
        """Many more than are under way, for each batch ends with fewer; but its images are in memory, and those of the
        next."""
        most = 8 * self.client.endpoint.rate.at_once
        batches: list[list[int]] = []
        room = 0
        for index, sample in enumerate(samples):
            pixels = sum(image.kept.width * image.kept.height for image in sample.images)
            if not batches or pixels > room or len(batches[-1]) == most:
                batches.append([])
                room = BATCH_PIXELS
            batches[-1].append(index)
            room -= pixels
        return batches

    def prepare(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        return prompts

    @property
    def made_with(self) -> dict[str, Any]:
        form = self.declared
        told = {
            "subject": f"{self.address}#{self.name}",
            "frame_of_boxes": form.frame.to_dict(),
            "form": form.own.family,
        }
        sent = "as it is" if form.min_pixels is None else f"{form.min_pixels:,} to {form.max_pixels:,} after resizing"
        return told | {
            "dialect": form.own.dialect, "pixels_of_an_image": sent, "falls_away": "; ".join(self.lacks),
            "costs": self.client.report.totals(),
        }  # fmt: skip

    def fingerprint(self, model: Model = "subject") -> dict[str, Any]:
        """What shapes its replies beside the questions and the images."""
        form = self.declared
        shown = {"min_pixels": form.min_pixels, "max_pixels": form.max_pixels, "factor": form.factor}
        told = {"frame": form.frame.to_dict(), "dialect": form.own.dialect, "instruction": form.own.instruction}
        return {"endpoint": self.address, "name": self.name, **told, "by_text": form.own.by_text, **shown}

    @property
    def lacks(self) -> tuple[str, ...]:
        """What falls away, and why: always what only weights at hand allow; the rest as replies came."""
        found = [
            "log-probabilities of given replies: an endpoint scores no text",
            "replies that are continued: an endpoint begins each by itself",
        ]
        refused = self.client.endpoint.refused_options
        if "logprobs" in refused:
            found.append("log-probabilities of tokens, and confidence with them: the endpoint refuses logprobs")
        elif self._replies and not self._with_logprobs:
            found.append("log-probabilities of tokens, and confidence with them: the endpoint gives no logprobs")
        found += [f"{name}: {_WITHOUT[name]}" for name in _WITHOUT if name in refused]
        return (*found, self._seen_small) if self._seen_small else tuple(found)

    def ask(self, model: Model, prompts: Sequence[Prompt], decoding: Decoding) -> list[list[Completion]]:
        """Per prompt, per draw, in order. One that the endpoint cannot take at all is a Completion without text whose
        finish_reason is `unanswered` (an endpoint that refuses its content: `content_filter`).

        Raises SettingsError (a wrong address or name, a prompt that begins the reply), TemporaryError (not reached, too
        slow), BudgetSpent, and Interrupted after a signal. In every case replies that arrived are kept.
        """
        if any(prompt.prefix for prompt in prompts):
            self._refuse("continue a reply that is begun for it")
        requests = [self.declared.request(prompt, self.name, decoding) for prompt in prompts]
        self.progress.total = (self.progress.total or 0) + len(prompts) * decoding.samples

        def draws() -> Iterator[tuple[Prompt, Request]]:
            for prompt, request in zip(prompts, requests, strict=True):
                for number in range(decoding.samples):
                    yield prompt, replace(request, alternative=number)

        async def reply(asked: tuple[Prompt, Request], client: Client) -> Completion:
            return await self._reply(*asked, client, None if decoding.temperature == 0 else decoding.seed)

        said: list[Completion] = []
        for (_, request), completion in self.map(draws(), reply):
            self.progress.row(refused=completion.finish_reason in ("unanswered", "content_filter"))
            self._notice(request, completion)
            said.append(completion)
        each = decoding.samples
        return [said[first : first + each] for first in range(0, len(said), each)]

    def score(self, model: Model, prompts: Sequence[Prompt], continuations: Any) -> NoReturn:
        """Raises SettingsError: endpoints score nothing."""
        self._refuse("score replies that are given to it")

    def token_count(self, text: str) -> NoReturn:
        """Raises SettingsError, as `score` does."""
        self._refuse("count the tokens of a reply")

    def _refuse(self, what: str) -> NoReturn:
        raise SettingsError(
            f"--subject {self.address}#{self.name}: an endpoint cannot {what}; leave that out, or evaluate the "
            "checkpoint itself"
        )

    # --- a request, and what comes of it

    async def _reply(self, prompt: Prompt, request: Request, client: Client, seed: int | None) -> Completion:
        # The first time it digests the images: in a thread, while others are waited for.
        key = await asyncio.to_thread(request.key)
        if seed is not None:
            drawn = int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:4]) >> 1
            request = replace(request, options={**request.options, "seed": drawn})
        sample = prompt.sample
        try:
            return await client.ask(request, source=sample.origin.dataset, row=sample.id)
        except RowFailed:
            return Completion(text="", model=self.name, finish_reason="unanswered")

    def _notice(self, request: Request, completion: Completion) -> None:
        """What a reply says of the endpoint."""
        if completion.text:
            self._replies += 1
            self._with_logprobs += completion.logprobs is not None
        form = self.declared
        if form.min_pixels is None or (form.family is not None and form.family.fixed_size):
            return
        sizes = [part.size for part in request.all_parts() if isinstance(part, ShownPixels)]
        visual = sum(width * height // form.factor**2 for width, height in sizes)
        if 0 < completion.tokens_in < visual and not self._seen_small:
            self._seen_small = (
                f"images at their declared size: a prompt of {completion.tokens_in} tokens had images of {visual}, so "
                f"the server makes them smaller; --subject-max-pixels {form.max_pixels} is not its limit"
            )
            logging.get().warning(self._seen_small, endpoint=self.address)


_GREEDY: dict[str, Any] = {
    "logprobs": True,
    # A penalty punishes digits that were used before, and so bends coordinates. vLLM takes the one of the model's
    # generation_config.json (1.05 for Qwen2.5-VL) where it is not told; `transformers serve` makes it of the other one.
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    # In the notation of Qwen2-VL the tags of boxes are control tokens, which servers leave out otherwise.
    "skip_special_tokens": False,
}
# What is drawn from is the model's own distribution at this temperature, whatever its generation_config.json says.
_DRAWN = _GREEDY | {"top_p": 1.0, "top_k": -1}

_WITHOUT = {
    "repetition_penalty": "refused, so the server's own applies, if it has one",
    "skip_special_tokens": "refused, so control tokens are missing from replies (tags of boxes, with dialect "
    "qwen-special)",
    "top_p": "refused, so the server's own applies to what is drawn",
    "top_k": "refused, so the server's own applies to what is drawn",
    "seed": "refused, so the same draws do not come again",
}


def _frame(prompt: Prompt) -> Frame:
    """In which texts about the prompt write boxes; all of them are on the first of its images."""
    image = prompt.sample.image
    if image is None or not prompt.images:
        return prompt.sample.frame(prompt.frame)
    return prompt.frame.on(image.width, image.height, kept=prompt.images[0].size)
