"""Names that tests of programs for Ray import for clusters and graphs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

from moray.compat.stand_ins._common import network_utils, utils


def test_modules_are_found_and_hold_what_is_imported_from_them() -> None:
    code = """
import moray.compat
moray.compat.install()
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray._private.resource_spec import NODE_ID_PREFIX
from ray.cluster_utils import Cluster, cluster_not_supported
from ray.dag.class_node import ClassMethodNode, ClassNode
from ray.dag.collective_node import CollectiveOutputNode
from ray.dag.compiled_dag_node import CompiledDAG
from ray.dag.constants import BIND_INDEX_KEY, PREV_CLASS_METHOD_CALL_KEY
from ray.dag.dag_node import DAGNode
from ray.dag.function_node import FunctionNode
from ray.dag.input_node import InputAttributeNode, InputNode
from ray.dag.output_node import MultiOutputNode
from ray.dag.vis_utils import plot
from ray.exceptions import ObjectReconstructionFailedMaxAttemptsExceededError, RayCgraphCapacityExceeded
from ray.experimental.channel.torch_tensor_type import TorchTensorType
from ray.experimental.compiled_dag_ref import CompiledDAGFuture, CompiledDAGRef
from ray.experimental.util.types import ReduceOp
from ray.internal import free
from ray.scripts.scripts import cli, start, status, stop
from ray.util.client.ray_client_helpers import connect_to_client_or_not
import ray
assert ray.dag.InputNode is InputNode and not cluster_not_supported
with InputNode() as x:
    assert x[0].with_type_hint(TorchTensorType()) is not None
with connect_to_client_or_not(True):
    print(HEAD_NODE_RESOURCE_NAME.startswith(NODE_ID_PREFIX))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_addresses() -> None:
    assert network_utils.build_address("10.0.0.1", 80) == "10.0.0.1:80"
    assert network_utils.parse_address(network_utils.build_address("::1", 80)) == ("::1", "80")
    assert network_utils.parse_address("10.0.0.1:80") == ("10.0.0.1", "80")
    assert network_utils.parse_address("host") is None
    assert network_utils.parse_address("::1") is None
    assert 0 < network_utils.find_free_port() < 1 << 16


def test_an_event_loop_for_each_thread() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    def make() -> None:
        loop = utils.get_or_create_event_loop()
        loops.append(loop)
        assert utils.get_or_create_event_loop() is loop
        assert loop.run_until_complete(asyncio.sleep(0, 7)) == 7
        loop.close()
        again = utils.get_or_create_event_loop()
        assert again is not loop
        again.close()

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert len(loops) == 1


def test_an_actor_of_a_removed_group_died() -> None:
    code = """
import moray.compat
moray.compat.install()
import ray
ray.init(num_cpus=1)

@ray.remote(num_cpus=1)
class Member:
    def ping(self):
        return 1

group = ray.util.placement_group([{"CPU": 1}])
member = Member.options(placement_group=group).remote()
ray.get(member.ping.remote())
ray.util.remove_placement_group(group)
try:
    while True:
        ray.get(member.ping.remote(), timeout=20)
except ray.exceptions.RayActorError as error:
    print(isinstance(error, ray.exceptions.ActorDiedError), "actor died" in str(error), "was removed" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "True True True\n", done.stderr
