"""Long talks: many sentences in one file, scored sentence by sentence and over time."""
