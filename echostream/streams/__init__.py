"""Sentences inside a stream: where they end, and what waits to be played."""
