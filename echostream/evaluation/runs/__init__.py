"""Reading and scoring runs: folders, transcripts, latency, tables."""
