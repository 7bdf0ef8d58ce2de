"""How published data sets spell the same idea: one table per idea, read by sft.formats.messages and columns.

What no table names is not read, and counted (sft.formats.not_read). To read another spelling, add it here. Keys in
camelCase, with capitals or with hyphens need no line of their own: `snake_case` makes them one.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[-. ]")


@functools.lru_cache(maxsize=4096)
def snake_case(name: str) -> str:
    """Return a key with small letters and underscores.

    >>> snake_case("trainOnTurn"), snake_case("Loss-Mask"), snake_case("loss_mask")
    ('train_on_turn', 'loss_mask', 'loss_mask')
    """
    return WORD_START.sub("_", name).lower()


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# --- Messages ------------------------------------------------------------------------------------------------

# Speaker in lower case -> role. `call`: the message is a tool call; `reasoning`: it is the thought of the next answer.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "function_call_output": "tool",
    "reasoning": "reasoning",
}
SPEAKER_KEYS = ("role", "from", "type")  # `type` is the kind of an item of OpenAI's Responses API


def speaker_of(message: Mapping[str, Any]) -> Any:
    """Return what a message says about who speaks; None if it says nothing."""
    for key in SPEAKER_KEYS:
        if (speaker := message.get(key)) is not None:
            return speaker
    return None


def role_of(speaker: Any) -> str | None:
    """Return the role of a speaker; None if no table names it.

    >>> role_of("Human"), role_of("function_call"), role_of("narrator"), role_of(7)
    ('user', 'call', None, None)
    """
    return ROLES.get(speaker) or ROLES.get(speaker.lower()) if type(speaker) is str else None


def unwrapped(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message that LangChain has in `kwargs` or `data`; another one as it is.

    >>> unwrapped({"id": ["langchain", "HumanMessage"], "kwargs": {"content": "a"}})
    {'role': 'Human', 'content': 'a'}
    """
    inner, name = message.get("kwargs"), message.get("id")
    if type(inner) is dict and type(name) is list and name:
        return {"role": str(name[-1]).partition("Message")[0], **inner}
    if type(inner := message.get("data")) is dict and message.keys() == {"type", "data"}:
        return {**inner, "type": message["type"]}
    return message


def has_speaker(item: Mapping[str, Any]) -> bool:
    """Return whether an object is a message with a role, or an item of the Responses API."""
    return any(role_of(item.get(key)) is not None for key in ("role", "type"))


REASONING_KEYS = (
    *("reasoning_content", "reasoning", "thinking", "thought", "reasoning_details", "thoughts", "thinking_content"),
    *("thinking_blocks", "reasoning_text", "thought_process", "chain_of_thought", "cot"),
)

