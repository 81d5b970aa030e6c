"""Where spilled objects go, from what users write: a directory, a URL, or Ray's ``object_spilling_config``."""

from __future__ import annotations

import json
from typing import Any, Final

from moray.launch.config import NodeConfig
from moray.launch.session_directory import SPILL_FOLDER

#: What Ray knows of beside the places.
_PARAMS_WITHOUT_MEANING: Final = frozenset({"buffer_size", "batch_size", "override_transport_params"})


def spill_targets(system_config: dict[str, Any], default: str) -> list[str]:
    """Take ``object_spilling_directory`` and ``object_spilling_config`` out of `system_config`: directories and URLs.

    Raises:
        ValueError: it says neither, or both.
    """
    directory = system_config.pop("object_spilling_directory", "")
    config = system_config.pop("object_spilling_config", "")
    if directory and config:
        raise ValueError("init(): give either object_spilling_directory or object_spilling_config, not both")
    if not config:
        return [str(directory or default)] if directory or default else []
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except ValueError as error:
            raise ValueError(f"init(): object_spilling_config={config!r:.200} is no JSON: {error}") from None
    kind = config.get("type") if isinstance(config, dict) else None
    names = {"filesystem": "directory_path", "smart_open": "uri", "fsspec": "uri"}
    if kind not in names:
        raise ValueError(
            f"init(): object_spilling_config={config!r:.200} should have a type among {', '.join(map(repr, names))}, "
            'for example {"type": "filesystem", "params": {"directory_path": "/tmp/spill"}} or '
            '{"type": "smart_open", "params": {"uri": "s3://bucket/path"}}'
        )
    params = config.get("params")
    params = params if isinstance(params, dict) else {}
    unknown = params.keys() - {names[kind], *_PARAMS_WITHOUT_MEANING}
    if unknown:
        raise ValueError(
            f"init(): object_spilling_config of type {kind!r} has no parameter named {', '.join(sorted(unknown))}; "
            f"give {names[kind]!r}"
        )
    if not isinstance(params.get("buffer_size", 0), int):
        raise ValueError(  # noqa: TRY004 - what it holds is a value of init()'s.
            f"init(): object_spilling_config: buffer_size={params['buffer_size']!r} should be a number of bytes"
        )
    given = params.get(names[kind])
    targets = [given] if isinstance(given, str) else given
    if not targets or not isinstance(targets, list) or not all(isinstance(each, str) and each for each in targets):
        raise ValueError(
            f"init(): object_spilling_config of type {kind!r} needs params with {names[kind]!r}: a string, or a list"
        )
    return targets


def spill_places(config: NodeConfig) -> tuple[str, list[str]]:
    """For a node's store: a directory of its session, and where spilled objects go instead, if they do."""
    targets = config.spill_targets or ([config.spill_dir] if config.spill_dir else [])
    own = [f"{target.rstrip('/')}/{config.session}" for target in targets]
    if len(own) == 1 and "://" not in own[0]:
        return own[0], []
    return f"{config.session_dir}/{SPILL_FOLDER}", own
