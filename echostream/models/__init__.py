"""Neural components."""
