"""An English voice: written text to phonemes, to phone units, to waveform."""
