"""Everyday Spanish: real recordings to evaluate on, and the corpus ``everyday``."""
