"""Starting nodes and finding running ones.

=====================  ==================================================================
``config``             what a node is told when it starts
``session_directory``  the directory of a session: names, the lock that says "alive", removal
``resources``          what this machine offers when the user does not say
``local``              starting the node of a local ``init()``
=====================  ==================================================================
"""
