"""What ``import ray`` finds in Python processes that a program under ``moray run --as-ray`` starts.

Their PYTHONPATH has this directory, with nothing else in it. An interpreter that has no moray gets the ray that it has.
"""

import sys

# For install(), a module with a file is the real Ray; and who finds the next one must not find this again.
del sys.modules["ray"]
try:
    from moray.compat import install
except ModuleNotFoundError:
    _here = __file__.rpartition("/")[0]
    sys.path[:] = [path for path in sys.path if path != _here]
else:
    install()

# The import that is under way gives what sys.modules has at its end.
import ray  # noqa: F401, E402
