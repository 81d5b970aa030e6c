"""The runtime that drivers and workers share: owning, submitting, calling, fetching, executing.

====================  =========================================================================
``state``             which runtime this process has
``runtime``           the assembly: reactor, identity, peers, dispatch of messages
``references``        carries out :mod:`moray.core.references` (borrowing between processes)
``values``            put, get, wait; reading and writing the store; ``space``: places granted ahead
``submission``        tasks from ``.remote()`` to their results, leases, retries
``tasks``             what the owner keeps of functions, tasks, calls and scheduling keys
``arguments``         what happens to a task's arguments before they travel
``actors``            the way to each actor: calls in order, results, restarts
``creations``         actors that this process has created; ``detached``: those that outlive it
``actor_meta``        what handles of a class share; ``actor_plans``, ``signatures``: how calls are checked and made
``streams``           a generator's items at their owner
``cancels``           cancelling: the owner's side
``explain``           what an object or an actor waits for, across processes
``worker``            a worker's main loop and the sharing of the reactor between its two threads
``executor``          a worker's side of a task; ``work``: what waits in its queues
``actor_host``        the actor that a worker is; ``loop_selector``: its event loop
``stream_producer``   a generator's items at the worker that makes them
``interrupts``        ending what a worker's main thread runs
``driver``            ``init`` and ``shutdown``; ``local_mode``: everything in this process
``output``            workers' stdout and stderr on their way to the driver; ``output_prints``, ``output_dedup``,
                      ``screen``: how it shows them; ``log_files``: rotation; ``job_logging``: LoggingConfig
``timeline``          what ran where and when, as a Chrome trace
====================  =========================================================================

Threads and what they own: see :mod:`moray.protocol.reactor`. Locks, in the order in which they may be nested:
``KeyPool.lock``, ``Callee.lock`` < ``Runtime.import_lock`` < ``Runtime.waiter_lock`` < ``Connection`` lock.
"""
