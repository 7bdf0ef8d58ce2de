"""A language model as judge: are all actions of a conversation consistent with its goals, tools and results?

Conversations -> verdicts in the same order, from an OpenAI-compatible endpoint (POST <SFT_JUDGE_URL>/chat/completions).
Prompt and verdict: sft.filters.judge.verdicts.

Every conversation gets a verdict or a counted `JudgeFailure`. A verdict is in the cache before it is returned, so a
rerun asks nothing and gives the same bytes; an endpoint need not answer the same twice. Failures are not cached: a
rerun asks again.

Environment, never shown and never written: SFT_JUDGE_URL, SFT_JUDGE_API_KEY. Also SFT_JUDGE_CONCURRENCY (concurrent
requests) and SFT_JUDGE_TIMEOUT (seconds per request).
"""

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sft.cli import InputError
from sft.conversation import Conversation
from sft.endpoint import BACKOFF_S, LATER, MAX_PAUSE_S, Endpoint, number_from_environment, pause_s
from sft.files import resolve_repo_file
from sft.filters.judge.verdicts import (
    FORMATS,
    Judged,
    JudgeFailure,
    Verdict,
    VerdictCache,
    answer_of,
    parse_verdict,
    read_rubric,
    request_of,
)
from sft.hashing import value_digest

if TYPE_CHECKING:
    from sft.params.data import JudgeParams

# SFT_JUDGE_CONCURRENCY: default and pattern.
CONCURRENCY, CONCURRENCY_PATTERN = "8", r"[1-9]\d{0,2}"
# Conversations read ahead per concurrent request, so that a slow verdict does not hold up the others; but no more than
# have this many characters in their prompts.
READ_AHEAD, READ_AHEAD_CHARS = 100, 20_000_000
# Failures of a kind until a conversation is given up. 8 requests without an answer take a minute and a half; an answer
# without a verdict rarely changes at temperature 0.
ATTEMPTS = {"no-answer": 8, "no-verdict": 3}
# HTTP statuses: try another format, give up the conversation, check the API key.
OTHER_FORMAT, REFUSED, NO_ACCESS = {400, 422}, {400, 413, 422}, {401, 403}


@dataclass
class Usage:
    """The cost of this run; it differs between runs, so it is printed and not in reports."""

    requests: int = 0
    """All requests, failed ones too."""
    retries: int = 0
    """Requests after the first for a conversation."""
    cached: int = 0
    """Verdicts that were in the cache."""
    judged: int = 0
    """Verdicts from the endpoint."""
    tokens_in: int = 0
    tokens_out: int = 0


