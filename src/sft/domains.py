"""The fourteen data domains of the Nemotron 3 Nano recipe, in the order of the recipe and of our reports.

The domain of a source is `fetch.sources.<name>.domain`: one of these, or your own.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """A kind of data in the blend."""

    slug: str
    """Its name in params.yaml and in report files."""
    name: str
    """Its name on pages."""
    description: str
    """One line."""


DOMAINS = tuple(
    Domain(*line)
    for line in (
        ("competition-math", "Competition math", "Olympiad and contest problems, with and without Python as a tool"),
        ("competition-code", "Competition code", "Contest problems solved in C++ and Python, also made harder"),
        ("infinibyte", "InfinityByte", "New code problems crossed from several fields, as hard as can just be solved"),
        ("stem-reasoning", "STEM reasoning (RQA)", "Questions from science courses that take several steps to answer"),
        ("tool-use", "Conversational tool use", "Talks in which an assistant calls tools, with simulated results"),
        ("long-context", "Long context", "Questions over 128k tokens on average, 256k at most"),
        ("formal-proofs", "Formal proofs", "Theorems stated and proven in Lean 4"),
        ("multilingual", "Multilingual", "French, Spanish, Italian, German, Japanese, and translation between them"),
        ("terminal-use", "Terminal use", "Tasks done by commands in a terminal"),
        ("chat", "General chat", "Open conversations of one and several turns"),
        ("instruction-following", "Instruction following", "Instructions and formats that a program can verify"),
        ("safety", "Safety", "Harmful requests refused, harmless ones not"),
        ("software-engineering", "Software engineering", "Issues of real repositories resolved step by step"),
        ("science", "Science", "Physics, chemistry and biology, as questions with choices and without"),
    )
)
BY_SLUG = {domain.slug: domain for domain in DOMAINS}


def domain_of(slug: str) -> Domain:
    """Return the domain of the recipe with this slug, or else one of your own.

    >>> domain_of("chat").name, domain_of("my-shop").name
    ('General chat', 'my-shop')
    """
    return BY_SLUG.get(slug, Domain(slug, slug, "a domain of this project"))


def suggest(slug: str) -> str:
    """Return a question that names the domain probably meant by a slug; empty if it is known, or similar to none.

    >>> suggest("competiton-math")
    "Did you mean 'competition-math'?"
    >>> suggest("my-shop"), suggest("chat")
    ('', '')
    """
    near = difflib.get_close_matches(slug.lower(), BY_SLUG, n=1, cutoff=0.8)
    return f"Did you mean {near[0]!r}?" if near and slug not in BY_SLUG else ""


def in_order(slugs: Iterable[str]) -> list[str]:
    """Return slugs in the order of reports: that of the recipe, then your own by name."""
    order = {slug: rank for rank, slug in enumerate(BY_SLUG)}
    return sorted(slugs, key=lambda slug: (order.get(slug, len(order)), slug))
