"""Imported by a job's template when its driver had called :func:`moray.compat.install` before ``init()``."""

from __future__ import annotations

from moray.compat import install

install()
