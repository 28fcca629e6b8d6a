"""Scaling laws: accounting, grids of runs, fits with intervals, and what to train next."""
