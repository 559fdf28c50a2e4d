# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Properties of QEMU's devices for which libvirt has no element.

libvirt sets them by alias (qemu:override); older ones only by arguments for all devices of a driver. Both ways:
https://libvirt.org/drvqemu.html and QEMU's -global.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.pcie_tree import Controller, GuestDevice, PortLink
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.peers import PROPERTY as CLIQUE
from ansible_collections.topovirt.kvm.plugins.plugin_utils._guest.versions import Versions

Value = bool | int | str
Overrides = dict[str, dict[str, Value]]

# Speeds that QEMU's root ports know only from the version of "link_32" on, and the one that stands in for them.
_NEW_SPEEDS, _OLD_SPEED = ("32", "64"), "16"


def hostdev_alias(bdf: str) -> str:
    """The alias of a passed-through device: libvirt's prefix for user aliases and the host's BDF."""
    return "ua-" + bdf.replace(":", "-").replace(".", "-")


def _link_properties(link: PortLink, versions: Versions) -> dict[str, Value]:
    speed = link["speed"]
    if speed in _NEW_SPEEDS and not versions.has("link_32"):
        speed = _OLD_SPEED
    found = {"x-speed": speed, "x-width": link["width"]}
    return {name: value for name, value in found.items() if value is not None}


def overrides(
    controllers: Sequence[Controller],
    devices: Sequence[GuestDevice],
    hostdev_properties: Mapping[str, Value],
    cliques: Mapping[str, int],
    versions: Versions,
) -> tuple[Overrides, list[str]]:
    """Alias -> properties, and the names of elements (see ``versions.py``) that they take.

    :param cliques: BDF of a GPU -> number of its clique.
    """
    found: Overrides = {}
    wanted: list[str] = []
    for controller in controllers:
        if controller["link"] is not None:
            # libvirt's own alias of a PCI controller.
            found[f"pci.{controller['index']}"] = _link_properties(controller["link"], versions)
            wanted += ["link_32"] if controller["link"]["speed"] in _NEW_SPEEDS else []
    for device in devices:
        own: dict[str, Value] = {CLIQUE: cliques[device["bdf"]]} if device["bdf"] in cliques else {}
        found[hostdev_alias(device["bdf"])] = {**own, **hostdev_properties}
    found = {alias: properties for alias, properties in found.items() if properties}
    return found, [*(["override"] if found else []), *dict.fromkeys(wanted)]


def _text(value: Value) -> str:
    return str(value) if not isinstance(value, bool) else "on" if value else "off"


def global_arguments(
    controllers: Sequence[Controller], hostdev_properties: Mapping[str, Value], versions: Versions
) -> list[str]:
    """What stands in for overrides: QEMU's arguments for all passed-through devices and all root ports alike.

    Links are given only if they are the same for all root ports; cliques cannot be given like this at all.
    """
    found = {f"vfio-pci.{name}": value for name, value in hostdev_properties.items()}
    links = [_link_properties(item["link"], versions) for item in controllers if item["link"] is not None]
    if links and all(link == links[0] for link in links):
        found |= {f"pcie-root-port.{name}": value for name, value in links[0].items()}
    return [word for name, value in found.items() for word in ("-global", f"{name}={_text(value)}")]
