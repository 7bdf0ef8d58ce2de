"""A language model that scores what the rules keep."""
