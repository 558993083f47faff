"""Generative models in PyTorch: families, recipes, training and trained weights."""
