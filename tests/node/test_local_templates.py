"""What templates of a session on one machine do not load: it is for clusters."""

from __future__ import annotations

from tests.support.procs import run_driver

PROGRAM = """
import time
import moray

@moray.remote(max_calls=1)
def loaded():
    import sys
    names = ("moray.runtime.remote", "moray.security.contexts", "moray.protocol.tls")
    return [name for name in names if name in sys.modules]

moray.init(num_cpus=1)
print(moray.get(loaded.remote()))
time.sleep(1)  # Its template has been idle meanwhile, and loads what only some workers use.
print(moray.get(loaded.remote()))
"""


def test_workers_of_one_machine_have_no_tls() -> None:
    assert run_driver(PROGRAM).stdout == "[]\n[]\n"
