"""The tour: three real jobs, each run serially and with moray by the same functions, and then what else moray does.

===========  ==========================================================================
photos       a chain of tasks per photograph; images pass between tasks as references
pi           many equal, independent tasks
words        map-reduce; the counts are added up in a tree, whose inner nodes are tasks
ranking      an actor that many tasks report to
parameters   a parameter server: actors that train together
streams      a generator whose items are used while it runs
race         cancel: the first to find something ends the others
why          explain: a wait through several processes, and a deadlock
as_ray       a program for Ray, unchanged
===========  ==========================================================================

A *job* (``job``) is plain functions that know nothing of moray, a serial loop over them, and the same loop with
``.remote()``. A *show* (``show``) does one thing and checks what came out. ``report`` draws it all.
"""
