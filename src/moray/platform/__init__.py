"""Everything that moray asks of the operating system beyond what :mod:`os` offers; Linux only so far.

===================  =====================================================================
``process_control``  death signals, subreaping, names, pidfds, process groups, descriptors
``process_table``    children, threads, tags and memory of processes
``machine``          CPUs, memory and GPUs that this process may use
``memory_files``     anonymous shared memory
``futex``            sleeping on a word of shared memory; the fence that goes with it
===================  =====================================================================

No other package looks into ``/proc`` or ``/sys``, or calls ``prctl``: a port to another system replaces
this package and nothing else. Importing it loads nothing; each module is imported where it is used.
"""
