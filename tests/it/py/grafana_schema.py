"""Reads dashboards into Grafana's own models and prints what these do not know: {"file": ["path", …]}.

A member that is read is written again by the model. One that Grafana's schema has not is dropped by it.
"""

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard


def unknown(given, kept, path=""):
    """Paths of what is in `given` and not in `kept`; what is empty may be left out."""
    if isinstance(given, dict):
        if not isinstance(kept, dict):
            return [path] if given else []
        return [at for key, value in given.items() for at in unknown(value, kept.get(key), f"{path}.{key}")]
    if isinstance(given, list):
        if not isinstance(kept, list) or len(kept) != len(given):
            return [path] if given else []
        return [at for i, (one, other) in enumerate(zip(given, kept)) for at in unknown(one, other, f"{path}[{i}]")]
    if given != kept and given not in (None, "", False):
        return [f"{path}: {given!r} became {kept!r}"]
    return []


def main():
    register_default_plugins()
    found = {}
    for file in map(Path, sys.argv[1:]):
        given = json.loads(file.read_text())
        kept = json.loads(JSONEncoder().encode(dashboard.Dashboard.from_json(given)))
        found[file.name] = unknown(given, kept)
    print(json.dumps(found))


main()
