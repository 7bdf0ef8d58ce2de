"""Rules about answers: what an assistant writes, against itself and against the question.

Each rule returns a rejection with one stable reason, or None.
"""

import functools
import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator

from sft import strict_json
from sft.conversation import Conversation, Rejection
from sft.filters.encoding import quote

BOXED = re.compile(r"\\boxed\{\s*(-?\d{1,12}|[A-E])\s*\}")
FENCE = re.compile(r"^[ \t]*+(`{3,}+|~{3,}+)[ \t]*+([\w+#.-]*+)[ \t]*+$", re.MULTILINE)
JSON_START = re.compile(r'\s*(?:\{\s*"|\[\s*[{"])')
# Words that never end an English sentence.
OPEN_ENDED = re.compile(r"[ \n](?:the|a|an|and|or|because|whose|their|my|your|its|our|every|than)\Z")
LONG_LINE, LONG_TEXT = 60, 160  # characters: shorter text may be titles, verses, list items or word games
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
# The first word in the Unicode names of letters; hiragana and katakana count as CJK.
SCRIPTS = frozenset("LATIN CYRILLIC CJK HANGUL ARABIC DEVANAGARI GREEK HEBREW THAI".split())
ASCII, ASCII_LETTERS = re.compile(r"[\x00-\x7f]+"), string.ascii_letters.encode()
OTHERS = bytes(range(128, 256))  # the bytes of characters outside ASCII in UTF-8
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$[^$\n]*\$|https?://\S+", re.DOTALL)
ASKING = ("user", "system")
MIN_LETTERS = 30  # fewer letters do not show a language; in Chinese, Japanese and Korean a third of them do
SAME_SCRIPT = 0.95  # share of letters
ENGLISH = re.compile(r"\b(?:the|is|are|what|how|why|of|in|to|and|for|with|does|do|you|can|my|please|explain)\b", re.I)
LANGUAGE_NAMED = re.compile(
    r"translat|language|english|chinese|mandarin|cantonese|japanese|korean|russian|ukrainian|arabic|hindi|greek|hebrew|thai"
    r"|persian|farsi|urdu|bulgarian|serbian|kanji|hiragana|katakana|hangul|cyrillic|alphabet|script|spell|pronounc|transliterat"
    r"|poem|haiku|lyrics|翻|译|訳|語|语|英|中文|汉|漢|日文|国外|外国|海外|拼音|ローマ字|язык|перев|англ|латин|китай|япон|영어|번역|언어|로마자|韓|韩"
    r"|انجليز|إنجليز|ترجم|لغة|अंग्रे|अनुवाद|भाषा|αγγλ|μετάφρ|γλώσσ|אנגל|תרג|שפה|อังกฤษ|แปล|ภาษา",
    re.I,
)


def check_answer_against_reasoning(conversation: Conversation) -> Rejection | None:
    """Reasoning and answer each box one result, an integer or a letter of choice, and these differ."""
    for index, message in enumerate(conversation.messages):
        if "\\boxed" not in message.get("reasoning_content", "") or "\\boxed" not in message["content"]:
            continue
        if message["content"].count("\\boxed") == 1 and message["reasoning_content"].count("\\boxed") == 1:
            reasoned, answered = BOXED.search(message["reasoning_content"]), BOXED.search(message["content"])
            if reasoned and answered and reasoned[1] != answered[1] and reasoned[1].isalpha() == answered[1].isalpha():
                evidence = f"messages[{index}]: reasoning {reasoned[0]}, answer {answered[0]}"
                return Rejection("answer-against-reasoning", evidence)
    return None


def check_truncated(conversation: Conversation) -> Rejection | None:
    """An answer or its reasoning breaks off."""
    for index, message in enumerate(conversation.messages):
        if message["role"] == "assistant":
            for field in ("content", "reasoning_content"):
                text = message.get(field, "").rstrip()
                if not text or (field == "content" and "tool_calls" in message):
                    continue
                if fault := _open_fence(text) or _open_json(text) or _open_sentence(text):
                    return Rejection("truncated", f"messages[{index}].{field}: {fault}; it ends {text[-60:]!r}")
    return None


def _open_fence(text: str) -> str:
    """Return the fault of a code block with a language that has code and is never closed; empty if there is none."""
    if "````" not in text and not ("~" in text and "~~~" in text):  # one character is found ten times faster
        # All fences have three backticks: if one is never closed, it is the last, so only its line matters.
        last = text.rfind("```")
        if last < 0 or not (fence := FENCE.match(text, text.rfind("\n", 0, last) + 1)) or not fence[2]:
            return ""
    opened: re.Match[str] | None = None
    for fence in _fences(text):
        if opened is None:
            opened = fence
        elif fence[1].startswith(opened[1]) and not fence[2]:
            opened = None
    if opened is None or not opened[2] or opened[2] in ("markdown", "md"):
        return ""
    rest = text[opened.end() :]
    return f"{opened[0].strip()} is never closed" if rest.strip() and opened[1] not in rest else ""


def _fences(text: str) -> Iterator[re.Match[str]]:
    """Yield the lines that are fences. The regex, slow to search with, sees only lines with a mark."""
    starts: set[int] = set()
    for mark in ("```", "~~~"):
        at = text.find(mark)
        while at >= 0:
            starts.add(text.rfind("\n", 0, at) + 1)
            line_end = text.find("\n", at)
            at = text.find(mark, line_end) if line_end >= 0 else -1
    for start in sorted(starts):
        if fence := FENCE.match(text, start):
            yield fence


