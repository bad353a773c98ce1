"""Training that starts from a released recogniser: a streaming translator out of Whisper."""
