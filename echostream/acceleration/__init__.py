"""Quicker ways to compute what the models say. Each can be deleted; without it everything computes
as ever."""
