"""Imported before the fork."""
