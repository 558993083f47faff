"""Autoencoders with a prior to sample from: one paper a file."""