# Whether a turn is trained; the value is the one that means "train it". `mask` is used for both.
TRAIN_FLAGS = {
    "train": True,
    "trainable": True,
    "training": True,
    "train_on_turn": True,
    "loss": True,
    "loss_mask": True,
    "loss_weight": True,
    "loss_scale": True,
    "weight": True,
    "sample_weight": True,
    "masked": False,
    "ignore": False,
    "ignored": False,
}
AMBIGUOUS_FLAG = "mask"
UNFIT_FLAGS = {AMBIGUOUS_FLAG, "train_detail"}  # of a part of a message; the second is axolotl's, for its spans
FLAG_TEXTS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
OTHER_FLAG_TEXTS = {"yes", "no", "on", "off"}  # say something, and reject the row
# Columns, or keys of an object beside `messages`, with a flag for each message or for each answer.
FLAG_LISTS = {
    **TRAIN_FLAGS,
    **dict.fromkeys(("train_turns", "assistant_mask", "assistant_masks", "completion_mask"), True),
}
WEIGHTS = {"weight", "loss_weight", "loss_scale", "sample_weight"}
NEVER_STATISTICS = WEIGHTS | {"loss_mask", "train_on_turn", "train_turns"}
NEVER_STATISTICS |= {"assistant_mask", "assistant_masks", "completion_mask"}
# Words of keys that no table names, and that may say what is trained (sft.formats.unread).
FLAG_WORDS = _words(
    "train trains trained training trainable untrained untrainable loss losses mask masks masked masking unmasked "
    "weight weights learn learned learnable supervise supervised supervision grad backprop finetune ignore"
)
# Words of a column that say that its row is trained, if it is true: is_train.
TRAINED_WORDS = _words("is be to in for train training trained trainable")
# Flags if they are true or false -> the value that leaves out a row or a message. LEFT_OUT_TURNS: of messages only;
# None: either value, as messages without the flag are the others.
LEFT_OUT: dict[str, bool | None] = {
    **dict.fromkeys(("skip", "exclude", "excluded"), True),
    **dict.fromkeys(("include", "included"), False),
}
LEFT_OUT_TURNS = LEFT_OUT | {"prefill": True, "context": True, "deleted": True, "target": None}
# Words beside them that change nothing, as in is_context_turn.
LITTLE_WORDS = _words("is be was to in as for only this turn message answer response completion assistant sample row")
# In columns, and in keys of messages.
THOUGHT_WORDS = _words("reasoning thinking thought thoughts cot")
REASONING_WORDS = THOUGHT_WORDS | _words("think rationale scratchpad monologue analysis")
# Whose thoughts are not those of the answer: judge_reasoning.
OTHER_THINKERS = _words(
    "judge judgment grader grade grading score scoring rating quality verdict evaluation eval evaluator "
    "reward reviewer review verifier verification moderation preference annotator label classification category "
    "difficulty user"
)
CALL_WORDS = _words("tool tools call calls function functions invocation invocations action actions observation")
COLUMN_CONTEXT_WORDS = _words("context contexts document documents docs passage passages retrieved")
CONTEXT_WORDS = COLUMN_CONTEXT_WORDS | _words("attachment attachments file files")
# More words that a column about documents ends with, beside LABEL_WORDS: retrieved_at, document_ids.
CONTEXT_LABELS = _words("ids titles at page pages section window relevance used needed description metadata")
# What a key that ends in one says about a thing is no such thing: reasoning_type, tool_name, completion_tokens.
LABEL_WORDS = _words(
    "type types kind mode modes name names label labels category categories class level levels difficulty topic topics "
    "domain domains task tasks skill skills style format language languages source sources origin model models version "
    "id index idx key hash url urls path title author license status state effort budget choice tag tags role count "
    "counts num number length lengths size sizes tokens time timestamp date duration seconds score scores rating rate "
    "grade quality confidence correctness difficulty usage stats"
)
# In the name of a column: flags for all turns; a part of the data, or of a training; places of turns.
MASK_WORDS, TURN_WORDS = _words("completion"), _words("turn turns")
SPLIT_WORDS = _words("split set data dataset used attention special step steps epoch epochs")
STOP_REASONS = {"finish_reason", "stop_reason"}
CUT_ANSWERS = {"length", "max_tokens", "max_output_tokens", "model_length", "content_filter", "safety", "incomplete"}
# Objects in a row or in a message whose keys mean what they mean beside them.
META_OBJECTS = {"metadata", "meta", "extra", "extra_info", "extras", "info", "flags", "annotations"}
META_OBJECTS |= {"additional_kwargs"}


def _names(*groups: tuple[str, ...], alone: tuple[str, ...] = ()) -> dict[str, str]:
    """Return spelling -> our name, the first of its group; `alone` are names without another spelling."""
    return {name: group[0] for group in groups for name in group} | {name: name for name in alone}


TEXT = ("content", "value", "text", "parts")
ID = ("id", "call_id", "tool_call_id", "tool_use_id", "toolCallId")
NAME = ("name", "toolName", "tool_name")
ARGUMENTS = ("arguments", "parameters", "input", "args")
FLAGS = (*TRAIN_FLAGS, AMBIGUOUS_FLAG)

# Harmony's: what an answer is for (analysis: a thought; commentary: calls, or words before them) and whom it is for.
CHANNEL, RECIPIENT = "channel", "recipient"
_SPOKEN = _names(TEXT, alone=(*SPEAKER_KEYS, *FLAGS))
# The keys of a message that are read, by role: spelling -> our name.
MESSAGE_KEYS: dict[str, dict[str, str]] = {
    "system": _SPOKEN,
    "user": _SPOKEN,
    "assistant": _SPOKEN
    | _names(alone=("refusal", "tool_calls", "function_call", *REASONING_KEYS, CHANNEL, RECIPIENT)),
    "tool": _SPOKEN | _names(("content", "output"), ("tool_call_id", "call_id", "tool_use_id")),
    "call": _SPOKEN | _names(NAME, ARGUMENTS, ID, alone=REASONING_KEYS),
    "reasoning": _SPOKEN | _names(alone=("summary", "encrypted_content", *REASONING_KEYS)),
}
# Messages with no other keys need no respelling.
PLAIN_KEYS = {
    "system": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "reasoning_content", "tool_calls"},
    "tool": {"role", "content", "tool_call_id"},
}

# --- Parts of a content --------------------------------------------------------------------------------------

