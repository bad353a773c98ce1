"""StreamSpeech's own ways: its checkpoints in and out, its settings, filterbank and recomputing."""
