"""Contamination of one conversation, as the pipeline finds it in a batch."""

from sft.conversation import Conversation, Rejection
from sft.filters.contamination import BenchmarkItems, reject_contaminated
from sft.filters.dedup.words import hash_words


def check_contamination(conversation: Conversation, items: BenchmarkItems, ratio: float) -> Rejection | None:
    """Return the rejection of a conversation, or None."""
    parts = list(conversation.parts())
    matches = items.matches(hash_words([text for _, text in parts]))
    return reject_contaminated(conversation, parts, matches, items, ratio) if matches else None
