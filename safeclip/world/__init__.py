"""The embedded world: small real models and harmless pictures that run on a laptop."""
