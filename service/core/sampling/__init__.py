"""The other ways to draw: a prior before a decoder, an ancestral loop, a Markov chain."""
