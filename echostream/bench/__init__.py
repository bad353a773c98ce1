"""What a chunk costs: stages over a stream, against the bare arithmetic, and between systems."""
