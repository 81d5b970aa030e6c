"""Graphs of calls, written down before they run.

``.bind()`` on remote functions, actor classes and methods of actors makes nodes (:mod:`moray.dag.nodes`), which
``execute()`` submits as ordinary tasks and calls. A pipeline of actors' methods can be compiled
(:mod:`moray.dag.compiled`): then each actor runs a loop (:mod:`moray.dag.loop`) over its part of the graph
(:mod:`moray.dag.plan`), and values travel through channels (:mod:`moray.runtime.channels`).
"""

from __future__ import annotations

from moray.dag.collective import CollectiveOutputNode
from moray.dag.compiled import CompiledDAG, CompiledDAGFuture, CompiledDAGRef
from moray.dag.context import DAGContext
from moray.dag.nodes import (
    ClassMethodNode,
    ClassNode,
    DAGInputData,
    DAGNode,
    FunctionNode,
    InputAttributeNode,
    InputNode,
    MultiOutputNode,
)
from moray.dag.pictures import plot

#: Names under which programs for Ray look into `DAGNode.get_other_args_to_resolve()`.
PARENT_CLASS_NODE_KEY = "parent_class_node"
PREV_CLASS_METHOD_CALL_KEY = "prev_class_method_call"
BIND_INDEX_KEY = "bind_index"
IS_CLASS_METHOD_OUTPUT_KEY = "is_class_method_output"
COLLECTIVE_OPERATION_KEY = "collective_operation"
DAGNODE_TYPE_KEY = "__dag_node_type__"

__all__ = [
    "BIND_INDEX_KEY", "COLLECTIVE_OPERATION_KEY", "DAGNODE_TYPE_KEY", "IS_CLASS_METHOD_OUTPUT_KEY",
    "PARENT_CLASS_NODE_KEY", "PREV_CLASS_METHOD_CALL_KEY", "ClassMethodNode", "ClassNode",
    "CollectiveOutputNode", "CompiledDAG",
    "CompiledDAGFuture", "CompiledDAGRef", "DAGContext", "DAGInputData", "DAGNode", "FunctionNode",
    "InputAttributeNode", "InputNode", "MultiOutputNode", "plot",
]  # fmt: skip
