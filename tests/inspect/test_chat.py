"""chat: what is typed reaches the dialogue as it is, and is checked before anything is loaded."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_make_hands_over_a_prompt_as_it_is_typed(tmp_path):
    shell, prompt = tmp_path / "shell", '--it costs $5,\nisn\'t "it"?'
    shell.write_text('#!/bin/sh\n[ -z "${CHAT_PROMPT+x}" ] || printf "%s|%s" "$4" "$CHAT_PROMPT"\n')
    shell.chmod(0o755)
    command = ["make", "-s", "chat", f"PROMPT={prompt}", f"SHELL={shell}"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert '--prompt="$CHAT_PROMPT"' in shown
    assert shown.endswith(f"|{prompt}")


def test_a_folder_without_a_model_is_refused_before_torch_is_loaded(tmp_path):
    absent = "import runpy, sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
    code = absent + "sys.argv[1:] = ['--model', 'nope']; runpy.run_module('sft.inspect.chat', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: nope: expected a Hugging Face folder")
    assert done.stderr.count("\n") == 1
