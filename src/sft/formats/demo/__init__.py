"""Formats of the demo blend: each reads the files of one published package."""
