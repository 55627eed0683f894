"""Is the right part of every example learned? Checked by numbers for all, shown to people for some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from vcot.errors import InputError
from vcot.grounding.tags import Parsed, parse
from vcot.records import Contract
from vcot.records.example import IGNORED, Example
from vcot.records.sample import NO_IMAGE_SIZE
from vcot.storage import images
from vcot.tokens.encoder import frame_as_seen


def check_mask(example: Example, processor: Any) -> None:
    """Holds the mask of an example against the rules, from the ids alone and not from how they were made.

    Raises InputError: nothing is learned; a learned label is another token than its id; a part of the prompt, a
    image or a header is learned; or the end of the reply is not.
    """
    learned = [i for i, label in enumerate(example.labels) if label != IGNORED]
    if not learned:
        raise _broken(example, "nothing of it is learned")
    first = learned[0]
    if learned != list(range(first, len(example.ids))):
        raise _broken(example, "what is learned is not one piece up to the end")
    if example.labels[first:] != example.ids[first:]:
        raise _broken(example, "a label is another token than the one that stands there")
    tokenizer = processor.tokenizer
    special = {*tokenizer.all_special_ids, processor.image_token_id, processor.video_token_id}
    control = [token for token in example.ids[first:] if token in special]
    if control != [tokenizer.convert_tokens_to_ids("<|im_end|>")]:
        names = ", ".join(tokenizer.convert_ids_to_tokens(control)) or "none"
        raise _broken(example, f"the control tokens that are learned are {names}; one <|im_end|> is right")
    header = tokenizer("<|im_start|>assistant\n", add_special_tokens=False, split_special_tokens=False)["input_ids"]
    if list(example.ids[first - len(header) : first]) != list(header):
        before = tokenizer.decode(list(example.ids[max(0, first - 12) : first]))
        raise _broken(example, f"what is learned begins behind {before!r}, not behind the assistant's header")
    pads = sum(token == processor.image_token_id for token in example.ids)
    if example.image_grid is None:
        wanted = 0
    else:
        frames, rows, columns = example.image_grid
        wanted = frames * rows * columns // processor.image_processor.merge_size**2
    if pads != wanted:
        raise _broken(example, f"it has {pads} places for visual tokens, its image gives {wanted}")


def _broken(example: Example, what: str) -> InputError:
    return InputError(f"example {example.id}: {what}; the base's chat template or tokenizer does not do what it should")


@dataclass(frozen=True)
class Piece:
    """One token as text, or several where only together they are text (bytes of a letter, places of an image)."""

    text: str
    tokens: int
    learned: bool
    control: bool


def pieces(example: Example, processor: Any) -> list[Piece]:
    """The example decoded token by token, in order."""
    tokenizer = processor.tokenizer
    special = set(tokenizer.all_special_ids)
    found: list[Piece] = []
    at = 0
    while at < len(example.ids):
        token, learned = example.ids[at], example.labels[at] != IGNORED
        end = at + 1
        if token == processor.image_token_id:
            while end < len(example.ids) and example.ids[end] == token:
                end += 1
            text = f"{processor.image_token} × {end - at}"
        else:
            text = tokenizer.decode([token], skip_special_tokens=False)
            while "\ufffd" in text and end < min(at + 4, len(example.ids)):
                end += 1
                text = tokenizer.decode(list(example.ids[at:end]), skip_special_tokens=False)
        found.append(Piece(text, end - at, learned, token in special))
        at = end
    return found


@dataclass(frozen=True)
class View:
    """What an example says, read back from what is stored: as training will get it."""

    example: Example
    pieces: list[Piece]
    learned: str  # the reply as text
    parsed: Parsed  # its boxes, read by the frame of the contract; in pixels of the original
    original: tuple[int, int] | None
    image: Image.Image | None  # as the model sees it


def view(
    example: Example,
    original: tuple[int, int] | None,
    contract: Contract,
    processor: Any,
    *,
    kept: tuple[int, int] | None = None,
) -> View:
    """
    original: (width, height) of the upright image in whose pixels the sample's boxes are; None: it is asked by text
    alone. kept: of the copy that is read in its place, if any; looked at where the example shows no image.
    """
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    reply = [i for i, label in zip(example.ids, example.labels, strict=True) if label != IGNORED and i != end]
    learned = str(processor.tokenizer.decode(reply, skip_special_tokens=False)).rstrip("\n")
    size = original or NO_IMAGE_SIZE
    image, seen = None, size
    if example.image is not None and example.image_grid is not None:
        _, rows, columns = example.image_grid
        seen = columns * contract.patch_size, rows * contract.patch_size
        image = images.decode(example.image, example.id).pixels.resize(seen, Image.Resampling.BICUBIC)
    elif contract.frame_spec.name == "resized_pixels":
        frame = contract.frame_spec.on(*size, kept=kept)
        seen = frame.x_axis.span, frame.y_axis.span
    parsed = parse(learned, frame_as_seen(contract.frame_spec, size, seen))
    return View(example, pieces(example, processor), learned, parsed, original, image)
