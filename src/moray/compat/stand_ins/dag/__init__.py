"""Modules of ``ray.dag`` that are one in moray: :mod:`moray.dag.nodes`, :mod:`moray.dag.compiled`."""
