"""Data for people: packs as they are trained, and what was refused."""
