"""The corpus echo-mini: bilingual grammar, synthetic speech and training data layout."""
