"""Generative adversarial networks: one paper a file."""
