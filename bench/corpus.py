"""Make conversations shaped like real post-training data, the same ones every time, for other benchmarks.

    PYTHONPATH=src:. python -m bench.corpus 10000 runs/bench/corpus.jsonl [--tokenizer runs/bench/tokenizer]

Writes OpenAI chat as JSON lines; a larger corpus begins with the rows of a smaller one. Lengths are lognormal (median
about 600 tokens, sigma 1.1, at most 32,000); 30 % of the conversations reason, 15 % call tools, half have a system
message, half have several turns. The text comes from this machine (Debian's documentation and manual pages, Python's
source and packages), so results of two machines are similar, not equal. It is collected once into
runs/bench/text.json (about 80 MB, each paragraph once).

--tokenizer also writes a tokenizer of 131,072 tokens as a Hugging Face folder: byte-level BPE from `mistral-common`
(PyPI, Apache-2.0) with the control tokens of the nano3 template.
"""

import argparse
import base64
import gzip
import hashlib
import json
import math
import random
import re
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from bench.project import BENCH_RUNS

from sft.files import publish_file, publish_folder, write_json
from sft.params.data import Download
from sft.sources.download import fetch_files

TEXT = BENCH_RUNS / "text.json"
PROSE_BYTES, CODE_BYTES, FILE_BYTES = 60 << 20, 20 << 20, 1 << 20
PROSE_CHARS, CODE_LINES = (40, 3000), 40
SEED = 1234
MEDIAN_TOKENS, SIGMA, FEWEST_TOKENS, MOST_TOKENS, CHARS_PER_TOKEN = 600, 1.1, 24, 32_000, 3.45
# Text that a filter would reject or a template would read as its own.
MARKUP = re.compile(r"```|~~~|<\|im_|</?think>|</?tool_call>|</?tool_response>|[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd]")
ROFF = re.compile(r"^[.'].*$|\\f[A-Z]|\\[-&|^]", re.MULTILINE)

TEKKEN = Download(
    uri="pypi://mistral-common==1.13.1/mistral_common/data/tekken_240911.json"
    "#sha256=98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af"
)
CONTROL = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
CONTROL += ("<tool_response>", "</tool_response>")

TOOLS = {
    "get_weather": ("Get the current weather for a city.", {"city": "City name", "unit": "celsius or fahrenheit"}),
    "search_docs": ("Search the documentation and return the best passages.", {"query": "Query", "top_k": 8}),
    "run_python": ("Execute a Python snippet in a sandbox and return stdout.", {"source": "Python source"}),
    "read_file": ("Read a file from the workspace.", {"path": "Path", "start": 1, "end": 99}),
    "sql_query": ("Run a read-only SQL query.", {"statement": "SQL text"}),
}


# --- Text -------------------------------------------------------------------------------------------------


def collect_text() -> dict[str, list[str]]:
    """Return paragraphs of prose and pieces of code from files of this machine, each once, in a fixed order."""
    if not TEXT.exists():
        python = sysconfig.get_paths()
        prose = [Path("/usr/share/doc"), Path("/usr/share/man")]
        code = [Path(python["stdlib"]), Path(python["purelib"])]
        write_json(
            TEXT,
            {
                "prose": _unique(_paragraphs(_texts(prose, ("", ".gz", ".txt", ".md", ".rst"))), PROSE_BYTES),
                "code": _unique(_pieces(_texts(code, (".py",))), CODE_BYTES),
            },
        )
    return json.loads(TEXT.read_text(encoding="utf-8"))


