"""Greedy answers of a model that OpenAI-compatible endpoints serve, such as those of vLLM.

prompts as token ids  ->  token ids of answers, as sft.evaluation.generate returns them

SFT_EVAL_URL is one URL or more, separated by spaces: each endpoint is asked what it serves, and the prompts are spread
over those that serve the model under the name of its folder (`vllm serve models/final`). Requests go to /completions,
which takes ids: no endpoint renders another template or limits an answer to the schema of the tools.
"""

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sft.cli import InputError
from sft.endpoint import BACKOFF_S, LATER, Endpoint, Reply, pause_s

NAME = "SFT_EVAL"
REQUESTS_AT_ONCE = 16
"""For each endpoint."""
ATTEMPTS = 6


def find_endpoints(model: str) -> list[Endpoint]:
    """Return the endpoints that serve a model.

    Raises:  InputError: none does, SFT_EVAL_URL is not set, an endpoint does not list its models.
    """
    urls = os.environ.get(f"{NAME}_URL", "").split()
    if not urls:
        raise InputError(
            f"{NAME}_URL: not set, but eval.engine is endpoint. Serve both models (vllm serve {model}) and set it to "
            "http://host:port/v1, or several of these, separated by spaces."
        )
    found: list[Endpoint] = []
    names: set[str] = set()
    for endpoint in (Endpoint.at(url, NAME) for url in urls):
        listed = _read(endpoint, _ask(endpoint, "models", None))
        served = [entry.get("id") for entry in listed.get("data") or [] if isinstance(entry, dict)]
        names.update(map(str, served))
        if model in served:
            found.append(endpoint)
        else:
            endpoint.close()
    if not found:
        raise InputError(
            f"{NAME}_URL: none of {len(urls)} endpoints serves {model}; they serve "
            f"{', '.join(sorted(names)) or 'nothing'}. Serve it by this name: vllm serve {model}"
        )
    return found


def generate(
    endpoints: Sequence[Endpoint],
    model: str,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """Return the greedy answer to every prompt, in the order of the prompts, and close the endpoints.

    An answer that ended by itself ends with the first of `stop_ids`.

    Raises:  InputError: an endpoint refuses a request, or does not answer after ATTEMPTS.
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

    def answer(number: int) -> list[int]:
        endpoint = endpoints[number % len(endpoints)]
        reply = _read(endpoint, _ask(endpoint, "completions", {**settings, "prompt": list(prompts[number])}))
        choice = (reply.get("choices") or [{}])[0]
        if not isinstance(choice.get("text"), str):
            raise InputError(f"{NAME}_URL: expected choices[0].text in an answer, found {endpoint.quote(str(reply))}")
        ids: list[int] = tokenizer.encode(choice["text"], add_special_tokens=False).ids
        end = next((place for place, each in enumerate(ids) if each in stop_ids), len(ids))
        return ids[:end] + ([stop_ids[0]] if end < len(ids) or choice.get("finish_reason") == "stop" else [])

    with ThreadPoolExecutor(REQUESTS_AT_ONCE * len(endpoints)) as pool:
        answers = [pool.submit(answer, number) for number in range(len(prompts))]
        try:
            return [each.result() for each in answers]
        finally:
            pool.shutdown(cancel_futures=True)
            for endpoint in endpoints:
                endpoint.close()


def _ask(endpoint: Endpoint, path: str, body: dict[str, Any] | None) -> Reply:
    """Send a request until it is answered, at most ATTEMPTS times."""
    for failures in range(1, ATTEMPTS + 1):
        reply = endpoint.get(path) if body is None else endpoint.post(body, path)
        if reply.status not in LATER and reply.status < 500:
            return reply
        if failures < ATTEMPTS:
            time.sleep(pause_s(failures, reply.retry_after, BACKOFF_S))
    return reply


def _read(endpoint: Endpoint, reply: Reply) -> dict[str, Any]:
    """Return the object in a reply. Raises InputError."""
    if reply.status == 200:
        try:
            content = json.loads(reply.body)
        except ValueError:
            content = None
        if isinstance(content, dict):
            return content
    raise InputError(
        f"{NAME}_URL: an endpoint replies {endpoint.quote(f'status {reply.status}: {reply.body}')}. Check the URL (the "
        f"part before /completions), {NAME}_API_KEY and what is served."
    )
