"""chat: talk to a trained model in the terminal.

    make chat                                 a dialogue; Ctrl-D ends it
    make chat PROMPT='What is 7 + 5?'         one answer
    make chat TOOLS=tools.json                with tools: after a call you type its result

models/final (or another Hugging Face folder)  ->  a dialogue with it (sft.inspect.dialogue). What is typed is checked
before torch and transformers are loaded, which takes seconds.
"""

from pathlib import Path

from sft.cli import at_least, make_parser, run_or_exit
from sft.weight_files import require_model

FINAL = Path("models/final")
MAX_NEW_TOKENS = 1_024


def main(folder: Path, prompt: str | None, tools_file: Path | None, *, thinking: bool, max_new_tokens: int) -> None:
    """Answer one prompt, or what is typed. Raises InputError: the folder holds no model."""
    require_model(folder)
    from sft.inspect import dialogue

    dialogue.main(folder, prompt, tools_file, thinking=thinking, max_new_tokens=max_new_tokens)


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--model", type=Path, default=FINAL, metavar="FOLDER", help=f"default: {FINAL}")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and end")
    parser.add_argument("--tools", type=Path, metavar="FILE", help="JSON: a list of tools")
    parser.add_argument("--thinking", action="store_true", help="let the model reason first")
    parser.add_argument(
        "--max-new-tokens", type=at_least(1), default=MAX_NEW_TOKENS, metavar="N", help="longest answer"
    )
    given = parser.parse_args()
    run_or_exit(
        lambda: main(
            given.model, given.prompt, given.tools, thinking=given.thinking, max_new_tokens=given.max_new_tokens
        )
    )
