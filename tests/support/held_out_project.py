"""A project before the eval stage: two tiny models, held-out conversations, packs."""

import json
import shutil
from pathlib import Path

from sft.files import write_json
from sft.hashing import file_digest
from sft.params.evaluation import Eval, Gate
from sft.parquet import CONVERSATIONS, PACKS, ShardWriter
from sft.tokens.render import ChatTemplate
from tests.support.tiny_model import make_tiny_base, pack_samples

ROOT = Path(__file__).parents[2]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
PARAMS = Eval(
    samples_per_domain=2,
    tool_prompts=2,
    chat_prompts=2,
    max_prompt_tokens=400,
    max_new_tokens=6,
    batch_size=3,
    seed=1,
    gate=Gate(max_loss_ratio=1.0, max_domain_loss_ratio=None, min_tool_call_fits=0.5),
)


def chat_messages(n, reasoning=False):
    reply = {"role": "assistant", "content": f"The sum is {n}."}
    if reasoning:
        reply["reasoning_content"] = "Add."
    return [{"role": "user", "content": f"What is {n} and 0?"}, reply]


def tool_messages(city):
    function = {"name": "get_weather", "arguments": {"city": city}}
    return [
        {"role": "user", "content": f"Weather in {city}?"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
    ]


def row(identity, messages, tools=None):
    return {
        "id": identity,
        "messages": json.dumps(messages),
        "tools": json.dumps(tools) if tools else None,
        "meta": "{}",
    }


CHATS = [row(f"chat-{n}", chat_messages(n, reasoning=n == 1)) for n in range(5)]
CALLS = [row(f"call-{city}", tool_messages(city), TOOLS) for city in ("Paris", "Berlin", "Rome")]


def pack_rows(chat, source, rows):
    samples = []
    for filtered in rows:
        tools = json.loads(filtered["tools"] or "null")
        for sample in chat.encode(chat.render_samples(json.loads(filtered["messages"]), tools)):
            identity = {"conversation_id": filtered["id"], "sample": 0, "source": source, "repeat": 0}
            samples.append({"ids": sample.ids, "mask": sample.mask, **identity})
    return pack_samples(samples, multiple=4, pad_id=0)


def write_project(folder, sources):
    """Write what the stages before eval leave: {source: (domain, rows)}; all rows are held out."""
    for name in ("base", "final"):
        make_tiny_base(folder / "models" / name)
    final = folder / "models" / "final"
    shutil.copyfile(ROOT / "templates" / "nano3.jinja", final / "chat_template.jinja")
    lineage = {
        "lineage_key": "0123456789abcdef",
        "git_commit": "a" * 40,
        "git_dirty": False,
        "params": {},
        "sources": {},
    }
    write_json(final / "lineage.json", {**lineage, **dict.fromkeys(("data", "base_model", "code"), "d")})
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    chat = ChatTemplate.load(str(final / "chat_template.jinja"), final)
    packed = folder / "data" / "packed"
    with (
        ShardWriter(packed / "validation", "packs", PACKS) as validation,
        ShardWriter(packed / "test", "packs", PACKS) as test,
    ):
        for source, (_, rows) in sources.items():
            if rows:
                validation.write(pack_rows(chat, source, rows[:2]))
                test.write(pack_rows(chat, source, rows[2:]))
            with ShardWriter(folder / "data" / "filtered" / source, "kept", CONVERSATIONS) as kept:
                for filtered in [*rows, row("only-for-training", chat_messages(99))]:
                    kept.write(filtered)
    write_json(
        packed / "metadata.json",
        {
            "sources": {source: {"domain": domain} for source, (domain, _) in sources.items()},
            "domains": {
                domain: {"conversations": 1, "tokens": 9, "trained_tokens": 3} for domain, _ in sources.values()
            },
            "windows": {"samples": 0, "windows": 0, "trained_tokens": 0},
            "tokenizer_sha256": file_digest(final / "tokenizer.json"),
        },
    )


def use_small_params(folder):
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    for name, value in (
        ("max_new_tokens", 6),
        ("tool_prompts", 2),
        ("chat_prompts", 2),
        ("samples_per_domain", 2),
    ):
        old = next(line for line in text.splitlines() if line.startswith(f"  {name}:"))
        text = text.replace(old, f"  {name}: {value}")
    (folder / "params.yaml").write_text(text, encoding="utf-8")
