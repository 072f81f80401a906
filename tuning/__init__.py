"""Sweeps: a grid of cells, a search in each, seeds for the best points, and a report on which cells are distinguishable."""
