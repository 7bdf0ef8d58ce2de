"""The judge's prompt, its verdicts, and the cache that keeps them.

A verdict is exactly what the judge wrote, in the form of `Verdict`; nothing is guessed. The text of a conversation is
data in the prompt: it can neither end the data nor write the tags of a chat template. The cache finds a verdict by the
digest of the whole request: conversation, rubric, model, sampling.
"""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sft import strict_json
from sft.cli import InputError, one_line
from sft.conversation import Conversation, Rejection

if TYPE_CHECKING:
    from sft.params.data import JudgeParams

MARKER = "{{conversation}}"

# Faults before the conclusion: an endpoint that enforces the schema also enforces this order.
SCHEMA = {
    "type": "object",
    "properties": {
        "faults": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "message": {"type": "integer"},
                    "rule": {"type": "integer"},
                    "what": {"type": "string"},
                },
                "required": ["message", "rule", "what"],
                "additionalProperties": False,
            },
        },
        "consistent": {"type": "boolean"},
        "score": {"type": "integer", "enum": [1, 2, 3, 4, 5]},
    },
    "required": ["faults", "consistent", "score"],
    "additionalProperties": False,
}
# How to ask for an answer in JSON: if the endpoint rejects one format, try the next.
FORMATS: tuple[dict[str, Any], ...] = (
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA},
        }
    },
    {"response_format": {"type": "json_object"}},
    {},
)


class Fault(BaseModel):
    """One action that contradicts a goal, a tool or a result."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    message: Annotated[int, Field(ge=0)]
    """Index of the message."""
    rule: Annotated[int, Field(ge=1)] | None = None
    """Number of the line of the rubric that it breaks; None: the judge does not name it."""
    what: Annotated[str, Field(min_length=1)]
    """What contradicts what."""


class Verdict(BaseModel):
    """The judge's verdict on one conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    faults: list[Fault]
    consistent: bool
    score: Annotated[int, Field(ge=1, le=5)]
    """From 1 to 5, 5 is best; the rubric says what each means."""

    @model_validator(mode="after")
    def _is_unambiguous(self) -> "Verdict":
        if self.consistent == bool(self.faults):
            raise ValueError(f"consistent is {self.consistent}, with {len(self.faults)} faults")
        return self


@dataclass(frozen=True)
class JudgeFailure:
    """Why there is no verdict on a conversation."""

    kind: str
    """too-long, no-answer (by the endpoint), no-verdict (in the answer), or refused (by the endpoint)."""
    evidence: str


@dataclass(frozen=True)
class Judged:
    """A verdict in the cache, with the tokens that it took."""

    verdict: Verdict
    tokens_in: int
    tokens_out: int


class Answer(NamedTuple):
    """The first choice of a chat completion."""

    text: str
    is_cut: bool
    """Whether the model reached max_tokens."""
    tokens_in: int | None
    tokens_out: int | None
    """None if the endpoint does not report it."""


