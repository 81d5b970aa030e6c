"""Programs that show what moray is for; each runs with ``python -m examples.<name>``."""
