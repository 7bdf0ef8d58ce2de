"""Row kwargs: what a row gives its chat template (`chat_template_kwargs`), such as an effort or a budget of reasoning.

The filter stage writes them to `template_kwargs` in `meta` of the row, after it compared `enable_thinking` with the
answers (sft.formats.columns). prep gives the template those that it reads, and rejects a row with another one: the text
would not say what the row says. A value is no content: no text of it becomes a control token.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jinja2.meta
from jinja2 import nodes

from sft.conversation import Rejection, TemplateKwargs
from sft.tokens.tokenizer import FIRST_GUARD

if TYPE_CHECKING:
    from sft.tokens.render import ChatTemplate

# Variables that a row cannot set: prep does, by the conversation; or they are functions.
NOT_OF_ROWS = {
    *("messages", "tools", "documents", "add_generation_prompt", "enable_thinking", "chat_template_kwargs"),
    *("raise_exception", "strftime_now", "range", "dict", "cycler", "joiner", "namespace"),
}
# Arguments of transformers' apply_chat_template, which change nothing of a conversation that ends with an answer.
NOT_OF_TEMPLATES = {
    *("add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation", "max_length"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask"),
}
MOST_VALUES = 20  # of an argument, listed in the report


def variables_read(template: nodes.Template) -> frozenset[str]:
    """Return the variables that a template may read, and the names that it looks up in `chat_template_kwargs`."""
    names = jinja2.meta.find_undeclared_variables(template)
    for node in template.find_all((nodes.Getattr, nodes.Getitem, nodes.Call)):
        match node:
            case (
                nodes.Getattr(node=nodes.Name(name="chat_template_kwargs"), attr=str(name))
                | nodes.Getitem(node=nodes.Name(name="chat_template_kwargs"), arg=nodes.Const(value=str(name)))
                | nodes.Call(
                    node=nodes.Getattr(node=nodes.Name(name="chat_template_kwargs"), attr="get"),
                    args=[nodes.Const(value=str(name)), *_],
                )
            ) if name != "get":
                names.add(name)
    return frozenset(names)


def kwargs_of(meta: str, chat: "ChatTemplate") -> TemplateKwargs:
    """Return what a filtered row gives the template; `meta` is its JSON text.

    Left out are NOT_OF_TEMPLATES, and `thinking`, which the filter stage compared with the answers, if the template
    does not read it.
    """
    kwargs = json.loads(meta).get("template_kwargs", {}) if '"template_kwargs":' in meta else {}
    left_out = NOT_OF_TEMPLATES | {"thinking"} - chat.row_kwargs
    return {name: value for name, value in kwargs.items() if name not in left_out}


def check_kwargs(kwargs: TemplateKwargs, chat: "ChatTemplate") -> Rejection | None:
    """Return why a template cannot be given what a row gives it: it does not read one, or it may be a control token."""
    for name, value in kwargs.items():
        fault = ""
        if name not in chat.row_kwargs:
            fault = f"the template reads of a row: {', '.join(sorted({'enable_thinking', *chat.row_kwargs}))}"
        elif chat.tokenizer.shield(value, FIRST_GUARD) != value:
            fault = "it could become a control token"
        if fault:
            return Rejection("unsupported-template-kwargs", f"{name} is {value!r}: {fault}")
    return None


def by_name(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return counts of `name=value` by name and value (JSON); all but the most frequent values of a name are summed.

    >>> by_name({'reasoning_effort="high"': 3, 'reasoning_effort="low"': 1})
    {'reasoning_effort': {'"high"': 3, '"low"': 1}}
    """
    names: dict[str, dict[str, int]] = {}
    for item, rows in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        name, _, value = item.partition("=")
        values = names.setdefault(name, {})
        shown = value if len(values) < MOST_VALUES else "others"
        values[shown] = values.get(shown, 0) + rows
    return names
