"""The commands and their options; what they do is in the modules beside this one."""

from __future__ import annotations

from typing import Any

import click

from moray.cli.run import Program, RunCommand

#: Options that scripts written for `ray start` give, without meaning here: ports of what moray has no process for, and
#: a dashboard. A node has one port.
_VALUES_OF_RAY = (
    "--min-worker-port", "--max-worker-port", "--worker-port-list", "--node-manager-port", "--object-manager-port",
    "--ray-client-server-port", "--metrics-export-port", "--runtime-env-agent-port", "--gcs-server-port",
    "--dashboard-host", "--dashboard-port", "--dashboard-agent-listen-port", "--dashboard-agent-grpc-port",
    "--dashboard-grpc-port", "--include-dashboard", "--redis-password", "--redis-shard-ports", "--memory",
    "--log-style", "--log-color", "--include-log-monitor", "--redis-username", "--plasma-directory",
    "--autoscaling-config", "--plasma-store-socket-name", "--raylet-socket-name", "--tracing-startup-hook",
    "--proxy-server-url", "--cgroup-path", "--system-reserved-cpu", "--system-reserved-memory",
)  # fmt: skip
_FLAGS_OF_RAY = (
    "--disable-usage-stats",
    "--enable-usage-stats",
    "--no-monitor",
    "--no-redirect-output",
    "--ray-debugger-external",
    "--enable-resource-isolation",
    "--enable-object-reconstruction",
    "--verbose",
)

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _print_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    import platform

    from moray import __version__
    from moray.compat import RAY_VERSION

    click.echo(f"moray {__version__} (Python {platform.python_version()}; runs programs for Ray {RAY_VERSION})")
    context.exit()


@click.group(
    context_settings=_CONTEXT,
    epilog="""\b
Examples:
  moray run program.py --its-own option     run a program
  moray run --as-ray program.py             run a program that was written for Ray
  moray start --head                        begin a cluster
  moray doctor                              look whether this machine is fit for moray
  moray benchmark                           see how fast moray is here
""",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print the version."
)
def moray() -> None:
    """moray: tasks, actors and objects on one machine or many, with the programming model of Ray."""


@moray.command(
    cls=RunCommand,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="""\b
Examples:
  moray run program.py --its-own option
  moray run --as-ray -m package.module argument
  moray run --as-ray -c "import ray; print(ray.get(ray.put(1)))"
""",
)
@click.option("--as-ray", is_flag=True, help="Let `import ray` give moray, in the program and in its workers.")
@click.option("-m", "module", metavar="MODULE", help="Run a module; all that follows are its arguments.")
@click.option("-c", "code", metavar="CODE", help="Run this code; all that follows are its arguments.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[SCRIPT] [ARGUMENTS]...")
def run(as_ray: bool, module: str | None, code: str | None, arguments: tuple[str, ...]) -> Program:
    """Run a Python program, as `python` would.

    SCRIPT is the path of a file. The program starts its own session, by init() or at its first task.
    """
    from moray.cli.run import plan

    return plan(as_ray, module, code, list(arguments))


@moray.command(
    epilog="""\b
Examples:
  moray demo              the full tour if this is a checkout of the project, else the small one
  moray demo --small      a few seconds; needs nothing but moray
"""
)
@click.option("--small", is_flag=True, help="The small tour, which is part of the package.")
def demo(small: bool) -> Any:
    """Show what moray does."""
    from moray.cli.demo import choose

    return choose(small)


