"""Modules of ``ray.util.joblib`` that moray has elsewhere."""
