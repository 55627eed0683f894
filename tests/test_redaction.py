"""What counts as a secret, and in which forms it is found again."""

from __future__ import annotations

import base64
import html
import io
import json
from urllib.parse import quote

import pytest

from vcot import redaction
from vcot.redaction import REDACTED, RedactedStream, redacted, secrets_of

SECRET = 'wJalr/XUtn+FEMI"K7<MDENG'


@pytest.fixture(autouse=True)
def knows_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_forms", ())
    redaction.learn(SECRET)


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET)[1:-1].replace("/", "\\/"),
        html.escape(SECRET),
        quote(SECRET, safe=""),
        quote(SECRET, safe="").lower().replace("wjalr", "wJalr").replace("xutn", "XUtn").replace("femi", "FEMI")
        .replace("k7", "K7").replace("mdeng", "MDENG"),
    ],
)  # fmt: skip
def test_a_secret_is_found_in_the_forms_that_others_write(form: str) -> None:
    assert redacted(f"before {form} after") == f"before {REDACTED} after"


@pytest.mark.parametrize("before", ["", "a", "ab", "user:", "x" * 20])
def test_base64_is_found_wherever_the_secret_begins(before: str) -> None:
    coded = base64.b64encode(f"{before}{SECRET} and more".encode()).decode()
    assert REDACTED in redacted(coded)
    assert base64.b64encode(SECRET.encode()).decode()[4:20] not in redacted(coded)


@pytest.mark.parametrize("secret", ["", "x", "EMPTY", "1234567", "not-needed", "anything", "minioadmin"])
def test_short_secrets_and_mere_words_stay_in_texts(secret: str) -> None:
    redaction.learn(secret)
    assert redacted("anything else is not-needed, EMPTY or x 1234567, minioadmin") == (
        "anything else is not-needed, EMPTY or x 1234567, minioadmin"
    )


def test_variables_hold_secrets_by_name_and_addresses_by_their_password() -> None:
    environment = {
        "OPENAI_API_KEY": "a1", "AWS_SECRET_ACCESS_KEY": "b2", "AWS_SESSION_TOKEN": "c3", "DB_PASSWORD": "d4",
        "AZURE_OPENAI_AD_TOKEN": "e5", "https_proxy": "http://me:f%2F6@proxy:8080", "PATH": "/bin",
        "AWS_ACCESS_KEY_ID": "no", "VCOT_DISTILL_BUDGET_TOKENS": "100000", "PWD": "/home/me/a1",
    }  # fmt: skip
    assert set(secrets_of(environment)) == {"a1", "b2", "c3", "d4", "e5", "f%2F6", "f/6"}


def test_a_stream_writes_no_secret_and_is_itself_in_all_else() -> None:
    inner = io.StringIO()
    stream = RedactedStream(inner)
    print("key:", SECRET, file=stream)  # type: ignore[arg-type]
    stream.writelines([SECRET, "\n"])
    assert inner.getvalue() == f"key: {REDACTED}\n{REDACTED}\n"
    assert stream.getvalue() == inner.getvalue()
