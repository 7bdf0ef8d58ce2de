"""Before a run: estimates of memory, time and disk, and checks that refuse what would fail."""
