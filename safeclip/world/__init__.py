"""The embedded world: small real models and harmless pictures that run on a laptop."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
