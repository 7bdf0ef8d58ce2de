"""What is measured: held-out samples for the loss, held-out prompts for answers.

Both are chosen by a hash of seed and conversation id, so the choice stays the same when data is added elsewhere.
Pure: rows in, choices out. Memory does not grow with the data.
"""

import bisect
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.params.evaluation import Eval
from sft.tokens.row_kwargs import kwargs_of


@dataclass(frozen=True)
class Segment:
    """A held-out sample, taken out of its pack."""

    rank: str
    source: str
    conversation_id: str
    ids: list[int]
    marks: list[int]
    """marks[i] says whether predicting ids[i + 1] counts."""


@dataclass(frozen=True)
class Prompt:
    """A held-out conversation up to the answer that the model is asked for."""

    rank: str
    kind: str
    """tool: the reference calls tools; chat: the conversation has none."""
    source: str
    conversation_id: str
    question: str
    """The last message before the answer."""
    thinking: bool
    ids: list[int]
    tools: list[Any]
    reference: dict[str, Any]
    """The assistant message of the data."""
    budget: int | None = None
    """The most tokens of reasoning, as the prompt states them."""


def rank(seed: int, conversation_id: str) -> str:
    """Return what conversations are sorted by before the first are chosen: sha256 of seed and id."""
    return hashlib.sha256(f"{seed} {conversation_id}".encode()).hexdigest()


def split_packs(packs: Iterable[Mapping[str, Any]], seed: int) -> Iterator[Segment]:
    """Yield the samples of packs; of copies, which `epochs` makes, the first one."""
    for pack in packs:
        ends = [*pack["seq_start_id"][1:], len(pack["input_ids"])]
        columns = (pack[name] for name in ("source", "conversation_id", "repeat", "window"))
        for start, end, source, identity, copy, window in zip(pack["seq_start_id"], ends, *columns, strict=True):
            if copy:
                continue
            ids, marks = pack["input_ids"][start:end], pack["loss_mask"][start:end]
            name = f"{identity} {window}" if window else identity  # not all windows of a conversation in a row
            yield Segment(rank(seed, name), source, identity, ids, marks)


def choose_segments(
    segments: Iterable[Segment], domains: Mapping[str, str], samples_per_domain: int | None
) -> dict[str, list[Segment]]:
    """Return the first samples of each domain by rank, None: all; `domains` names the domain of each source."""
    chosen: dict[str, list[Segment]] = {domain: [] for domain in sorted(set(domains.values()))}
    for segment in segments:
        if any(segment.marks):
            kept = chosen[domains[segment.source]]
            bisect.insort(kept, segment, key=lambda other: (other.rank, other.ids))
            if samples_per_domain is not None:
                del kept[samples_per_domain:]
    return {domain: kept for domain, kept in chosen.items() if kept}


def find_reference(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> tuple[str, int] | None:
    """Return a prompt's kind and the index of the message that answers it; None: the conversation is of no kind.

    >>> find_reference([{"role": "user"}, {"role": "assistant"}], [])
    ('chat', 1)
    """
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            if not tools:
                return "chat", index
            if message.get("tool_calls"):
                return "tool", index
    return None


def choose_prompts(
    rows: Iterable[tuple[str, Mapping[str, Any]]], chat: Any, params: Eval
) -> tuple[dict[str, list[Prompt]], Counter[str]]:
    """Return the first prompts of each kind by rank, and how many were left out, by reason.

    `rows` are (source, filtered row) of held-out conversations. Only a row that would be chosen is tokenized. A
    prompt counts as left out if it ranks before the last chosen one and could not be used.
    """
    limits = {"tool": params.tool_prompts, "chat": params.chat_prompts}
    chosen: dict[str, list[Prompt]] = {kind: [] for kind in limits}
    too_long: dict[str, list[str]] = {kind: [] for kind in limits}
    for source, row in rows:
        messages, tools = json.loads(row["messages"]), json.loads(row["tools"] or "null") or []
        reference_place = find_reference(messages, tools)
        if reference_place is None:
            continue
        kind, index = reference_place
        row_rank, kept = rank(params.seed, row["id"]), chosen[kind]
        if not limits[kind] or (len(kept) == limits[kind] and row_rank > kept[-1].rank):
            continue
        reference = messages[index]
        thinking = bool(reference.get("reasoning_content"))
        budget = params.reasoning_budget if thinking else None
        shown, kwargs = messages[:index], kwargs_of(row["meta"], chat)
        ids = chat.prompt_ids(shown, tools or None, thinking=thinking, budget=budget, kwargs=kwargs)
        if len(ids) > params.max_prompt_tokens:
            too_long[kind].append(row_rank)
            continue
        question = messages[index - 1]["content"] if index else ""
        prompt = Prompt(row_rank, kind, source, row["id"], question, thinking, ids, tools, reference, budget)
        bisect.insort(kept, prompt, key=lambda other: other.rank)
        del kept[limits[kind] :]
    left_out: Counter[str] = Counter()
    for kind, kept in chosen.items():
        is_full = len(kept) == limits[kind]
        left_out.update("over-length" for row_rank in too_long[kind] if not is_full or row_rank < kept[-1].rank)
    return chosen, left_out
