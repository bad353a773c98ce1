"""A system as ONNX files, and a runtime for them that needs no torch."""
