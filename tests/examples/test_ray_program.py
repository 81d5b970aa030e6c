"""The program for Ray of the tour runs unchanged, in sessions of its own."""

from __future__ import annotations

from examples.demo import as_ray


def test_program_for_ray_runs_unchanged() -> None:
    assert as_ray.FOUND in as_ray.AsRayShow().run()
