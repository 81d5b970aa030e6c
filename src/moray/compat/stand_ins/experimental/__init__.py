"""Modules of ``ray.experimental`` that moray has elsewhere."""
