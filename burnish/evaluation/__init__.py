"""Paired evaluations, held-out measures, and the guard against over-optimisation."""
