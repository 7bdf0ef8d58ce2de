"""Text without secrets, for messages, reports and logs: no passwords, no queries of URLs, no control characters.

Linear in the length of the text, and rather too strict: of `http://host:80/a@b` only `http://***@b` is left, because
a password may hold a slash.
"""

import re
from urllib.parse import unquote

AUTHORITY_END = re.compile(r"[/?#]")
QUERY = re.compile(r"[?#]")
QUERY_OF_PATH = re.compile(r"\?[\w.~-]+=")  # of an address without a host: /f?key=value
TRAILING = ",.;:)]}>'\""  # of a sentence, behind an address
# A value behind a name that says it is secret, as in headers, environments and YAML.
NAMED = re.compile(
    r"((?:(?:password|passwd|secret|api[_-]?key|signature|credential|cookie|token(?!s|iz))[\w-]{0,30}|\bsig)"
    r"[\"']?\s?(?:=|:(?!\s\S{1,3}(?:\s|$)))\s?[\"']?)[^\s\"',;&]+",  # not "unexpected token: x"
    re.IGNORECASE,
)
BEARER = re.compile(r"\b(?i:(bearer|basic))\s(?=[^\s\"',;]*(?:[\d=_]|[a-z][A-Z]))[^\s\"',;]+")  # not "basic auth"
HOST_PORT = re.compile(r"[^:]*(:\d*)?[.,;:)\]}>'\"]*|[^@]*\[.*")  # an authority without a password, also [::1]
MAX_DECODED = 3  # an address in a query of an address in a query
# What a terminal acts on: C0 without tab and newline, DEL, C1, and marks that change the direction of text.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def redact(text: str) -> str:
    """Return a text without the user, password, query and fragment of its URLs, and without values named as secrets.

    Control characters become "?".

    >>> redact("see https://me:secret@host/file?X-Amz-Signature=abc#part, or s3://bucket/key")
    'see https://***@host/file?..., or s3://bucket/key'
    """
    words = re.split(r"(\s)", CONTROL.sub("?", text))
    without = "".join(
        _redact_word(_decoded(word), is_cut=space == "\n") if "//" in word or "?" in word or "%" in word else word
        for word, space in zip(words, [*words[1:], ""], strict=True)
    )
    return BEARER.sub(r"\1 ***", NAMED.sub(r"\1***", without))


def has_password(address: str) -> bool:
    """Whether an address holds a password: scheme://user:password@host."""
    _, separator, rest = address.partition("://")
    return bool(separator) and ":" in rest.rpartition("@")[0]


def _decoded(word: str) -> str:
    """Return a word without percent-encoding where that hides what an address begins with, or a secret's name."""
    decoded = word
    for _ in range(MAX_DECODED):
        decoded = unquote(decoded)
    hides = decoded != word and (("//" in decoded and "//" not in word) or ("@" in decoded and "@" not in word))
    return CONTROL.sub("?", decoded) if hides or (NAMED.search(decoded) and not NAMED.search(word)) else word


def _redact_word(word: str, *, is_cut: bool) -> str:
    """Return a word without its secrets; `is_cut`: a line ends behind it, maybe within a password."""
    shown, start = [], 0
    last_at, query = word.rfind("@"), QUERY.search(word)
    while (scheme := word.find("//", start)) >= 0:
        begin = scheme + 2
        shown.append(word[start:begin])
        match = AUTHORITY_END.search(word, begin)
        end = match.start() if match else len(word)
        at = word.rfind("@", begin, end)
        if at < 0 and last_at > begin and ":" in word[begin:end]:  # user:pass/word@host
            at = last_at
        if at >= 0:
            shown.append("***@")
            begin = at + 1
        elif (
            is_cut and match is None and not HOST_PORT.fullmatch(word, begin)
        ):  # me:passw, cut off at the end of a line
            return "".join([*shown, "***"])
        start = begin
        if query and query.start() < start:  # in a password
            query = QUERY.search(word, start)
        following = word.find("//", start)
        if query and (following < 0 or query.start() < following):
            return "".join([*shown, word[start : query.start()], _cut_query(word[query.start() :])])
    if query := QUERY_OF_PATH.search(word, start):
        return "".join([*shown, word[start : query.start()], _cut_query(word[query.start() :])])
    return "".join([*shown, word[start:]])


def _cut_query(query: str) -> str:
    """Return "?..." and the punctuation that ends a query."""
    query = query.removeprefix("?...")
    return "?..." + query[len(query.rstrip(TRAILING)) :]
