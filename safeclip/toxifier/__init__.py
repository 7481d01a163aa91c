"""Trains the LLM that rewrites captions: supervised on pairs, then aligned with preferences by DPO."""