@moray.command(
    epilog="""\b
Examples:
  moray benchmark
  moray benchmark --seconds 2 --json > here.json
"""
)
@click.option("--seconds", type=click.FloatRange(0.05, 60), default=0.5, show_default=True, help="For each line.")
@click.option("--num-cpus", type=click.IntRange(1), help="CPUs of the session. Default: all that may be used.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def benchmark(seconds: float, num_cpus: int | None, as_json: bool) -> None:
    """Measure moray, in a few seconds.

    A quick look, which other load disturbs; comparisons with other libraries are the project's own benchmarks.
    """
    from moray.cli.benchmark import measure_and_print

    measure_and_print(seconds, num_cpus, as_json)


@moray.command(
    epilog="""\b
Examples:
  moray doctor
  moray doctor --sweep                  remove what crashed sessions left
  moray doctor --json --temp-dir /big   look at sessions that were started with _temp_dir="/big"
"""
)
@click.option("--sweep", is_flag=True, help="Remove what sessions left whose node is dead; living ones stay.")
@click.option("--temp-dir", default="", metavar="DIRECTORY", help="Where sessions are, if not in TMPDIR or /tmp.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(sweep: bool, temp_dir: str, as_json: bool) -> int:
    """Examine this machine.

    Whether it is fit for moray, and whether crashed sessions left something. Exits with 1 if something is missing that
    moray cannot do without.
    """
    from moray.cli.doctor import examine_and_print

    return examine_and_print(sweep, temp_dir, as_json)


def _with_options_of_ray(function: Any) -> Any:
    for name in _VALUES_OF_RAY:
        function = click.option(name, hidden=True, expose_value=False)(function)
    for name in _FLAGS_OF_RAY:
        function = click.option(name, hidden=True, expose_value=False, is_flag=True)(function)
    return function


@moray.command(
    epilog="""\b
Examples:
  moray start --head                                     begin a cluster; prints the line that joins it
  MORAY_TOKEN=… moray start --address=10.0.0.1:6379      join it from another machine
  moray start --head --num-cpus=0 --storage=redis://…    a head whose state is kept elsewhere
"""
)
@click.option("--head", is_flag=True, help="Start a cluster: its first node, and the head beside it.")
@click.option("--address", default="", metavar="HOST:PORT", help="Join the cluster whose head is there.")
@click.option("--port", type=click.IntRange(0, 65535), default=6379, show_default=True, help="The head's; 0: any.")
@click.option("--node-port", type=click.IntRange(0, 65535), default=0, help="This node's one port. Default: any.")
@click.option("--node-ip-address", "node_ip", default="", help="Where others reach this machine.")
@click.option("--node-name", default="", help="What people call this node.")
@click.option("--num-cpus", type=click.FloatRange(0), help="Default: all that may be used.")
@click.option("--num-gpus", type=click.IntRange(0), help="Default: all that are found.")
@click.option("--resources", default="", metavar="JSON", help="Further resources, such as '{\"disk\": 2}'.")
@click.option("--labels", default="", metavar="NAME=VALUE,…", help="Labels of the node.")
@click.option("--object-store-memory", type=click.IntRange(1 << 20), metavar="BYTES", help="Shared memory for objects.")
@click.option("--temp-dir", default="", metavar="DIRECTORY", help="Where the session lies. Default: TMPDIR, or /tmp.")
@click.option("--storage", default="", metavar="URL", help="Of the head: sqlite:PATH (default), redis://…, memory:.")
@click.option(
    "--object-spilling-directory",
    "spill_dir",
    default="",
    metavar="DIRECTORY",
    help="For what memory is too small for.",
)
@click.option("--system-config", default="", metavar="JSON", help="Settings such as '{\"object_spilling_config\": …}'.")
@click.option("--durability", type=click.Choice(["", "full"]), default="", help="Of the head: full waits for the disk.")
@click.option("--block", is_flag=True, help="Do not return until the node ends: for supervisors.")
@_with_options_of_ray
def start(**options: Any) -> int:
    """Start a node of a cluster on this machine.

    Connections between machines are encrypted and authenticated; whoever has the token that --head prints may join.
    """
    from moray.cli import cluster

    return cluster.start(**options)


@moray.command(
    epilog="""\b
Examples:
  moray stop
  moray stop --force
"""
)
@click.option("--force", is_flag=True, help="At once, without asking.")
@click.option("--temp-dir", default="", metavar="DIRECTORY", help="Where the sessions are, if not in TMPDIR or /tmp.")
@click.option(
    "--grace-s",
    "--grace-period",
    "-g",
    "grace_s",
    type=click.FloatRange(0),
    default=15.0,
    show_default=True,
    help="Then by force.",
)
def stop(force: bool, temp_dir: str, grace_s: float) -> int:
    """End the nodes of clusters on this machine.

    This user's, with all that they started, and nothing else.
    """
    from moray.cli import cluster

    return cluster.stop(force, temp_dir, grace_s)


@moray.command(
    epilog="""\b
Examples:
  moray status
  moray status --address=10.0.0.1:6379 --json
"""
)
@click.option("--address", default="", metavar="HOST:PORT", help="The cluster's head. Default: of this machine's node.")
@click.option("--temp-dir", default="", metavar="DIRECTORY", help="Where the sessions are, if not in TMPDIR or /tmp.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(address: str, temp_dir: str, as_json: bool) -> int:
    """Show nodes, resources, what waits and why."""
    from moray.cli import cluster

    return cluster.status(address, temp_dir, as_json)


@moray.command(
    epilog="""\b
Example:
  moray drain 3fa9c2d1 --deadline=10m --reason="kernel update"
"""
)
@click.argument("node")
@click.option("--deadline", default="5m", show_default=True, help="90s, 10m, 2h: then it leaves whatever runs there.")
@click.option("--reason", default="", help="For the log, and for whoever asks why.")
@click.option("--temp-dir", default="", metavar="DIRECTORY", help="Where the sessions are, if not in TMPDIR or /tmp.")
def drain(node: str, deadline: str, reason: str, temp_dir: str) -> int:
    """Have a node leave. NODE: its id, or how that begins.

    It gets no new work, what can move moves, and then it ends.
    """
    from moray.cli import cluster

    return cluster.drain(node, deadline, reason, temp_dir)


@moray.command(
    epilog="""\b
Examples:
  moray completion bash >> ~/.bashrc
  moray completion zsh  >> ~/.zshrc
  moray completion fish > ~/.config/fish/completions/moray.fish
"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell's completion script."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(moray, {}, "moray", "_MORAY_COMPLETE").source())
