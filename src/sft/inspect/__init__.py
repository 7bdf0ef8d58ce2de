"""Packs, samples and rejected rows on the terminal."""
