"""Discrete speech units: features, k-means, and sequences with and without repeats."""
