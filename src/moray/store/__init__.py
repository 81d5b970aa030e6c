"""The object store of one machine: the node's side, and the side of each process that maps the arena.

==============  ==========================================================================
``server``      :class:`~moray.store.server.StoreServer`: messages in, answers and disk work out
``disk``        the thread that does what blocks, and the files on disk
``client``      :class:`~moray.store.client.StoreClient`: views for writing and reading
``bulk``        copying large values into the arena at memory speed
==============  ==========================================================================

What happens to which object is decided in :mod:`moray.core.object_table`.
"""
