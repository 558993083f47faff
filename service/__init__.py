"""genserve: serves trained generative models over REST and gRPC."""
