"""Chunks of any number of streams in, decisions of each out."""
