"""``ray._private.ray_constants``, also ``ray.ray_constants``: the few that programs pass on, and those of tests."""

from __future__ import annotations

from typing import Final

#: `init(_redis_password=…)` is accepted and without meaning.
REDIS_DEFAULT_PASSWORD: Final = ""
RAY_ADDRESS_ENVIRONMENT_VARIABLE: Final = "RAY_ADDRESS"
RAY_NAMESPACE_ENVIRONMENT_VARIABLE: Final = "RAY_NAMESPACE"
RAY_RUNTIME_ENV_ENVIRONMENT_VARIABLE: Final = "RAY_RUNTIME_ENV"

RAY_OVERRIDE_DASHBOARD_URL: Final = "RAY_OVERRIDE_DASHBOARD_URL"

DEFAULT_PORT: Final = 6379
DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES: Final = 200 * 10**9
DEFAULT_DASHBOARD_PORT: Final = 8265
DEFAULT_DASHBOARD_AGENT_LISTEN_PORT: Final = 52365
DEFAULT_TASK_MAX_RETRIES: Final = 3
DEFAULT_ACTOR_METHOD_CPU_SIMPLE: Final = 1
DEFAULT_ACTOR_CREATION_CPU_SIMPLE: Final = 0
ID_SIZE: Final = 28
OBJECT_METADATA_TYPE_PYTHON: Final = b"PYTHON"
FUNCTION_SIZE_WARN_THRESHOLD: Final = 10**7
FUNCTION_SIZE_ERROR_THRESHOLD: Final = 10**8
WORKER_PROCESS_TYPE_IDLE_WORKER: Final = "ray::IDLE"

# --- kinds of errors that Ray pushes to drivers; `get_error_message` is asked for them -----------------

PICKLING_LARGE_OBJECT_PUSH_ERROR: Final = "pickling_large_object"
TASK_PUSH_ERROR: Final = "task"
WORKER_CRASH_PUSH_ERROR: Final = "worker_crash"
WORKER_DIED_PUSH_ERROR: Final = "worker_died"
WORKER_POOL_LARGE_ERROR: Final = "worker_pool_large"
PUT_RECONSTRUCTION_PUSH_ERROR: Final = "put_reconstruction"
RESOURCE_DEADLOCK_ERROR: Final = "resource_deadlock"
REMOVED_NODE_ERROR: Final = "node_removed"
MONITOR_DIED_ERROR: Final = "monitor_died"
LOG_MONITOR_DIED_ERROR: Final = "log_monitor_died"
DASHBOARD_AGENT_DIED_ERROR: Final = "dashboard_agent_died"
DASHBOARD_DIED_ERROR: Final = "dashboard_died"
RAYLET_DIED_ERROR: Final = "raylet_died"
DETACHED_ACTOR_ANONYMOUS_NAMESPACE_ERROR: Final = "detached_actor_anonymous_namespace"
EXCESS_QUEUEING_WARNING: Final = "excess_queueing_warning"
INFEASIBLE_TASK_ERROR: Final = "infeasible_task"

# --- resources and labels of nodes ---------------------------------------------------------------------

DEFAULT_RESOURCES: Final = frozenset({"CPU", "GPU", "memory", "object_store_memory"})
HEAD_NODE_RESOURCE_NAME: Final = "node:__internal_head__"
NODE_ID_PREFIX: Final = "node:"
RESOURCE_CONSTRAINT_PREFIX: Final = "accelerator_type:"
PLACEMENT_GROUP_BUNDLE_RESOURCE_NAME: Final = "bundle"
LABELS_ENVIRONMENT_VARIABLE: Final = "RAY_OVERRIDE_LABELS"
