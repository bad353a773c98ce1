"""SimulEval agents, importable as ``echostream.agents``."""
