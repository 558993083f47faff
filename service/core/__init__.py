"""What serving a generative model means, without any protocol or runtime."""
