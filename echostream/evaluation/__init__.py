"""Evaluation: SimulEval compatibility, scorers, recognisers, grids, comparison tables, plots."""
