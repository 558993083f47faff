"""Energy models: unnormalised densities, sampled by Markov chains."""
