"""Scaling laws: grids of runs, fits of them, and what the best learning rate does as a model grows."""
