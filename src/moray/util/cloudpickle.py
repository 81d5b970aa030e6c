"""The cloudpickle that moray itself uses: pickles of lambdas, closures and what ``__main__`` defines.

>>> from moray.util import cloudpickle
>>> cloudpickle.loads(cloudpickle.dumps(lambda x: x + 1))(1)
2
"""

from __future__ import annotations

import pickle

from cloudpickle import (
    DEFAULT_PROTOCOL,
    CloudPickler,
    Pickler,
    dump,
    dumps,
    load,
    loads,
    register_pickle_by_value,
    unregister_pickle_by_value,
)

PicklingError = pickle.PicklingError

__all__ = [
    "DEFAULT_PROTOCOL", "CloudPickler", "Pickler", "PicklingError", "dump", "dumps", "load", "loads",
    "register_pickle_by_value", "unregister_pickle_by_value",
]  # fmt: skip
