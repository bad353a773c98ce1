"""What is never needed to run a model: corpora, data preparation, units, vocoder training."""