def _open_json(text: str) -> str:
    """Return the fault of a text that begins as a JSON object or list and ends inside it; empty if there is none."""
    if not JSON_START.match(text) or text.endswith(("}", "]")):
        return ""
    try:
        strict_json.parse(text)
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            return "JSON is never closed" if error.msg.startswith("Unterminated") or error.pos >= len(text) else ""
    return ""


def _open_sentence(text: str) -> str:
    """Return the fault of a long line whose last word cannot end a sentence; empty if there is none."""
    if len(text) < LONG_TEXT or not text[-1].isalpha() or not (ending := OPEN_ENDED.search(text[-12:])):
        return ""
    last_line = text[text.rfind("\n", 0, len(text) - len(ending[0])) + 1 :]
    return "the last sentence breaks off" if len(last_line) >= LONG_LINE else ""


def check_placeholder_answer(conversation: Conversation) -> Rejection | None:
    """A whole answer is a placeholder that the user did not write."""
    for index, answer in answers(conversation):
        if len(answer) < 120 and PLACEHOLDER.fullmatch(answer):
            requests = requests_before(conversation, index)
            if answer.strip().lower() not in requests.lower() and not PLACEHOLDER_ASKED.search(requests):
                return Rejection("placeholder-answer", f"messages[{index}]: {answer!r}")
    return None


def check_speaks_for_user(conversation: Conversation) -> Rejection | None:
    """After its answer the assistant writes the user's next turn, and nobody asked for a dialogue."""
    asked_at = functools.cache(lambda: first_request(conversation, DIALOGUE))
    for index, answer in answers(conversation):
        if "User:" not in answer and "Human:" not in answer:
            continue
        text = CODE.sub("", answer)
        turn = USER_TURN.search(text)
        if not turn or not text[: turn.start()].strip():
            continue
        before, after = text[: turn.start()], text[turn.end() :].strip()
        is_answered = ASSISTANT_TURN.search(after)
        is_question = before.endswith("\n\n") and after.endswith("?") and "\n" not in after
        if (is_answered or is_question) and index <= asked_at():
            return Rejection("speaks-for-user", f"messages[{index}]: {quote(text[turn.start() :])}")
    return None


def check_wrong_language(conversation: Conversation) -> Rejection | None:
    """The answer is in another script than the question, and no user or system names a language or a translation."""
    # Scripts other than Latin have no letters in ASCII: without other letters all text is Latin or has no script.
    if not any(_is_foreign(message["content"]) for message in conversation.messages):
        return None
    named_at = functools.cache(lambda: first_request(conversation, LANGUAGE_NAMED))
    for index, answer in answers(conversation):
        question = next((m["content"] for m in reversed(conversation.messages[:index]) if m["role"] == "user"), "")
        asked, answered = _script(question), _script(answer)
        if not asked or not answered or asked == answered or named_at() < index:
            continue
        if asked == "LATIN" and len(ENGLISH.findall(question)) < 4:  # Hindi or Russian in Latin letters
            continue
        if asked != "LATIN" and re.search(r"[A-Za-z]{3}", question):  # "Summarize:" before a foreign text
            continue
        evidence = f"messages[{index}]: asked in {asked}, answered in {answered}: {quote(answer)}"
        return Rejection("wrong-language", evidence)
    return None


def answers(conversation: Conversation) -> Iterator[tuple[int, str]]:
    """Yield (index, text) of the assistant turns without calls."""
    for index, message in enumerate(conversation.messages):
        if message["role"] == "assistant" and "tool_calls" not in message:
            yield index, straight_quotes(message["content"])


def straight_quotes(text: str) -> str:
    """Return a text with straight apostrophes, the only ones that the rules know."""
    return text.replace("\u2019", "'")


def requests_before(conversation: Conversation, index: int) -> str:
    """Return all that users and systems wrote before a message."""
    return "\n".join(m["content"] for m in conversation.messages[:index] if m["role"] in ASKING)


def first_request(conversation: Conversation, pattern: re.Pattern[str]) -> int:
    """Return the index of the first message of users and systems with a match; after the last message if none has."""
    requests = ((index, m["content"]) for index, m in enumerate(conversation.messages) if m["role"] in ASKING)
    return next((index for index, text in requests if pattern.search(text)), len(conversation.messages))


def _is_foreign(text: str) -> bool:
    """Return whether a text has enough letters outside ASCII for a script other than Latin."""
    return not text.isascii() and sum(map(str.isalpha, ASCII.sub("", text))) >= MIN_LETTERS // 3


def _script(text: str) -> str:
    """Return the script of nearly all letters; empty if there is none. Chinese and Japanese count as one."""
    # Each alternative of CODE begins with one of these. A link in ASCII text stays: it is Latin like the rest.
    if "`" in text or "$" in text or ("http" in text and not text.isascii()):
        text = CODE.sub("", text)
    data = text.encode("utf-8", "surrogatepass")
    latin, others = len(data) - len(data.translate(None, ASCII_LETTERS)), len(text) - len(data.translate(None, OTHERS))
    if latin >= max(MIN_LETTERS, SAME_SCRIPT * (latin + others)):  # whatever the other characters are
        return "LATIN"
    counts = Counter(LATIN=latin)
    for letter, number in Counter(ASCII.sub("", text)).items():
        if letter.isalpha():
            counts[_script_of(letter)] += number
    script, count = counts.most_common(1)[0]
    least = MIN_LETTERS // 3 if script in ("CJK", "HANGUL") else MIN_LETTERS
    return script if count >= least and count >= SAME_SCRIPT * counts.total() else ""


@functools.cache
def _script_of(letter: str) -> str:
    script = unicodedata.name(letter, "").partition(" ")[0]
    return "CJK" if script in ("HIRAGANA", "KATAKANA") else script if script in SCRIPTS else "OTHER"
