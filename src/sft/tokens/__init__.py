"""Conversations to samples: chat template, token ids, loss mask."""
