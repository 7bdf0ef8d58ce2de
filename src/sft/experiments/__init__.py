"""Experiments: profiles and sweeps."""
