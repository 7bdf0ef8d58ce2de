"""Samples to packs: splits, blend, bins, and the way of the tokens through bounded memory."""
