"""Workloads: each measures one thing on one system, in a process of its own.

``python -m benchmarks.workloads --system moray tasks_async`` prints one JSON line of figures, each a list of
repeated measurements. A workload checks the results of what it times and raises if they are wrong.

Remote functions are closures made inside the workload, so that they travel by value and a worker imports
nothing of this package: memory and start-up are those of the system, not of the benchmark. The same
code runs on moray and on Ray; only `pools` and `bare` are written for one system.
"""
