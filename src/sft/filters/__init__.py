"""Quality filters: which conversations are rejected, why, and the evidence."""
