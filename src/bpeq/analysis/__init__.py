"""Measurements of learning rules: fidelity, bias order, equilibria, costs, contracts, locality."""
