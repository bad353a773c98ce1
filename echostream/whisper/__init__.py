"""Whisper's weights as a start: its encoder as an Emformer, its decoder as the text decoder."""
