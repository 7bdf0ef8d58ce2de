"""Held-out loss and answers of models, graded."""
