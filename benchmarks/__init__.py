"""The same workloads on moray, on Ray, on the standard library's pools, and beside bare sockets.

``python -m benchmarks`` runs everything and prints medians, ranges and ratios; ``--gate`` is the short run
that CI fails on; ``--write-docs`` renders docs/benchmarks.md. What is in here, from the bottom up:

=================  ===============================================================================
``procfs``         processes of a session, and their memory, read from /proc
``floor``          what this machine can do with bare sockets, no bookkeeping
``workloads/``     one process measures one workload on one system and prints one JSON line
``catalogue``      the rows of the table: which figure of which workload, against which target
``environments``   which interpreter runs which system; makes Ray's virtualenv
``runner``         starts those processes, systems interleaved, round after round
``report``         medians, ratios and verdicts; the text table and the Markdown table
``gate``           ratios to the floor of the same run, against the recorded ones
=================  ===============================================================================
"""
