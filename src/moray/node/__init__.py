"""The node daemon: one per machine, single-threaded, owner of its workers, resources and objects.

====================  ================================================================================
``main``              the process: start, loop, end
``node``              the assembly of the parts, and what each event means for which part
``server``            accepting: who may connect, without waiting for anybody
``clients``           drivers and workers, as far as they are connected
``jobs``              the drivers' jobs and their ends
``leases``            carries out what :class:`~moray.core.local_scheduler.LocalScheduler` decides
``workers``           worker processes from their start to their end
``templates``         the node's end of the fork servers
``channel``           a socket between node and template
``template``          the fork servers themselves: processes of their own
``worker_process``    what a worker does between its fork and its first line of runtime
``template_messages`` what node and templates say to each other
``deaths``            why a process ended, in a line
``orphans``           descendants that lost their parents
``signals``           SIGCHLD and SIGTERM as events of the loop
``session``           the end of the session: nothing is left
``cluster_state``     the answer to "how are you"
``logs``              the node's log, and the paths and tails of the workers'
``settings``          the numbers that a user may change
====================  ================================================================================

The node never unpickles and never imports what belongs to users.
"""
