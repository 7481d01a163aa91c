"""The encoder: loading, adapters, the objectives, training on Ray and the exports."""
