"""Evaluation: prompts, generated answers, held-out loss, the gate."""
