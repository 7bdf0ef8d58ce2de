"""Consistency: every action of a trajectory against goals, tools and results, by rules and without a network.

Each rule is a function with one stable reason and its evidence; `check_consistency` gives the first hit.
A rule speaks only where next to nothing else can be meant: what it misses is left to the judge
(sft.data.judge). Whether calls and results pair, and fit the tools, is checked in sft.data.structure.

    repeated-call             a reading call, made again at once, when the result was good and is the same
    ignored-error             every result since the user spoke is an error, and the answer reports success
    claimed-action            the answer says that something was booked or sent, and nothing was called
    announced-action          the last answer ends with "let me check" and calls nothing
    invented-id               an argument is an order number, an e-mail address ... that nobody mentioned
    denied-tools              "I have no access to tools", after calling them
    answer-against-reasoning  the reasoning ends in one boxed result, the answer in another
    truncated                 an unclosed code fence, unfinished JSON, or a last word that cannot end a sentence
    placeholder-answer        the whole answer is "[insert result]"
    speaks-for-user           the answer goes on with the next turns: "Human: ...", "Assistant: ..."
    wrong-language            answered in another script than asked
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from sft.data import strictjson
from sft.data.conversation import Conversation, Message, Rejection

EVIDENCE_CHARS = 160

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
# First words of tools that read and change nothing: asking twice teaches only to ask twice.
READING = frozenset(
    "get search find list lookup look fetch read query check show view retrieve describe convert calculate".split()
)
# A result that may change by waiting, so that asking again is right.
PENDING = re.compile(r"pending|running|in.progress|queued|processing|waiting|retry|not ready|loading|try again", re.I)
ERROR_TEXT = re.compile(r"\s*(?:Error\b|ERROR\b|Exception\b|Traceback \(most recent|[A-Z]\w{2,30}Error:)")
ERROR_STATUS = frozenset({"error", "failed", "failure", "fail"})
# Whatever hints that not all went well.
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
CLAIM = re.compile(rf"(?:\A|[.!\n]\s*)I(?:'ve| have) (?:now |just |successfully )*(?:{DONE})\b")
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
# Identifiers of records that only the user or a tool can know; public ones (isin, gene, route) are not here.
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
# Tools that bring a record into being may give it a name.
CREATING = frozenset("create add register new generate insert make open init start signup import upsert set".split())

BOXED = re.compile(r"\\boxed\{\s*(-?\d{1,12}|[A-E])\s*\}")
FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[ \t]*$", re.MULTILINE)
# Words after which an English sentence goes on, whatever it says.
OPEN_ENDED = re.compile(r"[ \n](?:the|a|an|and|or|because|whose|their|my|your|its|our|every|than)\Z")
LONG_LINE, LONG_TEXT = 60, 160  # characters: shorter ones may be titles, verses, list items or word games
PLACEHOLDER = re.compile(
    r"[\s*#>]*(?:(?:final )?answer:?\s*)?(?:[\[<{(]{1,2}\s*(?:insert|your|put|add|fill in|placeholder|answer"
    r"|response|result)\b[^\]>})\n]{0,80}[\]>})]{1,2}|\\boxed\{\s*(?:\?|\.\.\.|answer|your answer)?\s*\}"
    r"|TODO\b[^\n]{0,60}|TBD|lorem ipsum[^\n]{0,60})[\s.*]*",
    re.I,
)
PLACEHOLDER_ASKED = re.compile(r"template|placeholder|todo|tbd|lorem", re.I)
USER_TURN = re.compile(r"^(?:\*\*)?(?:### )?(User|Human):(?:\*\*)?[ \t]*\S", re.MULTILINE)
ASSISTANT_TURN = re.compile(r"^(?:\*\*)?(?:### )?(?:Assistant|AI|Bot|Chatbot|ChatGPT):", re.MULTILINE)
DIALOGUE = re.compile(
    r"dialog|conversation|chat|transcript|script|example|few-shot|prompt|role-?play|scene|interview|\bturns?\b|format"
    r"|\b(?:user|human|assistant)s?\b",
    re.I,
)

# As the names of letters begin in Unicode; hiragana and katakana count as CJK.
SCRIPTS = frozenset("LATIN CYRILLIC CJK HANGUL ARABIC DEVANAGARI GREEK HEBREW THAI".split())
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$[^$\n]*\$|https?://\S+", re.DOTALL)
MIN_LETTERS = 30  # fewer letters say nothing of a language; of Chinese, Japanese and Korean a third as many
SAME_SCRIPT = 0.95  # share of letters
ENGLISH = re.compile(r"\b(?:the|is|are|what|how|why|of|in|to|and|for|with|does|do|you|can|my|please|explain)\b", re.I)
LANGUAGE_NAMED = re.compile(
    r"translat|language|english|chinese|mandarin|cantonese|japanese|korean|russian|ukrainian|arabic|hindi|greek|hebrew|thai"
    r"|persian|farsi|urdu|bulgarian|serbian|kanji|hiragana|katakana|hangul|cyrillic|alphabet|script|spell|pronounc|transliterat"
    r"|poem|haiku|lyrics|翻|译|訳|語|语|英|中文|汉|漢|日文|国外|外国|海外|拼音|ローマ字|язык|перев|англ|латин|китай|япон|영어|번역|언어|로마자|韓|韩"
    r"|انجليز|إنجليز|ترجم|لغة|अंग्रे|अनुवाद|भाषा|αγγλ|μετάφρ|γλώσσ|אנגל|תרג|שפה|อังกฤษ|แปล|ภาษา",
    re.I,
)


# --- Actions against results -------------------------------------------------------------------------------


def check_repeated_call(conversation: Conversation) -> Rejection | None:
    """A reading call made again at once, though the result was good and comes out the same."""
    previous: list[tuple[str, str]] = []
    for index, calls, results in _steps(conversation.messages):
        if index is None:  # the user or the assistant spoke in between
            previous = []
            continue
        made = [(_call(call), result) for call, result in zip(calls, results, strict=False)]
        for (call, result), one in zip(made, calls, strict=False):
            is_reading = (_words(one["function"]["name"]) or [""])[0] in READING
            if is_reading and (call, result) in previous and not _is_error(result) and not PENDING.search(result):
                if len(result.strip()) > 2:  # an empty list may well be asked for twice
                    return Rejection("repeated-call", f"messages[{index}]: again {call}, again {_short(result)}")
        previous = made
    return None


def check_ignored_error(conversation: Conversation) -> Rejection | None:
    """Every result since the user spoke is an error, and the answer reports success without a doubt."""
    results: list[str] = []
    for index, message in enumerate(conversation.messages):
        if message["role"] == "user":
            results = []
        elif message["role"] == "tool":
            results.append(message["content"])
        elif message["role"] == "assistant" and results and "tool_calls" not in message:
            said = _plain(message["content"])
            found = SUCCESS.search(said)
            if found and all(map(_is_error, results)) and not DOUBT.search(said):
                return Rejection("ignored-error", f"messages[{index}]: {found[0]!r} after {_short(results[-1])}")
    return None


def check_claimed_action(conversation: Conversation) -> Rejection | None:
    """There are tools, none was ever called, and the answer says that something was booked, sent or paid."""
    if not conversation.tools or any("tool_calls" in message for message in conversation.messages):
        return None
    for index, said in _answers(conversation):
        found = CLAIM.search(said)
        if found and not DOUBT.search(said) and not WRITING.search(_asked(conversation, index)):
            return Rejection("claimed-action", f"messages[{index}]: {found[0].strip()!r}, but nothing was called")
    return None


def check_announced_action(conversation: Conversation) -> Rejection | None:
    """There are tools, and the conversation ends with the announcement of a call that is not made."""
    last = conversation.messages[-1]
    if not conversation.tools or last["role"] != "assistant" or "tool_calls" in last:
        return None
    found = ANNOUNCEMENT.search(_plain(last["content"])[-300:])
    if found and not CONDITION.search(found[0]):
        return Rejection("announced-action", f"the conversation ends with {_short(found[0].strip())}, without a call")
    return None


def check_invented_id(conversation: Conversation) -> Rejection | None:
    """An identifier or an address in an argument that nobody mentioned, and that no part of hints at."""
    known: list[str] | None = None
    for index, message in enumerate(conversation.messages):
        for call in message.get("tool_calls", []):
            function = call["function"]
            if CREATING.intersection(_words(function["name"])):
                continue
            for name, value in _scalars("", function["arguments"]):
                if not _is_identifier(name, value):
                    continue
                known = known or [json.dumps(conversation.tools, ensure_ascii=False).lower()]
                before = [*known, *(_seen(earlier) for earlier in conversation.messages[:index])]
                if not _is_hinted(value, "\n".join(before).lower()):
                    return Rejection(
                        "invented-id", f"messages[{index}] {function['name']}: {name} = {value!r} occurs nowhere before"
                    )
    return None


def check_denied_tools(conversation: Conversation) -> Rejection | None:
    """The assistant says that it has no tools, in a conversation in which it calls them."""
    if not any("tool_calls" in message for message in conversation.messages):
        return None
    for index, said in _answers(conversation):
        if found := GENERIC_DENIAL.search(said):
            return Rejection("denied-tools", f"messages[{index}]: {found[0]!r}, but it calls tools")
    return None


# --- Answers against themselves ----------------------------------------------------------------------------


def check_answer_against_reasoning(conversation: Conversation) -> Rejection | None:
    """Reasoning and answer each box one result, a whole number or a letter of choice, and they differ."""
    for index, message in enumerate(conversation.messages):
        if "\\boxed" not in message["content"] or "\\boxed" not in message.get("reasoning_content", ""):
            continue
        if message["content"].count("\\boxed") == 1 and message["reasoning_content"].count("\\boxed") == 1:
            thought, said = BOXED.search(message["reasoning_content"]), BOXED.search(message["content"])
            if thought and said and thought[1] != said[1] and thought[1].isalpha() == said[1].isalpha():
                evidence = f"messages[{index}]: reasoning {thought[0]}, answer {said[0]}"
                return Rejection("answer-against-reasoning", evidence)
    return None


def check_truncated(conversation: Conversation) -> Rejection | None:
    """The answer, or the reasoning before it, breaks off."""
    for index, message in enumerate(conversation.messages):
        if message["role"] == "assistant":
            for field in ("content", "reasoning_content"):
                text = message.get(field, "").rstrip()
                fault = _open_fence(text) or _open_json(text) or _open_sentence(text)
                if fault and not (field == "content" and "tool_calls" in message):
                    return Rejection("truncated", f"messages[{index}].{field}: {fault}; it ends {text[-60:]!r}")
    return None


def _open_fence(text: str) -> str:
    """A code block with a language that is opened and never closed, with code in it."""
    if "```" not in text and "~~~" not in text:
        return ""
    opened: re.Match[str] | None = None
    for fence in FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence[1].startswith(opened[1]) and not fence[2]:
            opened = None
    if opened is None or not opened[2] or opened[2] in ("markdown", "md"):
        return ""
    rest = text[opened.end() :]
    return f"{opened[0].strip()} is never closed" if rest.strip() and opened[1] not in rest else ""


def _open_json(text: str) -> str:
    """An answer that begins as a JSON object or list and ends inside it."""
    if not re.match(r'\s*(?:\{\s*"|\[\s*[{"])', text) or text.endswith(("}", "]")):
        return ""
    try:
        strictjson.parse(text)
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            return "JSON is never closed" if error.msg.startswith("Unterminated") or error.pos >= len(text) else ""
    return ""


def _open_sentence(text: str) -> str:
    """A long line whose last word cannot end a sentence."""
    if len(text) < LONG_TEXT or not (found := OPEN_ENDED.search(text[-12:])):
        return ""
    last_line = text[text.rfind("\n", 0, len(text) - len(found[0])) + 1 :]
    return "the last sentence breaks off" if len(last_line) >= LONG_LINE else ""


def check_placeholder_answer(conversation: Conversation) -> Rejection | None:
    """The whole answer is a placeholder, and the user did not write it."""
    for index, said in _answers(conversation):
        if len(said) < 120 and PLACEHOLDER.fullmatch(said):
            asked = _asked(conversation, index)
            if said.strip().lower() not in asked.lower() and not PLACEHOLDER_ASKED.search(asked):
                return Rejection("placeholder-answer", f"messages[{index}]: {said!r}")
    return None


def check_speaks_for_user(conversation: Conversation) -> Rejection | None:
    """After its own text the assistant writes the user's next turn, and nobody asked for a dialogue."""
    for index, said in _answers(conversation):
        if "User:" not in said and "Human:" not in said:
            continue
        plain = CODE.sub("", said)
        found = USER_TURN.search(plain)
        if not found or not plain[: found.start()].strip():
            continue
        before, after = plain[: found.start()], plain[found.end() :].strip()
        goes_on = ASSISTANT_TURN.search(after)
        asks = before.endswith("\n\n") and after.endswith("?") and "\n" not in after
        if (goes_on or asks) and not DIALOGUE.search(_asked(conversation, index)):
            return Rejection("speaks-for-user", f"messages[{index}]: {_short(plain[found.start() :])}")
    return None


