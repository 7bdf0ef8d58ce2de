"""A strict reader of JSON from outside, because lenient readers disagree about the same text.

`parse(text)` returns the value or raises ValueError. Besides invalid JSON it rejects NaN and Infinity, numbers too
large for a float, duplicate keys in an object, half of a surrogate pair, and more than MAX_DEPTH levels. A parsed value
can be written as JSON and UTF-8 again, and can be walked recursively.
"""

import json
import math
from collections import Counter
from typing import Any, NoReturn

import orjson

# Chats and the schemas of their tools have less than 30 levels.
MAX_DEPTH = 64
# Maps digits to 0 and other bytes to a point, to find integers that may not fit into 64 bits.
DIGITS = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else ord(".") for byte in range(256))
MANY_DIGITS = b"0" * 19


def parse(text: str | bytes) -> Any:
    """Return the value of a JSON text; bytes are UTF-8, with or without a byte order mark.

    Raises:  ValueError: what is wrong; UnicodeDecodeError, which is a ValueError: not UTF-8.
    """
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _parse_strictly(text)
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        return _parse_strictly(text)
    again = orjson.dumps(value)
    return value if again == raw or _is_whole(raw, again) else _parse_strictly(text)


def _is_whole(raw: bytes, again: bytes) -> bool:
    """Return whether orjson surely kept all of a text, given what it writes for the value that it read.

    It drops duplicate keys, and with each at least two quotes, and turns long integers into floats.
    """
    is_short = MANY_DIGITS not in raw.translate(DIGITS)
    return is_short and b"\\u0022" not in raw and raw.count(b'"') == again.count(b'"')


def _parse_strictly(text: str | bytes) -> Any:
    """Return the value of any JSON text, or raise ValueError; this takes four times as long."""
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(f"nested too deeply: more than {MAX_DEPTH} levels") from None
    if _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"nested too deeply: more than {MAX_DEPTH} levels")
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("half of a surrogate pair, which no text can hold") from error
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    """Return whether lists and objects are nested deeper than a number of levels, without recursion.

    >>> _is_deeper([{"a": []}], 3), _is_deeper([{"a": []}], 2)
    (False, True)
    """
    layer = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        inside = (outer.values() if isinstance(outer, dict) else outer for outer in layer)
        layer = [inner for items in inside for inner in items if isinstance(inner, dict | list)]
        if not layer:
            break
    return bool(layer)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        ((duplicate, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(
            f"the key {duplicate[:80]!r} stands twice in an object"
        )  # the text is evidence in data: it stays
    return value


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {digits[:80]} is larger than a float can be")
    return number


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse)
