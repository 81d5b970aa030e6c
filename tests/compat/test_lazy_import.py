"""Packages that import ray by importlib.util.LazyLoader, as the standard library's manual shows."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib.util, sys
import moray, moray.compat
moray.compat.install()
def lazily(name):
    spec = importlib.util.find_spec(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
held = lazily("ray")
loaded_early = "moray.compat.facade" in sys.modules
moray.compat.install()  # A second time, before the first use: it is moray's, not too late.
assert held.ObjectRef is moray.ObjectRef
assert held.__name__ == "ray" and held.__version__ == moray.compat.RAY_VERSION
assert sys.modules["ray"] is held
moray.compat.install()
import ray, ray.util.queue
assert ray is held and ray.util.queue is sys.modules["moray.util.queue"]
assert held.exceptions is moray.exceptions
held.init(num_cpus=1)
@held.remote
def inside():
    import ray
    return ray.__version__, held.is_initialized()
print(held.get(inside.remote()), loaded_early)
held.shutdown()
"""


def test_a_lazily_imported_ray_is_moray() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "('2.60.0', True) False\n"
