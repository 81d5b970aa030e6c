"""Helpers of `ray.util` that have no counterpart in moray."""
