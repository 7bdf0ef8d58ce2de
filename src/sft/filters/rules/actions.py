"""Rules about actions: the calls of a conversation against its goals, tools and results.

Each rule returns a rejection with one stable reason, or None. Whether calls and results pair, and fit the tools, is
checked in sft.filters.structure.
"""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

from sft import strict_json
from sft.conversation import Conversation, Message, Rejection
from sft.filters.encoding import quote
from sft.filters.rules.replies import answers, first_request, straight_quotes

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
# First words of tools that only read: calling them twice teaches only to call twice.
READING = frozenset(
    "get search find list lookup look fetch read query check show view retrieve describe convert calculate".split()
)
# A result that may change with time, so that calling again is right.
PENDING = re.compile(r"pending|running|in.progress|queued|processing|waiting|retry|not ready|loading|try again", re.I)
ERROR_TEXT = re.compile(r"\s*(?:Error\b|ERROR\b|Exception\b|Traceback \(most recent|[A-Z]\w{2,30}Error:)")
ERROR_STATUS = frozenset({"error", "failed", "failure", "fail"})
# Words that hint at a problem.
DOUBT = re.compile(
    r"\b(?:not?|cannot|can't|couldn't|unable|unfortunately|sorry|apologi[sz]e|errors?|fail\w*|issues?|problems?|however"
    r"|but|although|unavailable|invalid|missing|already|would|could|please|retry|again|instead|unsuccessful\w*"
    r"|denied|rejected|without|unless|if|\w+n't)\b|\?",
    re.I,
)
DONE = r"booked|sent|emailed|scheduled|cancell?ed|reserved|ordered|transferred|refunded|purchased|paid|deleted"
SUCCESS = re.compile(
    rf"\bsuccessful(?:ly)?\b|\b(?:I've|I have|has been|have been|is now|are now) (?:now |just )?"
    rf"(?:{DONE}|confirmed|created|updated|added|removed|set|saved|activated|enabled|disabled|placed)\b",
    re.I,
)
# At the start of a sentence or a line. Each run of space is looked at from its first character only.
CLAIM = re.compile(rf"(?:\A|[.!]\s*+|(?<!\s)[^\S\n]*+\n\s*+)I(?:'ve| have) (?:now |just |successfully )*(?:{DONE})\b")
WRITING = re.compile(r"\b(?:draft|write|compose|letter|story|translat\w*|rephrase|role-?play|pretend|example)\b", re.I)
ANNOUNCEMENT = re.compile(
    r"(?:\A|[.!?:\n]\s*)(?:(?:Sure|Okay|OK|Certainly|Of course|Great|Alright|Now|First|Next)[,!.]?\s+)?"
    r"(?:(?:I'll|I will|I'm going to|I am going to|Let me) (?:now |first |quickly |go ahead and )?"
    r"(?:check|look (?:up|into|for|that up)|search|find|fetch|retrieve|query|pull up"
    r"|call the \w+ (?:function|tool|api))\b"
    r"(?! (?:back|in (?:on|with)))|(?:One moment|Hold on|Please (?:wait|hold on))\b)"
    r"[^.!?\n]{0,120}(?:[.:!]|\.\.\.|…)?\s*\Z",
    re.I,
)
CONDITION = re.compile(
    r"\b(?:if|once|when|whenever|after|as soon as|unless|until|tomorrow|later|before|every|daily|next)\b", re.I
)
GENERIC_DENIAL = re.compile(
    r"\bI (?:do not|don't|can't|cannot|am unable to) (?:currently |actually )?(?:have (?:any )?access to|use|call"
    r"|access|invoke) (?:any )?(?:external |such )?(?:tools|functions)\b(?! (?:that|for|to|which))",
    re.I,
)
# Identifiers of records that only the user or a tool can know; public ones (isin, gene, route) are left out.
OWNER = (
    "order booking reservation customer user account patient employee ticket invoice transaction payment appointment"
    " member membership policy claim tracking confirmation subscription refund shipment student contact case"
).split()
ID_NAME = re.compile(rf"(?:{'|'.join(OWNER)})_?(?:id|number|no|code|ref|reference)", re.I)
ADDRESS_NAME = re.compile(r"(?:\w{1,20}_)?e?mail(?:_?address)?|recipients?|to|cc|bcc", re.I)
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.I)
NUMBERED = re.compile(r"(?=.*\d{3})[A-Za-z0-9#_/-]{4,40}")
DATE = re.compile(r"\d{4}-\d\d-\d\d.*|\d{8}")
NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
# Tools that create a record may name it.
CREATING = frozenset("create add register new generate insert make open init start signup import upsert set".split())


