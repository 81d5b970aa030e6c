"""Modules that Ray's own parts share; the helpers for tests among them are used by others, too."""
