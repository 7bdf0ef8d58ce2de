"""Published: conversations through NVIDIA's own template, splitting and masks, and through ours with that template.

    PYTHONPATH=src:. python -m bench.peers.nvidia_template CHECKOUT [--corpus FILE] [--rows 2000]

CHECKOUT is a clone of github.com/NVIDIA-NeMo/Nemotron, whose code is not part of this repository: of it the
template (nano3.jinja) and chat_template.py are read, the second is imported. The conversations are those of
tests/labelled that we keep, and the first rows of a corpus (bench/corpus.py), in normal form for both sides.

Compared are ids and masks of every sequence. In their mask a turn goes on to the newline behind its stop token;
Megatron-Bridge takes the loss from what follows a stop token, so that is done here before comparing. Printed is how
many conversations are equal, which they lose, and where they differ, by kind, with examples.
"""

import argparse
import importlib.util
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.filters import read_fixture, rows
from transformers import PreTrainedTokenizerFast

from sft.conversation import Conversation, Rejection, normalise
from sft.tokens.render import ChatTemplate
from tests.support.tiny_model import ADDED_TOKENS
from tests.support.tokenizers import REASONING_AND_TOOLS, write_tokenizer

CODE, TEMPLATE = "src/nemotron/data_prep/core/chat_template.py", "src/nemotron/data_prep/templates/nano3.jinja"
SHOWN = 3

Sequences = list[tuple[list[int], list[int]]]


def conversations(corpus: Path | None, number: int) -> Iterator[tuple[str, Conversation]]:
    """Yield the conversations that we keep, each with its name."""
    with tempfile.TemporaryDirectory() as folder:
        for row in rows("conversations"):
            if isinstance(outcome := read_fixture(row, Path(folder)), Conversation):
                yield row["id"], outcome
    for name in ("repetition", "narrative", "consistency", "contamination"):
        for row in rows(name):
            if isinstance(outcome := normalise(row["conversation"]), Conversation):
                yield f"{name} {row['id']}", outcome
    if corpus is not None:
        with corpus.open(encoding="utf-8") as lines:
            for place, line in enumerate(itertools.islice(lines, number), 1):
                if isinstance(outcome := normalise(json.loads(line)), Conversation):
                    yield f"corpus {place}", outcome


def theirs(code: Any, tokenizer: PreTrainedTokenizerFast, stop: int, conversation: Conversation) -> Sequences | str:
    """Return their sequences, or why they lose the conversation; as their process_chat_sft_spool_core does."""
    is_valid, why = code.validate_conversation(conversation.messages, conversation.tools)
    if not is_valid:
        return str(why)
    try:
        masked = code.create_masked_messages(conversation.messages, tokenizer, conversation.tools)
    except (ValueError, TypeError, KeyError) as error:
        return f"{type(error).__name__}: {error}".split(" at message")[0]
    found = []
    for chunks, _ in masked:
        ids, mask = list[int](), list[int]()
        for chunk in code.split_system_user_chunks(chunks):
            tokens = tokenizer.encode(chunk["content"], add_special_tokens=False)
            ids += tokens
            mask += [int(chunk["role"] == "assistant")] * len(tokens)
        found.append((ids, [kept if before != stop else 0 for before, kept in zip([-1, *ids], mask, strict=False)]))
    return [(ids, mask) for ids, mask in found if any(mask)]  # they keep sequences in which nothing is trained


def ours(chat: ChatTemplate, conversation: Conversation) -> Sequences | str:
    """Return our sequences, or why we refuse the conversation."""
    rendered = chat.samples(conversation.messages, conversation.tools)
    if isinstance(rendered, Rejection):
        return f"{rendered.reason}: {rendered.evidence}"
    found = []
    for sample in chat.encode(rendered):
        if isinstance(sample, Rejection):
            return f"{sample.reason}: {sample.evidence}"
        found.append((list(sample.ids), list(sample.mask)))
    return found


def kind_of(one: Sequences | str, other: Sequences | str) -> str:
    """Name how ours differs from theirs."""
    if isinstance(one, str) or isinstance(other, str):
        refused = "both refuse" if isinstance(one, str) and isinstance(other, str) else ""
        return refused or (f"we refuse: {one.partition(':')[0]}" if isinstance(one, str) else f"they lose: {other}")
    if one == other:
        return "equal"
    if len(one) != len(other):
        return f"{len(one)} samples against {len(other)}"
    return "other ids" if [ids for ids, _ in one] != [ids for ids, _ in other] else "other masks"


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--rows", type=int, default=2_000)
    arguments = parser.parse_args()
    spec = importlib.util.spec_from_file_location("published", arguments.checkout / CODE)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    counts, examples = Counter[str](), dict[str, list[str]]()
    sequences = tokens = 0
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), ADDED_TOKENS + REASONING_AND_TOOLS)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        tokenizer.chat_template = (arguments.checkout / TEMPLATE).read_text(encoding="utf-8")
        chat = ChatTemplate.load(str(arguments.checkout / TEMPLATE), Path(folder))
        for name, conversation in conversations(arguments.corpus, arguments.rows):
            one, other = ours(chat, conversation), theirs(code, tokenizer, chat.stop_id, conversation)
            kind = kind_of(one, other)
            counts[kind] += 1
            examples.setdefault(kind, []).append(name)
            if kind == "equal":
                sequences += len(one)
                tokens += sum(len(ids) for ids, _ in one)
    print(
        f"{counts.total()} conversations; equal in ids and mask: {counts['equal']}, "
        f"{sequences} sequences, {tokens:,} tokens"
    )
    for kind, count in counts.most_common():
        if kind != "equal":
            print(f"{count:6} {kind}: {', '.join(examples[kind][:SHOWN])}{' ...' if count > SHOWN else ''}")


if __name__ == "__main__":
    main()
