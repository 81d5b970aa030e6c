"""``python -m moray.node``: see :mod:`moray.node.main`."""

from moray.node.main import main

main()
