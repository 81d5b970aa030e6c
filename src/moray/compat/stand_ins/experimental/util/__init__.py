"""``ray.experimental.util``."""
