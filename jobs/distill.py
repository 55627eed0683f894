"""Rows without reasoning get it: `python -m jobs.distill`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from vcot.settings import Settings, setting
from vcot.stage import launch

if TYPE_CHECKING:
    from vcot.storage import Store
    from vcot.teacher import Teacher


class DistillSettings(Settings):
    """Gives reasoning to the rows that lack it; rows that have it, and rows of the test split, pass unchanged.

    --teacher template writes a short grounded trace from the annotated evidence, without any model.
    --teacher openai asks a model behind any OpenAI-compatible endpoint (OPENAI_BASE_URL, OPENAI_API_KEY). It is
    shown the image, the question, the answer and the evidence as a numbered list, and refers to objects by
    number; boxes are put into the text by this program. Replies are kept, so that none is paid for twice.
    """

    stage: ClassVar[str] = "distill"

    input_uri: str | None = setting(None, "folder of the stage that made the Samples; default: <run-uri>/convert")
    teacher: Literal["template", "openai"] = setting("template", "who writes the reasoning")
    alternatives: int = setting(1, "different traces for each row", unit="traces", ge=1, le=16)
    max_rejected_share: float = setting(
        0.05, "share of the rows that may be refused before the stage fails", unit="0..1", ge=0, le=1,
        shapes_result=False,
    )  # fmt: skip

    phrasings: int = setting(
        3, "template: wordings in use; 1: always the first and plainest", unit="wordings", ge=1, le=3
    )
    seed: int = setting(0, "template: which row gets which wording")

    model: str | None = setting(None, "openai: the model, by the endpoint's name for it", min_length=1)
    temperature: float | None = setting(None, "openai: sampling temperature; default: the endpoint's own", ge=0, le=2)
    reply_tokens: int = setting(1024, "openai: most tokens of one reply, its thinking included", unit="tokens", ge=16)
    image_side: int = setting(1024, "openai: longest side of the picture that is sent", unit="pixels", ge=28, le=8192)
    attempts: int = setting(3, "openai: how often a row is asked before it is given up", unit="requests", ge=1, le=10)
    concurrency: int = setting(
        8, "openai: requests under way at once", unit="requests", ge=1, le=512, shapes_result=False
    )
    retries: int = setting(
        8, "openai: how often a request is tried again when the endpoint is busy or fails (pauses grow to 8 seconds, "
        "or what Retry-After says)", unit="requests", ge=0, le=100, shapes_result=False,
    )  # fmt: skip
    timeout: float = setting(120.0, "openai: longest wait for one reply", unit="seconds", gt=0, shapes_result=False)
    max_requests: int | None = setting(
        None, "openai: stop with exit code 21 once this process has sent so many requests", unit="requests", ge=1,
        shapes_result=False,
    )  # fmt: skip
    max_tokens: int | None = setting(
        None, "openai: stop with exit code 21 once this process has paid for so many tokens (in and out); requests "
        "under way are still waited for", unit="tokens", ge=1, shapes_result=False,
    )  # fmt: skip
    cache_uri: str | None = setting(
        None, "openai: where replies are kept; default: <parent of run-uri>/_cache/distill", shapes_result=False
    )

    @model_validator(mode="after")
    def _fit_the_teacher(self) -> Self:
        if self.teacher == "openai" and self.model is None:
            raise ValueError("--teacher openai needs --model (or VCOT_DISTILL_MODEL): the model to ask")
        if self.teacher == "template" and self.model is not None:
            raise ValueError(
                f"--model={self.model}: the template teacher asks no model; did you mean --teacher openai?"
            )
        if self.teacher == "template" and self.alternatives > self.phrasings:
            raise ValueError(
                f"--alternatives={self.alternatives}: the template has --phrasings {self.phrasings}, "
                "and alternatives must differ"
            )
        return self


def run(settings: DistillSettings) -> None:
    from vcot.records.shards import Folder, ShardWriter, read_mark, read_shard, run_shards
    from vcot.storage import Store, join
    from vcot.teacher.distil import distil, summed

    store = Store()
    source = settings.input_uri or join(settings.run_uri, "convert")
    mark, inputs = read_mark(store, source)

    with teacher_of(settings, store) as teacher:

        def work(writer: ShardWriter) -> None:
            distil(read_shard(store, source, mark.shards[writer.index]), teacher, writer)

        run_shards(
            Folder(store, settings.run_uri, settings.stage),
            settings,
            inputs=inputs,
            shards=len(mark.shards),
            work=work,
            max_rejected_share=settings.max_rejected_share,
            report=lambda marks, _: ({"teacher": teacher.name} | summed(marks), None),
            facts={"teacher": teacher.name},
        )


@contextmanager
def teacher_of(settings: DistillSettings, store: Store) -> Iterator[Teacher]:
    from vcot.teacher import TemplateTeacher

    if settings.teacher == "template":
        yield TemplateTeacher(settings.phrasings, settings.alternatives, settings.seed)
        return

    from vcot.teacher.answer_aware import AnswerAware, Options
    from vcot.teacher.desk import Desk
    from vcot.teacher.endpoint import Endpoint
    from vcot.teacher.model import ModelTeacher
    from vcot.teacher.pictures import Pictures
    from vcot.teacher.replies import Replies

    assert settings.model is not None  # _fit_the_teacher saw to it
    options = Options(
        model=settings.model, temperature=settings.temperature, reply_tokens=settings.reply_tokens,
        image_side=settings.image_side, attempts=settings.attempts, alternatives=settings.alternatives,
    )  # fmt: skip
    desk = Desk(
        Endpoint(retries=settings.retries, timeout=settings.timeout),
        Replies(store, settings.cache_uri or cache_of(settings.run_uri)),
        Pictures(store),
        concurrency=settings.concurrency,
        max_requests=settings.max_requests,
        max_tokens=settings.max_tokens,
    )
    with ModelTeacher(AnswerAware(options), desk, ahead=4 * settings.concurrency) as teacher:
        yield teacher


def cache_of(run_uri: str) -> str:
    """`<parent of the run>/_cache/distill`: replies outlive the run that paid for them."""
    from vcot.storage import join

    parent, _, name = run_uri.rstrip("/").rpartition("/")
    if parent.endswith("/") or not name:  # s3://bucket, or a folder of the root
        parent = run_uri.rstrip("/")
    return join(parent or ".", "_cache", DistillSettings.stage)


if __name__ == "__main__":
    launch(DistillSettings, run)
