"""Modules of Ray that programs in the wild import and that moray has no module of its own for.

The tree is Ray's: ``ray._private.worker`` is found in ``_private/worker.py`` here. Each holds the few names that are
commonly touched, by what they are documented or seen to give.
"""