def check_wrong_language(conversation: Conversation) -> Rejection | None:
    """Asked in one script, answered in another, where no language is named and nothing is to be translated."""
    for index, said in _answers(conversation):
        question = next((m["content"] for m in reversed(conversation.messages[:index]) if m["role"] == "user"), "")
        if said.isascii() and question.isascii():
            continue
        asked, answered = _script(question), _script(said)
        if not asked or not answered or asked == answered or LANGUAGE_NAMED.search(_asked(conversation, index)):
            continue
        if asked == "LATIN" and len(ENGLISH.findall(question)) < 4:  # Hindi or Russian in Latin letters
            continue
        if asked != "LATIN" and re.search(r"[A-Za-z]{3}", question):  # "Summarize:" before a foreign text
            continue
        evidence = f"messages[{index}]: asked in {asked}, answered in {answered}: {_short(said)}"
        return Rejection("wrong-language", evidence)
    return None


CHECKS: tuple[Callable[[Conversation], Rejection | None], ...] = (
    check_repeated_call,
    check_ignored_error,
    check_claimed_action,
    check_announced_action,
    check_invented_id,
    check_denied_tools,
    check_answer_against_reasoning,
    check_truncated,
    check_placeholder_answer,
    check_speaks_for_user,
    check_wrong_language,
)


