"""Entry points: each reads the config, connects to Ray, calls `safeclip` and prints what was written."""
