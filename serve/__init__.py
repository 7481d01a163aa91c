"""The endpoint: embeddings of texts and pictures from a run's safe encoder, on Ray Serve."""
