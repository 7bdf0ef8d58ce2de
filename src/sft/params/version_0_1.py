"""params.yaml of version 0.1.0: for each of its keys that changed, the lines to write now."""

import io
import re
from typing import Any

from ruamel.yaml import YAML

# Old key -> new key, where only the name changed.
RENAMED = {
    "filter.sample": "filter.max_rows",
    "filter.markup": "filter.control_tokens",
    "filter.repetition.density": "filter.repetition.min_repeated_share",
    "filter.repetition.numbered_repeats": "filter.repetition.max_numbered_repeats",
    "filter.repetition.run_chars": "filter.repetition.max_char_run",
    "filter.repetition.counted": "filter.repetition.max_counting_run",
}
# Values that changed too: (old key, old value) -> new value.
RENAMED_VALUES = {("filter.markup", "plain"): "as_text"}
# Keys of an entry whose values moved into `uri`; and those of a source that moved into `read`, with their new names.
PINS = ("sha256", "revision")
MOVED_TO_READ = {"format": "format", "fields": "fields", "where": "select", "rows": "max_rows"}
INDENT = "  "


def entry_of(location: list[str]) -> list[str]:
    """Return the location of the source, evaluation set or base model that a location is in; [] if in none."""
    if location[:2] == ["fetch", "model"]:
        return location[:2]
    return location[:3] if location[:2] in (["fetch", "sources"], ["fetch", "benchmarks"]) else []


def is_moved(location: list[str]) -> bool:
    """Return whether a location is a key of an entry whose value moved into `uri` or `read`."""
    entry = entry_of(location)
    moved = (*PINS, *MOVED_TO_READ) if entry[1:2] == ["sources"] else PINS
    return len(location) == len(entry) + 1 and bool(entry) and location[-1] in moved


def renamed_line(location: list[str], value: Any, renamed: dict[str, str]) -> str:
    """Return the line that replaces a renamed key, indented as in its file."""
    old = ".".join(location)
    new_value = RENAMED_VALUES.get((old, value), value) if isinstance(value, str) else value
    return f"{INDENT * (len(location) - 1)}{renamed[old].rpartition('.')[2]}: {as_yaml(new_value)}"


def new_entry(location: list[str], entry: dict[str, Any]) -> str:
    """Return the lines that replace an entry: its uri with the pin, `read`, and the other keys as they are."""
    is_source = location[1] == "sources"
    lines = [f"{location[-1]}:", f"{INDENT}uri: {as_yaml(_pinned(entry))}"]
    if is_source:
        short = entry.get("read")
        read = dict(short) if isinstance(short, dict) else {} if short is None else {"format": short}
        read |= {new: entry[old] for old, new in MOVED_TO_READ.items() if entry.get(old) is not None}
        lines.append(f"{INDENT}read: {as_yaml(read['format'] if list(read) == ['format'] else read)}")
    left_out = {"uri", "read", *PINS, *(MOVED_TO_READ if is_source else ())}
    lines += [f"{INDENT}{key}: {as_yaml(value)}" for key, value in entry.items() if key not in left_out]
    return "\n".join(INDENT * (len(location) - 1) + line for line in lines)


def _pinned(entry: dict[str, Any]) -> str:
    uri, revision = str(entry["uri"]), entry.get("revision")
    if revision is not None:
        commit = revision if re.fullmatch(r"[^\s/@]+", str(revision)) else "COMMIT-UNKNOWN"
        uri = re.sub(r"^(hf://(?:(?:datasets|models)/)?[^/@]+/[^/@]+)", rf"\1@{commit}", uri)
    return f"{uri}#sha256={entry['sha256']}" if entry.get("sha256") else uri


def as_yaml(value: Any) -> str:
    """Return a value as YAML on one line.

    >>> as_yaml({"format": "champ", "max_rows": 40}), as_yaml(None), as_yaml("a: b")
    ('{format: champ, max_rows: 40}', 'null', "'a: b'")
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width = True, 1 << 20
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue().removesuffix("...\n").strip()