def check_consistency(conversation: Conversation) -> Rejection | None:
    """Return the first inconsistency of a conversation, or None."""
    for check in CHECKS:
        if rejection := check(conversation):
            return rejection
    return None


# --- What the rules look at --------------------------------------------------------------------------------


def _answers(conversation: Conversation) -> Iterator[tuple[int, str]]:
    """Yield index and text of the assistant turns that end in words, not in calls."""
    for index, message in enumerate(conversation.messages):
        if message["role"] == "assistant" and "tool_calls" not in message:
            yield index, _plain(message["content"])


def _plain(text: str) -> str:
    """A text with straight apostrophes, so that the rules need to know one kind."""
    return text.replace("\u2019", "'")


def _asked(conversation: Conversation, index: int) -> str:
    """All that users and systems wrote before a message."""
    return "\n".join(m["content"] for m in conversation.messages[:index] if m["role"] in ("user", "system"))


def _steps(messages: list[Message]) -> Iterator[tuple[int | None, list[Any], list[str]]]:
    """Yield index, calls and results of every assistant turn that calls; None where somebody speaks."""
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
    """The results in the order of their calls: by id where all have one."""
    by_id = {result.get("tool_call_id"): result["content"] for result in results}
    ids = [call.get("id") for call in calls]
    if None not in ids and set(ids) == set(by_id) and len(by_id) == len(results):
        return [by_id[one] for one in ids]
    return [result["content"] for result in results]


