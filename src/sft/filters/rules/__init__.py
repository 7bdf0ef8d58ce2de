"""Consistency rules: actions against goals, tools and results."""
