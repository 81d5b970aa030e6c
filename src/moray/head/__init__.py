"""The head of a cluster: the one table of nodes, jobs, actors, groups, small values and events.

A process of its own beside the first node, which starts it and starts it again (:mod:`moray.node.head_process`). It is
never on the path of a task, and never unpickles. :mod:`~moray.head.head` says how the parts work together.
"""
