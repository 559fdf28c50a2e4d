# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The schema that users read."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import jsonschema
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology

SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "topology.schema.json"


@cache
def _validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def violations(topology: Topology) -> list[str]:
    """Where the topology is not what the published schema says."""
    return [f"{error.json_path}: {error.message}" for error in _validator().iter_errors(topology)]
