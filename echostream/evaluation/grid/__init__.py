"""Systems by chunk sizes by test sets: what a grid is, and running it."""