def read_rubric(path: Path) -> tuple[str, str]:
    """Return the instructions before and after the conversation. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"filter.judge.rubric: {path}: cannot be read: {error}") from error
    before, *after = text.split(f"\n{MARKER}\n")
    if not before.strip() or len(after) != 1:
        raise InputError(
            f"filter.judge.rubric: {path}: found {len(after)} lines {MARKER}, expected instructions and one such line, "
            "which the conversation replaces."
        )
    return before.strip(), after[0].strip()


def as_data(conversation: Conversation) -> str:
    r"""Return a conversation as JSON without `<`, so that it can neither end the data nor write a template's tags.

    Equal conversations give equal text, whatever the order of their keys.

    >>> as_data(Conversation([{"role": "user", "content": "</conversation>"}], None))
    '{"tools": [], "messages": [{"index": 0, "role": "user", "content": "\\u003c/conversation>"}]}'
    """
    canonical = json.loads(json.dumps([conversation.tools or [], conversation.messages], sort_keys=True))
    messages = [{"index": i, "role": message["role"], **message} for i, message in enumerate(canonical[1])]
    return json.dumps({"tools": canonical[0], "messages": messages}, ensure_ascii=False).replace("<", r"\u003c")


def request_of(conversation: Conversation, rubric: tuple[str, str], params: "JudgeParams") -> dict[str, Any]:
    """Return the body of the request, without the format of the answer."""
    before, after = rubric
    data = f"<conversation>\n{as_data(conversation)}\n</conversation>\n\n{after}"
    return {
        "model": params.model,
        "messages": [{"role": "system", "content": before}, {"role": "user", "content": data}],
        "temperature": 0,
        "max_tokens": params.max_tokens,
    }


def answer_of(body: str) -> Answer:
    """Return the first choice of a chat completion. Raises ValueError: it is no chat completion or has no text."""
    try:
        completion = strict_json.parse(body)
        choice, usage = completion["choices"][0], completion.get("usage") or {}
        text, is_cut = choice["message"]["content"], choice.get("finish_reason") == "length"
        tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"no chat completion ({type(error).__name__} {error})") from None
    if not isinstance(text, str):
        raise ValueError(f"no text{' before max_tokens' if is_cut else ''}")
    tokens_in, tokens_out = (count if type(count) is int and count >= 0 else None for count in tokens)
    return Answer(text, is_cut, tokens_in, tokens_out)


def parse_verdict(text: str, messages: int) -> Verdict:
    """Return the verdict in an answer about a conversation of `messages` messages.

    Reasoning that ends in </think> and text around the JSON are skipped. From the first brace to the last, the answer
    must be one verdict: two verdicts, or half of one, are errors.

    Raises:  ValueError: why the answer is no verdict.

    >>> parse_verdict('Sure: {"faults": [], "consistent": true, "score": 4}.', messages=2).score
    4
    """
    if text.lstrip().startswith("<think>") and "</think>" not in text:
        raise ValueError("the reasoning does not end")
    answer = text.rpartition("</think>")[2]
    start, end = answer.find("{"), answer.rfind("}") + 1
    if start < 0 or end <= start:
        raise ValueError("no JSON object in it")
    try:
        verdict = Verdict.model_validate(strict_json.parse(answer[start:end]))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise ValueError(f"{place + ': ' if place else ''}{fault['msg'].removeprefix('Value error, ')}") from None
    for reported in verdict.faults:
        if reported.message >= messages:
            raise ValueError(f"a fault in message {reported.message}, the conversation has {messages}")
    return verdict


def reject_by_verdict(outcome: Verdict | JudgeFailure, params: "JudgeParams") -> Rejection | None:
    """Return the rejection of a conversation: `judge-inconsistent`, or `judge-failed` if on_failure is reject."""
    if isinstance(outcome, JudgeFailure):
        return None if params.on_failure == "keep" else Rejection("judge-failed", f"{outcome.kind}: {outcome.evidence}")
    if outcome.consistent and outcome.score >= params.min_score:
        return None
    faults = [f"messages[{fault.message}]: {one_line(fault.what)}" for fault in outcome.faults]
    return Rejection("judge-inconsistent", "; ".join([f"score {outcome.score} of 5", *faults]))


class VerdictCache:
    """Verdicts by the digest of their request, in a SQLite file that threads and processes share.

    The first verdict stored for a request is the one that all readers get.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "verdicts.sqlite"
        self._lock = threading.Lock()
        with self._raising_input_errors():
            self._connection = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            # A killed process loses nothing; a machine without power loses the last verdicts, but no earlier one.
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS verdicts (request TEXT PRIMARY KEY, verdict TEXT NOT NULL, "
                "tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL) WITHOUT ROWID"
            )

    def get(self, request: str) -> Judged | None:
        """Return the verdict for a request; None if there is none."""
        with self._raising_input_errors():
            row = self._connection.execute(
                "SELECT verdict, tokens_in, tokens_out FROM verdicts WHERE request = ?", (request,)
            ).fetchone()
            return None if row is None else Judged(Verdict.model_validate_json(row[0]), row[1], row[2])

    def put(self, request: str, judged: Judged) -> Judged:
        """Store a verdict unless there is one; return the stored one."""
        with self._raising_input_errors():
            self._connection.execute(
                "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?)",
                (request, judged.verdict.model_dump_json(), judged.tokens_in, judged.tokens_out),
            )
        return self.get(request) or judged

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextlib.contextmanager
    def _raising_input_errors(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except (sqlite3.Error, ValidationError) as error:
            raise InputError(
                f"{self.path}: cannot use the cache of verdicts: {str(error).splitlines()[0]}. Check the disk, or move "
                "the file away to ask for its verdicts again."
            ) from error
