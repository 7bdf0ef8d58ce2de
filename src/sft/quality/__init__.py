"""What a conversation must not be: one module for each filter, and the judge."""
