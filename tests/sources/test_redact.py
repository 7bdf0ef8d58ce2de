"""redact: no password and no query of a URL is left, wherever it is in a text; linear in its length."""

import time

import pytest

from sft.sources.redact import has_password, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:s3cr3t@host:5000/x", "http://***@host:5000/x"),
        ("http://s3cr3t@host", "http://***@host"),
        ("postgresql://me:s3/cr3t@host/db and s3://bucket/a", "postgresql://***@host/db and s3://bucket/a"),
        ("http://me:s3?cr3t@host/x", "http://***@host/x"),
        ("http://me:a://s3cr3t@host/x", "http://***@host/x"),
        ("s3://a/b,http://me:s3cr3t@host", "s3://a/b,http://***@host"),
        ("see https://host/f?X-Amz-Signature=s3cr3t&n=1, or", "see https://host/f?..., or"),
        ("'https://host/f?sig=s3cr3t'", "'https://host/f?...'"),
        ("https://host/f#s3cr3t", "https://host/f?..."),
        ("s3://bucket/key?versionId=s3cr3t", "s3://bucket/key?..."),
        ("url: /api/f?token=s3cr3t (Caused", "url: /api/f?... (Caused"),
        ("hf://owner/name@0123/path and who? 1 + 1 = 2", "hf://owner/name@0123/path and who? 1 + 1 = 2"),
        ("no address\n\ttwo lines", "no address\n\ttwo lines"),
        ("Authorization: Bearer hf_s3cr3t, or", "Authorization: Bearer ***, or"),
        ("{'Authorization': 'Basic s3cr3t'}", "{'Authorization': 'Basic ***'}"),
        ("MLFLOW_TRACKING_PASSWORD=s3cr3t failed", "MLFLOW_TRACKING_PASSWORD=*** failed"),
        ("AWS_SECRET_ACCESS_KEY=s3cr3t", "AWS_SECRET_ACCESS_KEY=***"),
        ("X-Amz-Signature=s3cr3t&x=1", "X-Amz-Signature=***&x=1"),
        ("//me:s3cr3t@host/x", "//***@host/x"),
        ("next=https%3A%2F%2Fme%3As3cr3t%40host%2Fx", "next=https://***@host/x"),
        ("next=https%253A%252F%252Fme%253As3cr3t%2540host", "next=https://***@host"),
        ("a%20token%3Ds3cr3t", "a token=***"),
        ("https://me:s3cr3t\nrest@host", "https://***\nrest@host"),
        ("https://host/f;sig=s3cr3t", "https://host/f;sig=***"),
        ("http://host:8000, http://[::1]:80 a%20b 100%", "http://host:8000, http://[::1]:80 a%20b 100%"),
        ("unexpected token: x", "unexpected token: x"),
        ("basic auth is off, basic tests", "basic auth is off, basic tests"),
        ("src//a and data//b:c/d", "src//a and data//b:c/d"),
        ('{"api_key": "s3cr3t"}', '{"api_key": "***"}'),
        ("tokenizer: 3 special_tokens: a", "tokenizer: 3 special_tokens: a"),
        ("reason\x1b[31mred\x9b\u202e", "reason?[31mred??"),
    ],
)
def test_secrets_and_control_characters_are_left_out(text, shown):
    assert redact(text) == shown
    assert redact(shown) == shown
    assert "s3cr3t" not in redact(text)


@pytest.mark.parametrize(
    "text", ["a", "://", "http://a@", "@", "?a=", "http://a:", "#", "x?", " http://a?", "token", "token=", "bearer "]
)
def test_a_long_text_takes_linear_time(text):
    def cpu_seconds(length: int) -> float:
        long = text * (length // len(text))
        began = time.process_time()
        redact(long)
        return time.process_time() - began

    assert cpu_seconds(1_000_000) < 3.0
    assert cpu_seconds(400_000) < 20 * max(cpu_seconds(40_000), 0.005)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("postgresql://me:pw@host/db", True),
        ("postgresql://me:p/w@host/db", True),
        ("postgresql://me@host/db", False),
        ("postgresql://host:5432/db?sslmode=require", False),
        ("s3://bucket/x", False),
        ("runs", False),
    ],
)
def test_an_address_with_a_password_is_known(address, expected):
    assert has_password(address) is expected
