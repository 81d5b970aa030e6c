"""``ray.scripts``."""
