"""Compare ids and masks with NVIDIA's published template, splitting and masks, conversation by conversation.

    PYTHONPATH=src:. python -m bench.peers.nvidia_template CHECKOUT [--corpus FILE] [--rows 2000]

CHECKOUT is a clone of github.com/NVIDIA-NeMo/Nemotron. It reads nano3.jinja there and imports chat_template.py. Ours
uses the same template. The conversations are those in tests/labelled that we keep, and the first rows of a corpus
(bench/corpus.py), normalized for both sides.

NVIDIA's mask of a turn includes the newline after its stop token. Megatron-Bridge takes no loss from what follows a
stop token, so that is removed before the comparison. Prints how many conversations are equal, which ones NVIDIA's code
loses, and where the two differ, by kind, with examples.
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

from sft.conversation import Conversation, Rejection
from sft.formats.messages import normalize
from sft.tokens.render import ChatTemplate
from tests.support.tiny_model import ADDED_TOKENS
from tests.support.tokenizers import REASONING_AND_TOOLS, write_tokenizer

CODE, TEMPLATE = "src/nemotron/data_prep/core/chat_template.py", "src/nemotron/data_prep/templates/nano3.jinja"
MAX_EXAMPLES = 3

Sequences = list[tuple[list[int], list[int]]]


def conversations(corpus: Path | None, number: int) -> Iterator[tuple[str, Conversation]]:
    """Yield (name, conversation) for each conversation that we keep."""
    with tempfile.TemporaryDirectory() as folder:
        for row in rows("conversations"):
            if isinstance(outcome := read_fixture(row, Path(folder)), Conversation):
                yield row["id"], outcome
    for name in ("repetition", "narrative", "consistency", "contamination"):
        for row in rows(name):
            if isinstance(outcome := normalize(row["conversation"]), Conversation):
                yield f"{name} {row['id']}", outcome
    if corpus is not None:
        with corpus.open(encoding="utf-8") as lines:
            for place, line in enumerate(itertools.islice(lines, number), 1):
                if isinstance(outcome := normalize(json.loads(line)), Conversation):
                    yield f"corpus {place}", outcome


def theirs(code: Any, tokenizer: PreTrainedTokenizerFast, stop: int, conversation: Conversation) -> Sequences | str:
    """Return NVIDIA's sequences, or why it loses the conversation, like process_chat_sft_spool_core."""
    is_valid, reason = code.validate_conversation(conversation.messages, conversation.tools)
    if not is_valid:
        return str(reason)
    try:
        masked = code.create_masked_messages(conversation.messages, tokenizer, conversation.tools)
    except (ValueError, TypeError, KeyError) as error:
        return f"{type(error).__name__}: {error}".split(" at message")[0]
    sequences = []
    for chunks, _ in masked:
        ids, mask = list[int](), list[int]()
        for chunk in code.split_system_user_chunks(chunks):
            tokens = tokenizer.encode(chunk["content"], add_special_tokens=False)
            ids += tokens
            mask += [int(chunk["role"] == "assistant")] * len(tokens)
        sequences.append((ids, [int(on and before != stop) for before, on in zip([-1, *ids], mask, strict=False)]))
    return [(ids, mask) for ids, mask in sequences if any(mask)]  # NVIDIA keeps sequences without trained tokens


def ours(chat: ChatTemplate, conversation: Conversation) -> Sequences | str:
    """Return our sequences, or why we reject the conversation."""
    rendered = chat.render_samples(conversation.messages, conversation.tools)
    if isinstance(rendered, Rejection):
        return f"{rendered.reason}: {rendered.evidence}"
    sequences = []
    for sample in chat.encode(rendered):
        if isinstance(sample, Rejection):
            return f"{sample.reason}: {sample.evidence}"
        sequences.append((list(sample.ids), list(sample.mask)))
    return sequences


def kind_of(our_side: Sequences | str, their_side: Sequences | str) -> str:
    """Return how the two sides differ: a short name, or "equal"."""
    if isinstance(our_side, str):
        return "both reject" if isinstance(their_side, str) else f"we reject: {our_side.partition(':')[0]}"
    if isinstance(their_side, str):
        return f"they lose: {their_side}"
    if our_side == their_side:
        return "equal"
    if len(our_side) != len(their_side):
        return f"{len(our_side)} samples against {len(their_side)}"
    return "other ids" if [ids for ids, _ in our_side] != [ids for ids, _ in their_side] else "other masks"


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--rows", type=int, default=2_000)
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("nvidia_chat_template", args.checkout / CODE)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    counts, examples = Counter[str](), dict[str, list[str]]()
    sequences = tokens = 0
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), ADDED_TOKENS + REASONING_AND_TOOLS)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        tokenizer.chat_template = (args.checkout / TEMPLATE).read_text(encoding="utf-8")
        chat = ChatTemplate.load(str(args.checkout / TEMPLATE), Path(folder))
        for name, conversation in conversations(args.corpus, args.rows):
            our_side, their_side = ours(chat, conversation), theirs(code, tokenizer, chat.stop_id, conversation)
            kind = kind_of(our_side, their_side)
            counts[kind] += 1
            examples.setdefault(kind, []).append(name)
            if kind == "equal":
                sequences += len(our_side)
                tokens += sum(len(ids) for ids, _ in our_side)
    print(
        f"{counts.total()} conversations; equal in ids and mask: {counts['equal']}, "
        f"{sequences} sequences, {tokens:,} tokens"
    )
    for kind, count in counts.most_common():
        if kind != "equal":
            print(
                f"{count:6} {kind}: {', '.join(examples[kind][:MAX_EXAMPLES])}{' ...' if count > MAX_EXAMPLES else ''}"
            )


if __name__ == "__main__":
    main()