def _call(call: dict[str, Any]) -> str:
    function = call["function"]
    return f"{function['name']}({json.dumps(function['arguments'], sort_keys=True, ensure_ascii=False)})"


def _words(name: str) -> list[str]:
    """The words of a tool's name, small: get_orderStatus -> get, order, status; a module before a dot is left out."""
    return [word.lower() for word in WORD.findall(name.rpartition(".")[2])]


def _is_error(result: str) -> bool:
    """Whether a tool's result says of itself that it failed."""
    if ERROR_TEXT.match(result):
        return True
    if not result.lstrip().startswith("{"):
        return False
    try:
        value = strictjson.parse(result)
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
    """Yield the strings and whole numbers in arguments, each with the name next above it."""
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


def _is_hinted(value: str, before: str) -> bool:
    """Whether a text holds a value, or enough to put it together: a name for an address, digits for a number."""
    value = value.lower()
    if value in before or re.sub(r"[\W_]", "", value) in re.sub(r"[\W_]", "", before):
        return True
    if UUID.fullmatch(value):
        return False
    if "@" in value:
        parts = re.findall(r"[^\W\d_]{3,}", value.partition("@")[0])
        return not parts or any(part in before for part in parts)
    numbers = {digits.lstrip("0") for digits in re.findall(r"\d+", before)}
    return any(digits.lstrip("0") in numbers for digits in re.findall(r"\d+", value))


def _seen(message: Message) -> str:
    """What a message tells: not its reasoning, where things are made up."""
    return "\n".join([message["content"], *(_call(call) for call in message.get("tool_calls", []))])


def _script(text: str) -> str:
    """The script in which nearly all letters are, or nothing. Chinese and Japanese count as one."""
    if not text.isascii() or "`" in text or "$" in text:
        text = CODE.sub("", text)
    if text.isascii():
        return "LATIN" if sum(map(str.isalpha, text)) >= MIN_LETTERS else ""
    counts = Counter(_script_of(letter) for letter in text if letter.isalpha())
    if not counts:
        return ""
    script, count = counts.most_common(1)[0]
    least = MIN_LETTERS // 3 if script in ("CJK", "HANGUL") else MIN_LETTERS
    return script if count >= least and count >= SAME_SCRIPT * counts.total() else ""


def _script_of(letter: str) -> str:
    if letter.isascii():
        return "LATIN"
    script = unicodedata.name(letter, "").partition(" ")[0]
    return "CJK" if script in ("HIRAGANA", "KATAKANA") else script if script in SCRIPTS else "OTHER"


def _short(text: str) -> str:
    return repr(text if len(text) <= EVIDENCE_CHARS else text[: EVIDENCE_CHARS - 3] + "...")
