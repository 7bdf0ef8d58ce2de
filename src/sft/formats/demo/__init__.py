"""Formats of the default blend: each reads the files of one published package."""
