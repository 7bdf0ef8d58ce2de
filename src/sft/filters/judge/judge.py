"""A language model as judge: is every action of a conversation consistent with goals, tools and results?

conversations -> verdicts, one each, in the same order whatever the concurrency, from any OpenAI-compatible
endpoint (POST <SFT_JUDGE_URL>/chat/completions). What is asked and answered is in sft.filters.judge.verdicts.

Guaranteed: every conversation gets a verdict or a counted `JudgeFailure`; every verdict is in the cache when it
is given out, so that a rerun asks nothing and gives the same bytes. Not guaranteed: that an endpoint answers
the same twice. Failures are not cached: a rerun asks again.

Environment, never shown and never written: SFT_JUDGE_URL, SFT_JUDGE_API_KEY. Also SFT_JUDGE_CONCURRENCY
(requests at a time) and SFT_JUDGE_TIMEOUT (seconds for an answer).
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
from sft.files import resolve_repo_file
from sft.filters.judge.endpoint import BACKOFF_S, LONGEST_PAUSE_S, Endpoint, pause_s, setting
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

# SFT_JUDGE_CONCURRENCY: default and form.
CONCURRENCY, CONCURRENCY_FORM = "8", r"[1-9]\d{0,2}"
# Conversations read ahead for each request at a time: a slow verdict does not hold up the others.
AHEAD = 4
# Failures of a kind until a conversation is given up. 8 without an answer take a minute and a half; answers that
# are no verdict hardly change at temperature 0.
ATTEMPTS = {"no-answer": 8, "no-verdict": 3}
# HTTP statuses: ask again later (so from 500 on); not in this form; not this conversation; not you.
LATER, FORM_REFUSED, REFUSED, NO_ENTRY = {0, 408, 425, 429}, {400, 422}, {400, 413, 422}, {401, 403}


@dataclass
class Usage:
    """What this run cost; another number each time, so for people and not for reports."""

    requests: int = 0
    """All requests, also those that failed."""
    retries: int = 0
    """Requests after the first for a conversation."""
    cached: int = 0
    """Verdicts that were there before."""
    judged: int = 0
    """Verdicts that were asked for and put into the cache."""
    tokens_in: int = 0
    tokens_out: int = 0


class Judge:
    """Asks for verdicts, several at a time; use it in a `with` block.

    `usage` is what this run cost; `report` is what a rerun repeats.
    """

    def __init__(
        self, params: "JudgeParams", rubric: tuple[str, str], cache: VerdictCache, backoff_s: float = BACKOFF_S
    ) -> None:
        self.usage = Usage()
        self._params, self._rubric, self._cache, self._backoff_s = params, rubric, cache, backoff_s
        self._concurrency = int(setting("SFT_JUDGE_CONCURRENCY", CONCURRENCY, CONCURRENCY_FORM))
        self._endpoint = Endpoint.from_environment()
        self._form = 0  # the first of FORMATS that the endpoint takes
        self._scores, self._failures = Counter[int](), Counter[str]()
        self._tokens_in = self._tokens_out = 0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._fatal: InputError | None = None

    @classmethod
    def load(cls, params: "JudgeParams", cache: Path, backoff_s: float = BACKOFF_S) -> "Judge":
        """Read rubric and environment, open the cache in the folder `cache`. Raises InputError."""
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
        """Yield what the judge says of each conversation, in their order; a few are read ahead, no more are kept.

        Raises:  InputError: the budget is spent; the endpoint is not there or lets us not in; a failure under
                 `on_failure: stop`. All verdicts until then are in the cache.
        """
        self._stop.clear()
        self._fatal = None
        waiting: deque[tuple[Conversation, Future[Judged | JudgeFailure]]] = deque()
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            for conversation in conversations:
                waiting.append((conversation, self._begin(conversation, pool)))
                if len(waiting) > AHEAD * self._concurrency:
                    yield self._finish(*waiting.popleft(), pool)
            while waiting:
                yield self._finish(*waiting.popleft(), pool)
        finally:
            self._end(pool)

    def report(self) -> dict[str, Any]:
        """Return what the ledger's report says; the same for a rerun that finds all verdicts in the cache."""
        return {
            "model": self._params.model,
            "scores": {str(score): self._scores[score] for score in range(1, 6)},
            "failed": dict(sorted(self._failures.items())),
            "tokens_in": self._tokens_in,
            "tokens_out": self._tokens_out,
        }

    def _begin(self, conversation: Conversation, pool: ThreadPoolExecutor) -> Future[Judged | JudgeFailure]:
        """Start on a conversation: at once done where it is too long or the cache knows it."""
        body = request_of(conversation, self._rubric, self._params)
        request = value_digest({**body, **FORMATS[0]})
        characters = sum(len(message["content"]) for message in body["messages"])
        done: Future[Judged | JudgeFailure] = Future()
        if characters > self._params.max_prompt_chars:
            most = self._params.max_prompt_chars
            done.set_result(JudgeFailure("too-long", f"{characters} characters; max_prompt_chars is {most}"))
        elif known := self._cache.get(request):
            self.usage.cached += 1
            done.set_result(known)
        elif self._endpoint is None:
            raise InputError("filter.judge: a verdict is not in the cache: set SFT_JUDGE_URL to ask for it.")
        else:
            return pool.submit(self._ask, self._endpoint, request, body, len(conversation.messages))
        return done

    def _finish(
        self, conversation: Conversation, future: Future[Judged | JudgeFailure], pool: ThreadPoolExecutor
    ) -> Verdict | JudgeFailure:
        """Wait for the outcome and count it. Raises InputError when all has ended that was under way."""
        try:
            outcome = future.result()
            if isinstance(outcome, JudgeFailure) and self._params.on_failure == "stop":
                raise self._halt(
                    f"no verdict on conversation {conversation.id}: {outcome.kind}: {outcome.evidence}. To go on "
                    "without, set filter.judge.on_failure to keep or reject."
                )
        except InputError as error:
            self._end(pool)
            kept = self.usage.cached + self.usage.judged
            raise InputError(f"{error} {kept} verdicts are in the cache; a rerun goes on from there.") from error
        if isinstance(outcome, JudgeFailure):
            self._failures[outcome.kind] += 1
            return outcome
        self._scores[outcome.verdict.score] += 1
        self._tokens_in += outcome.tokens_in
        self._tokens_out += outcome.tokens_out
        return outcome.verdict

    def _end(self, pool: ThreadPoolExecutor) -> None:
        """Ask nothing more, but wait for what is under way: it is paid for, and goes into the cache."""
        self._stop.set()
        pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, endpoint: Endpoint, request: str, body: dict[str, Any], messages: int) -> Judged | JudgeFailure:
        """Ask for a verdict until there is one, or no hope of one. Runs in a thread of the pool."""
        failures, form = Counter[str](), self._form
        while True:
            self._spend()
            reply = endpoint.post({**body, **FORMATS[form]})
            what = endpoint.quote(reply.body if reply.status == 0 else f"status {reply.status}: {reply.body}")
            if reply.status == 200:
                self._form = max(self._form, form)
                judged = self._read(endpoint, reply.body, messages)
                if isinstance(judged, Judged):
                    return self._keep(request, judged)
                kind, what = "no-verdict", judged
            elif reply.status in LATER or reply.status >= 500:
                kind = "no-answer"
            elif reply.status in FORM_REFUSED and form + 1 < len(FORMATS):
                form += 1
                continue
            elif reply.status in REFUSED:
                return JudgeFailure("refused", what)
            elif reply.status in NO_ENTRY:
                raise self._halt(f"the judge's endpoint lets us not in (status {reply.status}): see SFT_JUDGE_API_KEY.")
            else:
                raise self._halt(
                    f"the judge's endpoint gives {what}. Check SFT_JUDGE_URL (what stands before /chat/completions) "
                    "and filter.judge.model."
                )
            failures[kind] += 1
            if failures[kind] == ATTEMPTS[kind]:
                if reply.unreachable:
                    raise self._halt(f"the judge's endpoint cannot be reached: {what}. Check SFT_JUDGE_URL.")
                return JudgeFailure(kind, what)
            wait_s = pause_s(failures.total(), reply.retry_after, self._backoff_s)
            if wait_s > LONGEST_PAUSE_S:
                return JudgeFailure(kind, f"{what}; to be asked again in {wait_s:.0f} s")
            self._stop.wait(wait_s)
            with self._lock:
                self.usage.retries += 1

    def _read(self, endpoint: Endpoint, body: str, messages: int) -> Judged | str:
        """Count what an answer cost and return its verdict, or say why it is none."""
        try:
            answer = answer_of(body)
        except ValueError as error:
            return endpoint.quote(f"{error}: {body}")
        if self._params.budget_tokens is not None and (answer.tokens_in is None or answer.tokens_out is None):
            raise self._halt("filter.judge.budget_tokens: the endpoint does not tell tokens; set budget_requests.")
        tokens_in, tokens_out = answer.tokens_in or 0, answer.tokens_out or 0
        with self._lock:
            self.usage.tokens_in += tokens_in
            self.usage.tokens_out += tokens_out
        try:
            return Judged(parse_verdict(answer.text, messages), tokens_in, tokens_out)
        except ValueError as error:
            return endpoint.quote(f"{error}{' (cut at max_tokens)' if answer.is_cut else ''}: {answer.text}")

    def _keep(self, request: str, judged: Judged) -> Judged:
        """Put a verdict into the cache; another process may have been first."""
        kept = self._cache.put(request, judged)
        with self._lock:
            self.usage.judged += 1
        return kept

    def _spend(self) -> None:
        """Count a request, or raise InputError where none is left, or the run has ended."""
        usage, params = self.usage, self._params
        with self._lock:
            tokens = usage.tokens_in + usage.tokens_out
            if params.budget_requests is not None and usage.requests >= params.budget_requests:
                why = f"filter.judge.budget_requests: all {params.budget_requests} are spent."
            elif params.budget_tokens is not None and tokens >= params.budget_tokens:
                why = f"filter.judge.budget_tokens: {tokens} of {params.budget_tokens} are spent."
            elif self._stop.is_set():
                why = "stopped."
            else:
                usage.requests += 1
                return
        raise self._halt(why)

    def _halt(self, why: str) -> InputError:
        """End the run: of several reasons the first is given everywhere."""
        with self._lock:
            self._fatal = fatal = self._fatal or InputError(why)
        self._stop.set()
        return fatal