def check_repeated_call(conversation: Conversation) -> Rejection | None:
    """A reading call is made again at once, though the result was good and is the same."""
    previous: set[tuple[str, str]] = set()
    for index, calls, results in _steps(conversation.messages):
        if index is None:  # a user or assistant turn in between
            previous = set()
            continue
        current = [(_call(call), result) for call, result in zip(calls, results, strict=False)]
        for (call, result), made_call in zip(current, calls, strict=False):
            is_reading = (_words(made_call["function"]["name"]) or [""])[0] in READING
            if is_reading and (call, result) in previous and not _is_error(result) and not PENDING.search(result):
                if len(result.strip()) > 2:  # an empty list may be read twice
                    return Rejection("repeated-call", f"messages[{index}]: again {call}, again {quote(result)}")
        previous = set(current)
    return None


def check_ignored_error(conversation: Conversation) -> Rejection | None:
    """Every result since the last user turn is an error, and the answer reports success without a doubt."""
    results: list[str] = []
    for index, message in enumerate(conversation.messages):
        if message["role"] == "user":
            results = []
        elif message["role"] == "tool":
            results.append(message["content"])
        elif message["role"] == "assistant" and results and "tool_calls" not in message:
            answer = straight_quotes(message["content"])
            success = SUCCESS.search(answer)
            if success and all(map(_is_error, results)) and not DOUBT.search(answer):
                return Rejection("ignored-error", f"messages[{index}]: {success[0]!r} after {quote(results[-1])}")
    return None


def check_claimed_action(conversation: Conversation) -> Rejection | None:
    """There are tools, none was called, and an answer claims that something was booked, sent or paid."""
    if not conversation.tools or any("tool_calls" in message for message in conversation.messages):
        return None
    is_writing = functools.cache(lambda: first_request(conversation, WRITING))
    for index, answer in answers(conversation):
        claim = CLAIM.search(answer)
        if claim and not DOUBT.search(answer) and index <= is_writing():
            return Rejection("claimed-action", f"messages[{index}]: {claim[0].strip()!r}, but nothing was called")
    return None


def check_announced_action(conversation: Conversation) -> Rejection | None:
    """There are tools, and the conversation ends with the announcement of a call that it does not make."""
    last = conversation.messages[-1]
    if not conversation.tools or last["role"] != "assistant" or "tool_calls" in last:
        return None
    announcement = ANNOUNCEMENT.search(straight_quotes(last["content"])[-300:])
    if announcement and not CONDITION.search(announcement[0]):
        return Rejection(
            "announced-action", f"the conversation ends with {quote(announcement[0].strip())}, without a call"
        )
    return None


def check_invented_id(conversation: Conversation) -> Rejection | None:
    """An argument is an identifier or an address that no earlier message mentions, whole or in part."""
    known, num_known = Mentioned(), 0
    for index, message in enumerate(conversation.messages):
        for call in message.get("tool_calls", []):
            function = call["function"]
            if CREATING.intersection(_words(function["name"])):
                continue
            for name, value in _scalars("", function["arguments"]):
                if not _is_identifier(name, value):
                    continue
                if num_known == 0:
                    known.add(json.dumps(conversation.tools, ensure_ascii=False))
                for earlier in conversation.messages[num_known:index]:
                    known.add(_visible_text(earlier))
                num_known = index
                if not known.hints_at(value):
                    return Rejection(
                        "invented-id", f"messages[{index}] {function['name']}: {name} = {value!r} occurs nowhere before"
                    )
    return None


