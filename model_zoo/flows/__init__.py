"""Normalising flows: one paper a file."""
