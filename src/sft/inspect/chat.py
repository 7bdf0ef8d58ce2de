"""chat: talk to a trained model in the terminal.

    make chat                                 a dialogue; Ctrl-D ends it
    make chat PROMPT='What is 7 + 5?'         one answer
    make chat TOOLS=tools.json                with tools: after a call you type its result

models/final (or another Hugging Face folder)  ->  answers on stdout as they are generated: greedy, with transformers
and the chat template of the folder
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, TextStreamer

from sft.cli import InputError, make_parser, run_or_exit
from sft.evaluation.generate import load_model
from sft.inspect.terminal import Screen, visible

FINAL = Path("models/final")
MAX_NEW_TOKENS = 1_024
TOOL_CALL = "<tool_call>"
Message = dict[str, str]


class Stream(TextStreamer):  # type: ignore[misc]
    """Passes text on as soon as its words are whole, without the prompt and the token that ends the answer."""

    def __init__(self, tokenizer: Any, stop_ids: list[int], write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True)
        self._write, self._ends = write, [tokenizer.decode([token]) for token in stop_ids]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take the next piece."""
        for end in self._ends if stream_end else ():
            text = text.removesuffix(end)
        self._write(text)


def answer(
    model: Any,
    tokenizer: Any,
    messages: list[Message],
    tools: list[Any] | None,
    write: Callable[[str], None],
    **how: Any,
) -> str:
    """Return the model's answer to messages, without the token that ends it; `write` gets it piece by piece.

    Args:
        how: thinking (whether the template opens reasoning), max_new_tokens.
    """
    ids = tokenizer.apply_chat_template(
        messages,
        tools=tools,
        add_generation_prompt=True,
        enable_thinking=how["thinking"],
        return_tensors="pt",
        return_dict=False,
    ).to(model.device)
    stops = model.generation_config.eos_token_id
    stop_ids = stops if isinstance(stops, list) else [tokenizer.eos_token_id if stops is None else stops]
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=how["max_new_tokens"],
        eos_token_id=stop_ids,
        pad_token_id=stop_ids[0],
    )
    stream = Stream(tokenizer, stop_ids, write)
    output = model.generate(ids, attention_mask=ids.new_ones(ids.shape), generation_config=config, streamer=stream)
    new = output[0, ids.shape[1] :].tolist()
    return str(tokenizer.decode(new[:-1] if new[-1] in stop_ids else new))


def read_tools(path: Path) -> list[Any]:
    """Return the tools in a JSON file: a list, as in a request to an OpenAI-compatible endpoint. Raises InputError."""
    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"TOOLS={path}: no JSON: {error}") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(f"TOOLS={path}: expected a list of objects, such as the tools of an OpenAI request")
    return tools


def questions(prompt: str | None, screen: Screen, asks_for_result: Callable[[], bool]) -> Iterator[Message]:
    """Yield the prompt alone, or what is typed: a question, or the result of a tool that was called."""
    if prompt is not None:
        yield {"role": "user", "content": prompt}
        return
    while True:
        role = "tool" if asks_for_result() else "user"
        screen.print(f"{role}> ", style="bold cyan", end="")
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            screen.print()
            return
        if line.strip():
            yield {"role": role, "content": line.rstrip("\n")}


def main(folder: Path, prompt: str | None, tools_file: Path | None, *, thinking: bool, max_new_tokens: int) -> None:
    """Answer one prompt, or what is typed."""
    tools = read_tools(tools_file) if tools_file else None
    model, screen = load_model(folder), Screen()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    messages: list[Message] = []

    def write(text: str) -> None:
        screen.out("\n".join(map(visible, text.split("\n"))), end="", highlight=False)
        sys.stdout.flush()

    def called() -> bool:
        return bool(messages) and TOOL_CALL in messages[-1]["content"]

    for message in questions(prompt, screen, called):
        messages.append(message)
        text = answer(model, tokenizer, messages, tools, write, thinking=thinking, max_new_tokens=max_new_tokens)
        messages.append({"role": "assistant", "content": text})
        screen.print()


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--model", type=Path, default=FINAL, metavar="FOLDER", help=f"default: {FINAL}")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and end")
    parser.add_argument("--tools", type=Path, metavar="FILE", help="JSON: a list of tools")
    parser.add_argument("--thinking", action="store_true", help="let the model reason first")
    parser.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS, metavar="N", help="longest answer")
    given = parser.parse_args()
    run_or_exit(
        lambda: main(
            given.model, given.prompt, given.tools, thinking=given.thinking, max_new_tokens=given.max_new_tokens
        )
    )
