"""Lineage: what made a model, how to verify it, and how to build it again."""