def check_denied_tools(conversation: Conversation) -> Rejection | None:
    """The assistant claims to have no tools, in a conversation in which it calls them."""
    if not any("tool_calls" in message for message in conversation.messages):
        return None
    for index, answer in answers(conversation):
        if denial := GENERIC_DENIAL.search(answer):
            return Rejection("denied-tools", f"messages[{index}]: {denial[0]!r}, but it calls tools")
    return None


def _steps(messages: list[Message]) -> Iterator[tuple[int | None, list[Any], list[str]]]:
    """Yield (index, calls, results) of each assistant turn with calls; (None, [], []) for each other turn."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and "tool_calls" in message:
            results = []
            for result in messages[index + 1 :]:
                if result["role"] != "tool":
                    break
                results.append(result)
            yield index, message["tool_calls"], _in_order(message["tool_calls"], results)
        elif message["role"] != "tool":
            yield None, [], []


def _in_order(calls: list[Any], results: list[Message]) -> list[str]:
    """Return results in the order of their calls: by id if all have one."""
    by_id = {result.get("tool_call_id"): result["content"] for result in results}
    ids = [call.get("id") for call in calls]
    if None not in ids and set(ids) == set(by_id) and len(by_id) == len(results):
        return [by_id[call_id] for call_id in ids]
    return [result["content"] for result in results]


def _call(call: dict[str, Any]) -> str:
    function = call["function"]
    return f"{function['name']}({json.dumps(function['arguments'], sort_keys=True, ensure_ascii=False)})"


def _words(name: str) -> list[str]:
    """Return the words of a tool's name: get_orderStatus -> get, order, status; without a module before a dot."""
    return [word.lower() for word in WORD.findall(name.rpartition(".")[2])]


def _is_error(result: str) -> bool:
    """Return whether a result reports that the call failed."""
    if ERROR_TEXT.match(result):
        return True
    if not result.lstrip().startswith("{"):
        return False
    try:
        value = strict_json.parse(result)
    except ValueError:
        return False
    for key in ("output", "result", "content"):  # an envelope around the result
        if isinstance(value, dict) and len(value) == 1 and key in value:
            inner = value[key]
            return _is_error(inner if isinstance(inner, str) else json.dumps(inner))
    return isinstance(value, dict) and bool(
        value.get("error")
        or value.get("success") is False
        or value.get("detail") == "Not Found"
        or str(value.get("status")).lower() in ERROR_STATUS
    )


def _scalars(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the strings and integers in arguments, each with the nearest name above it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _scalars(key, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _scalars(name, inner)
    elif isinstance(value, str | int) and not isinstance(value, bool):
        yield name, str(value)


def _is_identifier(name: str, value: str) -> bool:
    if UUID.fullmatch(value):
        return True
    if ADDRESS_NAME.fullmatch(name):
        return bool(EMAIL.fullmatch(value))
    return bool(ID_NAME.fullmatch(name) and NUMBERED.fullmatch(value) and not DATE.fullmatch(value))


class Mentioned:
    """Texts in lower case, prepared for the search for many values."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._numbers: set[str] = set()

    def add(self, text: str) -> None:
        """Add a text, also without spaces and signs."""
        text = text.lower()
        self._texts += [text, NOT_ALPHANUMERIC.sub("", text)]
        self._numbers.update(digits.lstrip("0") for digits in re.findall(r"\d+", text))

    def hints_at(self, value: str) -> bool:
        """Return whether a text has a value, or a part of it: a name of an address, digits of a number."""
        value = value.lower()
        if self._has(value) or self._has(NOT_ALPHANUMERIC.sub("", value)):
            return True
        if UUID.fullmatch(value):
            return False
        if "@" in value:
            parts = re.findall(r"[^\W\d_]{3,}", value.partition("@")[0])
            return not parts or any(map(self._has, parts))
        return any(digits.lstrip("0") in self._numbers for digits in re.findall(r"\d+", value))

    def _has(self, part: str) -> bool:
        return any(part in text for text in self._texts)


def _visible_text(message: Message) -> str:
    """Return the content and the calls of a message; not its reasoning, which may invent things."""
    return "\n".join([message["content"], *(_call(call) for call in message.get("tool_calls", []))])