class Judge:
    """Asks for verdicts, several at a time; use it in a `with` block.

    `usage` is the cost of this run; `report` is the same in a rerun.
    """

    def __init__(
        self, params: "JudgeParams", rubric: tuple[str, str], cache: VerdictCache, backoff_s: float = BACKOFF_S
    ) -> None:
        self.usage = Usage()
        self._params, self._rubric, self._cache, self._backoff_s = params, rubric, cache, backoff_s
        self._concurrency = int(number_from_environment("SFT_JUDGE_CONCURRENCY", CONCURRENCY, CONCURRENCY_PATTERN))
        self._endpoint = Endpoint.from_environment("SFT_JUDGE")
        self._format = 0  # the first of FORMATS that the endpoint accepts
        self._scores, self._failures = Counter[int](), Counter[str]()
        self._tokens_in = self._tokens_out = 0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._fatal: InputError | None = None

    @classmethod
    def load(cls, params: "JudgeParams", cache: Path, backoff_s: float = BACKOFF_S) -> "Judge":
        """Read the rubric and the environment, and open the cache in a folder. Raises InputError."""
        return cls(params, read_rubric(resolve_repo_file(params.rubric)), VerdictCache(cache), backoff_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cache.close()
        if self._endpoint is not None:
            self._endpoint.close()

    def verdicts(self, conversations: Iterable[Conversation]) -> Iterator[Verdict | JudgeFailure]:
        """Yield the verdict on each conversation, in order; READ_AHEAD bounds how many are held.

        Raises:  InputError: the budget is spent; the endpoint cannot be reached or denies access; a failure with
        `on_failure: stop`. All verdicts until then are in the cache.
        """
        self._stop.clear()
        self._fatal = None
        waiting: deque[tuple[Conversation, int, Future[Judged | JudgeFailure]]] = deque()
        waiting_chars = 0
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            for conversation in conversations:
                characters, future = self._begin(conversation, pool)
                waiting.append((conversation, characters, future))
                waiting_chars += characters
                while waiting and (
                    waiting[0][2].done()
                    or len(waiting) > READ_AHEAD * self._concurrency
                    or waiting_chars > READ_AHEAD_CHARS
                ):
                    conversation, characters, future = waiting.popleft()
                    waiting_chars -= characters
                    yield self._finish(conversation, future, pool)
            for conversation, _, future in waiting:
                yield self._finish(conversation, future, pool)
        finally:
            self._end(pool)

    def report(self) -> dict[str, Any]:
        """Return the counts for the report; a rerun with all verdicts in the cache returns the same."""
        return {
            "model": self._params.model,
            "scores": {str(score): self._scores[score] for score in range(1, 6)},
            "failed": dict(sorted(self._failures.items())),
            "tokens_in": self._tokens_in,
            "tokens_out": self._tokens_out,
        }

    def _begin(self, conversation: Conversation, pool: ThreadPoolExecutor) -> tuple[int, Future[Judged | JudgeFailure]]:
        """Start a conversation; return the characters of its prompt, and its outcome to come.

        It is done at once if it is too long or its verdict is in the cache.
        """
        body = request_of(conversation, self._rubric, self._params)
        request = value_digest({**body, **FORMATS[0]})
        characters = sum(len(message["content"]) for message in body["messages"])
        outcome: Future[Judged | JudgeFailure] = Future()
        if characters > self._params.max_prompt_chars:
            most = self._params.max_prompt_chars
            outcome.set_result(JudgeFailure("too-long", f"{characters} characters; max_prompt_chars is {most}"))
        elif cached := self._cache.get(request):
            self.usage.cached += 1
            outcome.set_result(cached)
        elif self._endpoint is None:
            raise InputError(
                "SFT_JUDGE_URL: not set, but a verdict is not in the cache. Set it to ask for the verdict."
            )
        else:
            outcome = pool.submit(self._ask, self._endpoint, request, body, len(conversation.messages))
        return characters, outcome

    def _finish(
        self, conversation: Conversation, future: Future[Judged | JudgeFailure], pool: ThreadPoolExecutor
    ) -> Verdict | JudgeFailure:
        """Wait for an outcome and count it. Raises InputError after all requests in progress."""
        try:
            outcome = future.result()
            if isinstance(outcome, JudgeFailure) and self._params.on_failure == "stop":
                raise self._halt(
                    f"conversation {conversation.id}: no verdict: {outcome.kind}: {outcome.evidence}. To continue "
                    "without it, set filter.judge.on_failure to keep or reject."
                )
        except InputError as error:
            self._end(pool)
            kept = self.usage.cached + self.usage.judged
            raise InputError(f"{error} {kept} verdicts are in the cache; a rerun continues from there.") from error
        if isinstance(outcome, JudgeFailure):
            self._failures[outcome.kind] += 1
            return outcome
        self._scores[outcome.verdict.score] += 1
        self._tokens_in += outcome.tokens_in
        self._tokens_out += outcome.tokens_out
        return outcome.verdict

    def _end(self, pool: ThreadPoolExecutor) -> None:
        """Send no more requests, but wait for those in progress: their verdicts go to the cache."""
        self._stop.set()
        pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, endpoint: Endpoint, request: str, body: dict[str, Any], messages: int) -> Judged | JudgeFailure:
        """Ask for a verdict until there is one or it is given up. Runs in a thread of the pool."""
        failures, answer_format = Counter[str](), self._format
        while True:
            self._spend()
            reply = endpoint.post({**body, **FORMATS[answer_format]})
            fault = endpoint.quote(reply.body if reply.status == 0 else f"status {reply.status}: {reply.body}")
            if reply.status == 200:
                self._format = max(self._format, answer_format)
                judged = self._read(endpoint, reply.body, messages)
                if isinstance(judged, Judged):
                    return self._keep(request, judged)
                kind, fault = "no-verdict", judged
            elif reply.status in LATER or reply.status >= 500:
                kind = "no-answer"
            elif reply.status in OTHER_FORMAT and answer_format + 1 < len(FORMATS):
                answer_format += 1
                continue
            elif reply.status in REFUSED:
                return JudgeFailure("refused", fault)
            elif reply.status in NO_ACCESS:
                raise self._halt(
                    f"SFT_JUDGE_API_KEY: the endpoint denies access (status {reply.status}). Check the key."
                )
            else:
                raise self._halt(
                    f"SFT_JUDGE_URL: the endpoint replies {fault}. Check the URL (the part before /chat/completions) "
                    "and filter.judge.model."
                )
            failures[kind] += 1
            if failures[kind] == ATTEMPTS[kind]:
                if reply.unreachable:
                    raise self._halt(f"SFT_JUDGE_URL: the endpoint cannot be reached: {fault}. Check the URL.")
                return JudgeFailure(kind, fault)
            wait_s = pause_s(failures.total(), reply.retry_after, self._backoff_s)
            if wait_s > MAX_PAUSE_S:
                return JudgeFailure(kind, f"{fault}; to be asked again in {wait_s:.0f} s")
            self._stop.wait(wait_s)
            with self._lock:
                self.usage.retries += 1

    def _read(self, endpoint: Endpoint, body: str, messages: int) -> Judged | str:
        """Count the tokens of an answer; return its verdict, or why it has none."""
        try:
            answer = answer_of(body)
        except ValueError as error:
            return endpoint.quote(f"{error}: {body}")
        if self._params.budget_tokens is not None and (answer.tokens_in is None or answer.tokens_out is None):
            raise self._halt(
                "filter.judge.budget_tokens: the endpoint does not report tokens. Set budget_requests instead."
            )
        tokens_in, tokens_out = answer.tokens_in or 0, answer.tokens_out or 0
        with self._lock:
            self.usage.tokens_in += tokens_in
            self.usage.tokens_out += tokens_out
        try:
            return Judged(parse_verdict(answer.text, messages), tokens_in, tokens_out)
        except ValueError as error:
            return endpoint.quote(f"{error}{' (cut at max_tokens)' if answer.is_cut else ''}: {answer.text}")

    def _keep(self, request: str, judged: Judged) -> Judged:
        """Put a verdict into the cache; return the one that is there, for another process may have been first."""
        kept = self._cache.put(request, judged)
        with self._lock:
            self.usage.judged += 1
        return kept

    def _spend(self) -> None:
        """Count a request. Raises InputError: the budget is spent, or the run has ended."""
        usage, params = self.usage, self._params
        with self._lock:
            tokens = usage.tokens_in + usage.tokens_out
            if params.budget_requests is not None and usage.requests >= params.budget_requests:
                reason = f"filter.judge.budget_requests: all {params.budget_requests} requests are spent."
            elif params.budget_tokens is not None and tokens >= params.budget_tokens:
                reason = f"filter.judge.budget_tokens: {tokens} of {params.budget_tokens} tokens are spent."
            elif self._stop.is_set():
                reason = "stopped."
            else:
                usage.requests += 1
                return
        raise self._halt(reason)

    def _halt(self, reason: str) -> InputError:
        """End the run; return the error, which is that of the first reason for all threads."""
        with self._lock:
            self._fatal = fatal = self._fatal or InputError(reason)
        self._stop.set()
        return fatal
