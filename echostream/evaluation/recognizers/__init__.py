"""Speech recognisers that listen to speech output."""
