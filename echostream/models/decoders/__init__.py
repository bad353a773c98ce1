"""Everything behind the encoder: CTC heads, text decoder, unit decoder, vocoder and policy."""
