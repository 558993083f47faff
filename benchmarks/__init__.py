"""What serving costs: the server against bare ONNX Runtime, as ratios measured in one run."""
