"""The Open Inference Protocol: graphs as its models, named tensors in and out."""