# Type of a part -> what it is.
PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "text",
    "thinking": "reasoning",
    "think": "reasoning",
    "thought": "reasoning",
    "reasoning": "reasoning",
    "reasoning.text": "reasoning",
    "reasoning.summary": "reasoning",
    "reasoning_text": "reasoning",
    "summary_text": "reasoning",
    "redacted_thinking": "hidden",
    "reasoning.encrypted": "hidden",
    "tool_use": "call",
    "tool_call": "call",
    "tool_calls": "call",
    "tool-call": "call",
    "function_call": "call",
    "tool_result": "result",
    "tool-result": "result",
    "tool_call_response": "result",
    "tool_response": "result",
    "function_call_output": "result",
}
# Keys of parts that hold or name a file.
FILE_KEYS = {"source", "file_id", "file_data", "resource"}
UI_PART = re.compile(r"tool-|dynamic-tool|step-start")  # of a UIMessage of the AI SDK, with calls and their results
# Gemini's and Bedrock's parts have no type, but one of these keys -> what it is.
TYPED_BY_KEY = {
    "tool_use": "call",
    "tool_result": "result",
    "reasoning_content": "reasoning",
    "function_call": "call",
    "function_response": "result",
    "inline_data": "media",
    "file_data": "media",
    "executable_code": "media",
    "code_execution_result": "media",
}
CALL_KEYS = _names(ID, NAME, ARGUMENTS, alone=("type", "function"))
PART_KEYS = {
    "text": _names(("text", "value", "content", "refusal"), alone=("type",)),
    "reasoning": _names(
        ("text", "value", "content", "thinking", "think", "thought", "reasoning", "reasoning_text", "summary")
    )
    | {"type": "type"},
    "call": CALL_KEYS | _names(("text", "value", "tool_call", "function_call")),
    "result": _names(("content", "output", "result", "response", "value", "text"), ID, alone=("type",)),
}

# --- Calls and tools -----------------------------------------------------------------------------------------

TOOL_KEYS = _names(
    ("name", "id"),
    ("parameters", "input_schema", "parameters_json_schema"),
    alone=("type", "function", "description", "strict", "return"),
)
# Gemini's list of tools in a tool, Bedrock's name of one; what a schema is in for Bedrock and for the AI SDK.
FUNCTION_DECLARATIONS, TOOL_SPEC, IN_SCHEMA = "function_declarations", "tool_spec", ("json", "jsonSchema")
PLAIN_CALL_KEYS, PLAIN_FUNCTION_KEYS = {"id", "type", "function"}, {"name", "arguments"}
PLAIN_TOOL_KEYS = {"type", "function"}
# Some data sets describe parameters as {name: {type: a type of Python}}, without a schema around them.
PYTHON_TYPES = {
    "str": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "list": "array",
    "array": "array",
    "tuple": "array",
    "set": "array",
    "dict": "object",
    "object": "object",
}

# --- Columns of a row ----------------------------------------------------------------------------------------

CHAT_COLUMNS = ("messages", "conversations", "conversation", "dialog", "dialogue")  # their list is a conversation
SYSTEM_COLUMNS = (
    *("system", "system_prompt", "system_message", "systemInstruction", "system_instruction"),
    "system_instructions",  # OpenTelemetry's
)
TOOLS_COLUMNS = ("tools", "functions", "toolConfig")
LICENSE_COLUMNS = ("license", "licence", "licenses")
GROUP_COLUMNS = ("group", "group_id")  # of rows that belong together: they are in one split
# Names for the thought before an answer, the likeliest first; a column of "on" and "off" is none.
REASONING_COLUMNS = (
    *REASONING_KEYS,
    *("thinking_trajectories", "thinking_trajectory", "deepseek_thinking_trajectory", "deepseek_reasoning"),
    *("complex_cot", "generated_reasoning"),
)
# Names for an answer, the likeliest first.
ANSWERS = (
    *("completion", "output", "response", "attempt", "deepseek_attempt", "deepseek_solution", "generated_solution"),
    *("solution", "answer", "target", "assistant", "chosen"),
)
# Columns with what an answer chooses from: all in one, or one for each.
OPTIONS = {"choices", "options", "a", "b", "c", "d", "e", "option_a", "option_b", "option_c", "option_d"}
OPTION_KEY = re.compile(r"(?:option|choice)?[-_ ]?(?:[a-j]|\d)", re.IGNORECASE)
VERDICT = "label"  # true or false in data of KTO: whether the answer is a good one
TEMPLATE_KWARGS, THINKING_KWARGS = "chat_template_kwargs", ("enable_thinking", "thinking")
# Names of columns and keys that hold pictures, sound or film, and the placeholders in the text that stand for them.
MEDIA = re.compile(r"(image|img|picture|photo|audio|video)s?(_?(path|url|file|byte|data|base64)s?)?", re.IGNORECASE)
MEDIA_WORD = re.compile(r"image|img|picture|photo|audio|video|pixel|media|attachment", re.IGNORECASE)
ATTACHED = {"media", "attachment", "attachments"}  # of a message: what its text does not hold
PLACEHOLDER = re.compile(r"<\|?(?:image|audio|video)(?:_?pad|_?\d+|_start)?\|?>", re.IGNORECASE)
