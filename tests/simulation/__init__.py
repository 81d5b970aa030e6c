"""A deterministic simulator of one machine: the real cores, a fake clock, a fake network, injected faults.

``python -m tests.simulation SEED`` runs one world: a node (:mod:`~tests.simulation.node`), some drivers and their
workers (:mod:`~tests.simulation.process`, :mod:`~tests.simulation.worker`), all in one thread. What happens when is
drawn from the seed alone, so a seed is a replay. Decisions are made by ``moray.core`` and nowhere else; the shells here
translate, as those of ``moray.runtime`` and ``moray.node`` do; the head's is the real one. The judges know nothing of
the cores' tables: the :class:`~tests.simulation.oracle.Oracle` (tasks, objects, cancels, streams) with its
:class:`~tests.simulation.calls_oracle.CallsOracle` (actors), and the :class:`~tests.simulation.lease_book.LeaseBook`.
"""
