"""Scaling laws: grids of runs, their table, the laws that are fitted to it, and what they say to train next."""
