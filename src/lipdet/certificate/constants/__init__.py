"""Lipschitz constants of a detector's outputs, one by one and together, and their rounding."""
