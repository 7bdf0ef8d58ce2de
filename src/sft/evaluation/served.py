"""Greedy answers of a model that OpenAI-compatible endpoints serve, such as those of vLLM.

prompts as token ids  ->  token ids of answers, as sft.evaluation.generate returns them

SFT_EVAL_URL is one URL or more, separated by spaces: each endpoint is asked what it serves, and the prompts are spread
over those that serve the model under the name of its folder (`vllm serve models/final`). Requests go to /completions,
which takes ids: no endpoint renders another template or limits an answer to the schema of the tools. A request
that one endpoint does not answer goes to the next one.
"""

import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from sft.cli import InputError
from sft.endpoint import BACKOFF_S, LATER, MAX_PAUSE_S, Endpoint, Reply, pause_s

NAME = "SFT_EVAL"
REQUESTS_AT_ONCE = 16
"""For each endpoint."""
ATTEMPTS = 6
FINISHED, CUT = "stop", "length"


class Server(NamedTuple):
    """An endpoint, and what messages call it: nothing of its URL."""

    endpoint: Endpoint
    name: str


def find_endpoints(model: str) -> list[Server]:
    """Return the endpoints that serve a model.

    Raises:  InputError: none does, SFT_EVAL_URL is not set, an endpoint does not list its models.
    """
    urls = os.environ.get(f"{NAME}_URL", "").split()
    if not urls:
        raise InputError(
            f"{NAME}_URL: not set, but eval.engine is endpoint. Serve both models (vllm serve {model}) and set it to "
            "http://host:port/v1, or several of these, separated by spaces."
        )
    found: list[Server] = []
    names: set[str] = set()
    for number, url in enumerate(urls, 1):
        server = Server(Endpoint.at(url, NAME), f"endpoint {number} of {len(urls)}")
        _, listed = _ask([server], "models", None, threading.Event())
        entries = listed["data"] if isinstance(listed.get("data"), list) else []
        served = [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]
        names.update(map(server.endpoint.quote, served))
        if model in served:
            found.append(server)
        else:
            server.endpoint.close()
    if not found:
        raise InputError(
            f"{NAME}_URL: none of {len(urls)} endpoints serves {model}; they serve "
            f"{', '.join(sorted(names)) or 'nothing'}. Serve it by this name: vllm serve {model}"
        )
    return found


def generate(
    servers: Sequence[Server],
    model: str,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """Return the greedy answer to every prompt, in the order of the prompts, and close the endpoints.

    An answer that ended by itself ends with the first of `stop_ids`.

    Raises:  InputError: an endpoint refuses a request or cuts an answer, or none answers in ATTEMPTS.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model, "tokenizer.json")))
    settings = {
        "model": model,
        "max_tokens": max_new_tokens,
        "temperature": 0,
        "repetition_penalty": 1.0,  # else vLLM takes that of the model's generation_config.json
        "stop_token_ids": list(stop_ids),
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }

    stopped = threading.Event()

    def answer(number: int) -> list[int]:
        first = number % len(servers)
        order = [*servers[first:], *servers[:first]]
        server, reply = _ask(order, "completions", {**settings, "prompt": list(prompts[number])}, stopped)
        text, finish = _completion(server, reply, max_new_tokens)
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        end = next((place for place, each in enumerate(ids) if each in stop_ids), len(ids))
        return ids[:end] + ([stop_ids[0]] if end < len(ids) or finish == FINISHED else [])

    with ThreadPoolExecutor(REQUESTS_AT_ONCE * len(servers)) as pool:
        answers = [pool.submit(answer, number) for number in range(len(prompts))]
        try:
            return [each.result() for each in answers]
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            for server in servers:
                server.endpoint.close()


def _completion(server: Server, reply: dict[str, Any], max_new_tokens: int) -> tuple[str, str]:
    """Return the text of an answer, and why it ended. Raises InputError: there is none, or the server cut it."""
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    text, finish = (choice.get("text"), choice.get("finish_reason")) if isinstance(choice, dict) else (None, None)
    if not isinstance(text, str) or finish not in (FINISHED, CUT):
        raise InputError(
            f"{NAME}_URL: {server.name}: expected choices[0] with text and finish_reason stop or length in an answer, "
            f"found {server.endpoint.quote(str(reply))}"
        )
    usage = reply.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if finish == CUT and isinstance(tokens, int) and tokens < max_new_tokens:
        raise InputError(
            f"{NAME}_URL: {server.name} cut an answer after {tokens} tokens, expected {max_new_tokens} "
            "(eval.max_new_tokens). Serve the model with a longer context (vllm serve --max-model-len)."
        )
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), finish


def _ask(
    servers: Sequence[Server], path: str, body: dict[str, Any] | None, stopped: threading.Event
) -> tuple[Server, dict[str, Any]]:
    """Return the reply to a request, and whose it is: servers are asked in turn, ATTEMPTS times. Raises InputError."""
    for failures in range(1, ATTEMPTS + 1):
        server = servers[(failures - 1) % len(servers)]
        reply = server.endpoint.get(path) if body is None else server.endpoint.post(body, path)
        if (reply.status not in LATER and reply.status < 500) or failures == ATTEMPTS:
            break
        if stopped.wait(min(MAX_PAUSE_S, pause_s(failures, reply.retry_after, BACKOFF_S))):
            break
    return server, _read(server, reply)


def _read(server: Server, reply: Reply) -> dict[str, Any]:
    """Return the object in a reply. Raises InputError."""
    if reply.status == 200:
        try:
            content = json.loads(reply.body)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            return content
    found = server.endpoint.quote(f"status {reply.status}: {reply.body}" if reply.status else reply.body)
    raise InputError(
        f"{NAME}_URL: {server.name} replies {found}. Check the URL (the part before /completions), {NAME}_API_KEY, "
        f"{NAME}_TIMEOUT (seconds for an answer) and what is served."
    )
