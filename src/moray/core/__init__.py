"""Pure decisions: state machines that are given events and return what their shells must do.

Nothing here knows of sockets, threads, clocks, randomness or the environment; `now` and random
numbers are arguments. One part per file (or file family): ``references``, ``leases``,
``local_scheduler``, ``arena``.
"""
