"""One training run: its lineage, its tracking, its report."""
