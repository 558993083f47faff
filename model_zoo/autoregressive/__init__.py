"""Autoregressive models, one value after another: one paper a file."""
