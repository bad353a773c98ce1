"""Live translation: a server for many speakers at once, its page, and the microphone commands."""
