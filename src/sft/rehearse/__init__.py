"""A rehearsal: a profile with a tiny model through the whole pipeline, on this machine's CPU or on a cluster's."""
