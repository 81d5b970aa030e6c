"""Three real jobs, each run serially and with moray by the same functions, and compared.

=========  ==========================================================================
photos     a chain of tasks per photograph; images pass between tasks as references
pi         many equal, independent tasks
words      map-reduce; the counts are added up in a tree, whose inner nodes are tasks
=========  ==========================================================================

Each module holds plain functions (nothing in them knows moray), a serial loop over them, and the same
loop with ``.remote()``. ``job`` is what they have in common, ``report`` draws what came out.
"""
