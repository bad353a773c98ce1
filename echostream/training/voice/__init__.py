"""Training of a voice: what was spoken with its alignment, to units, pitch and prosody."""
