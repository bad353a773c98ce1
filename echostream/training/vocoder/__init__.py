"""Training of the CodeHiFiGAN vocoder from speech and its units."""
