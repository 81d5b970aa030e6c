"""The runtime that drivers and workers share: owning, submitting, fetching, executing.

===============  ==============================================================================
``state``        which runtime this process has
``runtime``      the assembly: reactor, identity, peers, dispatch of messages
``references``   carries out :mod:`moray.core.references` (borrowing between processes)
``values``       put, get, wait; reading and writing the store
``submission``   tasks from ``.remote()`` to their results, leases, retries
``tasks``        what the owner keeps of functions, tasks and scheduling keys
``arguments``    what happens to a task's arguments before they travel
``executor``     a worker's side of a task
``worker``       a worker's main loop and the sharing of the reactor between its two threads
``driver``       ``init`` and ``shutdown``
``output``       workers' stdout and stderr on their way to the driver
===============  ==============================================================================

Threads and what they own: see :mod:`moray.protocol.reactor`. Locks, in the order in which they may be
nested: ``Pool.lock`` < ``Runtime.import_lock`` < ``Runtime.waiter_lock`` < ``Connection`` lock.
"""
