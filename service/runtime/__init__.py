"""Running one graph: the session protocol and its ONNX Runtime implementation."""
