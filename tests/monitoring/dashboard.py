"""Compares docs/monitoring/dashboard.json with Grafana's own description of dashboards, its Foundation SDK. It reads
the dashboard and writes it again: what it does not know or understands differently is missing then, or another value.
"""

import json
import pathlib
import sys

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

# The SDK describes annotations of any data source. These belong to Prometheus.
OF_PROMETHEUS = {"useValueForTime", "titleFormat", "step"}


def differences(ours, theirs, path=""):
    """Where what was read differs from what was written."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key in theirs:
                yield from differences(value, theirs[key], f"{path}/{key}")
            elif not (path.startswith("/annotations/list/") and key in OF_PROMETHEUS):
                yield f"{path}/{key}: unknown"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for at, (one, other) in enumerate(zip(ours, theirs)):
            yield from differences(one, other, f"{path}/{at}")
    elif ours != theirs:
        yield f"{path}: {ours!r} instead of {theirs!r}"


plugins.register_default_plugins()
ours = json.loads((pathlib.Path(__file__).parents[2] / "docs/monitoring/dashboard.json").read_text())
found = list(differences(ours, json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(ours)))))
sys.exit("\n".join(found) if found else None)
