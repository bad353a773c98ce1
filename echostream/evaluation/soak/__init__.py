"""Streams without speech and without end: what is said, what is lost, what grows."""