def _texts(folders: list[Path], suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yield the text of files in a fixed order that mixes the folders."""
    paths = {path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes and path.is_file()}
    for path in sorted(paths, key=lambda path: hashlib.sha256(str(path).encode()).digest()):
        if path.stat().st_size > FILE_BYTES:
            continue
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        try:
            yield data.decode("utf-8")
        except UnicodeDecodeError:
            continue


def _paragraphs(texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        if text.startswith((".", "'")):
            text = ROFF.sub("", text)
        for paragraph in re.split(r"\n\s*\n", text):
            if PROSE_CHARS[0] <= len(paragraph := paragraph.strip()) <= PROSE_CHARS[1]:
                yield paragraph


def _pieces(texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        lines = text.splitlines()
        for start in range(0, len(lines), CODE_LINES):
            if len(piece := "\n".join(lines[start : start + CODE_LINES]).strip("\n")) > PROSE_CHARS[0]:
                yield piece


def _unique(texts: Iterator[str], most_bytes: int) -> list[str]:
    kept: dict[str, None] = {}
    size = 0
    for text in texts:
        if text not in kept and not MARKUP.search(text):
            kept[text] = None
            size += len(text.encode())
            if size >= most_bytes:
                break
    return list(kept)


# --- Conversations -----------------------------------------------------------------------------------------


class Conversations:
    """Makes conversations one by one; the n-th is the same in every corpus.

    `longest`: draw lengths evenly up to this many tokens, instead of those of post-training data.
    """

    def __init__(self, longest: int | None = None) -> None:
        text, self._longest = collect_text(), longest
        self._draw = random.Random(SEED)
        self._prose, self._code = text["prose"], text["code"]
        self._next_index = {"prose": 0, "code": 0}

    def make(self, number: int) -> dict[str, Any]:
        """Return the next conversation as an OpenAI record."""
        draw = self._draw
        if self._longest is None:
            tokens = min(MOST_TOKENS, max(FEWEST_TOKENS, draw.lognormvariate(math.log(MEDIAN_TOKENS), SIGMA)))
        else:
            tokens = draw.uniform(self._longest / 2, self._longest)
        chars, kind, messages = tokens * CHARS_PER_TOKEN, draw.random(), []
        if draw.random() < 0.5:
            system = min(chars * 0.1, 600) * draw.random() + 20
            messages.append({"role": "system", "content": self._text(system, 0)})
            chars -= system
        turns = 1 if draw.random() < 0.45 else min(12, 1 + int(draw.expovariate(0.5)))
        names = draw.sample(sorted(TOOLS), draw.randint(1, 4)) if kind < 0.15 else []
        if names:
            chars = max(80, chars - 500 * len(names) - 900)
        for turn in range(turns):
            question = draw.uniform(0.1, 0.4)
            messages.append({"role": "user", "content": self._text(chars / turns * question, 0.1)})
            messages += self._answer(f"call_{number}_{turn}", chars / turns * (1 - question), names, reasons=kind > 0.7)
        tools = {"tools": [_schema(name) for name in names]} if names else {}
        return {"uuid": f"{number:012x}", "messages": messages, "license": "unspecified", **tools}

    def _answer(self, call: str, chars: float, names: list[str], reasons: bool) -> list[dict[str, Any]]:
        draw = self._draw
        if names and draw.random() < 0.7:
            name = draw.choice(names)
            arguments = {
                key: draw.randint(1, 99) if isinstance(example, int) else self._text(draw.uniform(8, 60), 0.1)
                for key, example in TOOLS[name][1].items()
            }
            function = {"name": name, "arguments": json.dumps(arguments)}
            request = {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": call, "type": "function", "function": function}],
            }
            if draw.random() < 0.3:
                request["reasoning_content"] = self._text(chars * 0.2, 0)
            result = {"role": "tool", "tool_call_id": call, "content": self._text(chars * 0.4, 0.3)}
            return [request, result, {"role": "assistant", "content": self._text(chars * 0.4)}]
        if not reasons:
            return [{"role": "assistant", "content": self._text(chars)}]
        share = draw.uniform(0.3, 0.8)
        reasoning, answer = self._text(chars * share, 0.15), self._text(chars * (1 - share))
        return [{"role": "assistant", "content": answer, "reasoning_content": reasoning}]

    def _text(self, chars: float, code: float = 0.25) -> str:
        """Join pieces of text up to about `chars` characters; `code` is the share of code."""
        parts: list[str] = []
        length = 0
        while length < chars:
            if self._draw.random() < code:
                part = f"```python\n{self._next('code')}\n```"
            else:
                part = self._next("prose")
            if length + len(part) > chars * 1.25 + 60:
                part = part[: max(20, int(chars - length))]
            parts.append(_closed(part))
            length += len(part) + 2
        return "\n\n".join(parts).strip() or "ok"

    def _next(self, kind: str) -> str:
        texts = self._code if kind == "code" else self._prose
        self._next_index[kind] = (self._next_index[kind] + 1) % len(texts)
        return texts[self._next_index[kind]]


def _closed(part: str) -> str:
    """End a piece that may be cut: close the code fence, or end the sentence with a period."""
    if part.startswith("```"):
        return part if part.endswith("\n```") else f"{part.rstrip('`').rstrip()}\n```"
    part = part.rstrip()
    return part if part.endswith((".", "!", "?")) else f"{part.rstrip(' ,;:-([{')}."


def _schema(name: str) -> dict[str, Any]:
    description, parameters = TOOLS[name]
    properties = {
        key: {"type": "integer", "description": "A number"}
        if isinstance(example, int)
        else {"type": "string", "description": example}
        for key, example in parameters.items()
    }
    schema = {"type": "object", "properties": properties, "required": list(parameters)[:1]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def write_corpus(path: Path, rows: int, longest: int | None = None) -> None:
    """Write `rows` conversations as JSON lines."""
    conversations = Conversations(longest)
    with publish_file(path) as partial, partial.open("wb") as file:
        for number in range(rows):
            file.write(orjson.dumps(conversations.make(number)) + b"\n")


# --- Tokenizer -----------------------------------------------------------------------------------------------


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json: byte-level BPE with 131,072 tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    with tempfile.TemporaryDirectory() as download:
        fetch_files(TEKKEN, Path(download))
        (path,) = Path(download).rglob("tekken_240911.json")
        published = json.loads(path.read_text(encoding="utf-8"))
    config = published["config"]
    reserved = config["default_num_special_tokens"]
    special = ["<unk>", "<s>", "</s>", *(f"<SPECIAL_{number}>" for number in range(3, reserved))]
    special[10 : 10 + len(CONTROL)] = CONTROL
    entries = published["vocab"][: config["default_vocab_size"] - reserved]
    ranks = {base64.b64decode(token["token_bytes"]): token["rank"] for token in entries}

    letters = _byte_letters()
    vocabulary = {token: number for number, token in enumerate(special)}
    vocabulary |= {_as_letters(token, letters): rank + reserved for token, rank in ranks.items()}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = sorted((ranks[a], ranks[b], a, b) for a, b in halves if a in ranks and b in ranks)
        merges += [(_as_letters(a, letters), _as_letters(b, letters)) for _, _, a, b in known]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True, fuse_unk=False))
    split = pre_tokenizers.Split(Regex(config["pattern"]), behavior="isolated", invert=False)
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special[:20]])
    with publish_folder(folder) as partial:
        tokenizer.save(str(partial / "tokenizer.json"))
        named = {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>", "pad_token": "<SPECIAL_18>"}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
        (partial / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _byte_letters() -> dict[int, str]:
    """Return the character for each byte in byte-level BPE (the table of GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def _as_letters(token: bytes, letters: dict[int, str]) -> str:
    return "".join(letters[byte] for byte in token)


def main() -> None:
    """Write a corpus, and a tokenizer if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, help="conversations")
    parser.add_argument("output", type=Path, help="a .jsonl file")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="where to write the tokenizer")
    args = parser.parse_args()
    write_corpus(args.output, args.rows)
    if args.tokenizer is not None:
        write_tokenizer(args.tokenizer)
    print(f"{args.output}: {args.rows:,} conversations, {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
