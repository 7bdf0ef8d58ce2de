"""From samples to packs: splits, blend, bins, and an external sort that moves the tokens."""
