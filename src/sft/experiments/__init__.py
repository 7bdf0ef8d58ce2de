"""Profiles and sweeps."""
