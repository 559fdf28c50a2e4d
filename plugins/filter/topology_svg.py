# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A topology as a picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.schema import as_topology
from ansible_collections.topovirt.kvm.plugins.plugin_utils._report.svg import draw_host


def topology_svg(topology: Any, domains: Any = ()) -> str:
    """See topology_svg.yml."""
    try:
        # Through JSON and back, values lose the tags that the controller gives them.
        plain = json.loads(json.dumps([topology, list(domains)]))
        picture = draw_host(as_topology(plain[0], "The input of topology_svg"), plain[1])
    except TopovirtError as error:
        raise AnsibleFilterError(str(error)) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise AnsibleFilterError(
            f"topology_svg: the input does not have the shape of a topology with domains: {error!r}. "
            "Pass what topology_info and vm_info returned."
        ) from None
    return ET.tostring(picture, encoding="unicode") + "\n"


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"topology_svg": topology_svg}
