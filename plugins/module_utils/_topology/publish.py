# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A captured machine made fit to be given away: nothing in it tells one machine from another of its kind.

What can name a machine or its owner among the files of a capture is the kernel's command line (UUIDs of disks,
addresses, keys), the id of the boot, adapters' vital product data (serial numbers) and network interfaces that are
named after their address. Of configuration spaces only the bytes that the reader reads are kept, so no capability with
a serial number is.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from typing import Any, Dict, Mapping, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.devices import MARKED_VPD, is_fabric_bridge
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.model import Topology
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.module_ids import SAVED
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.pci import needed_config
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.software import CAPTURED, to_capture
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree

NO_BOOT = b"00000000-0000-0000-0000-000000000000\n"
HIDDEN = "hidden"

# Parameters of the kernel whose values say something about topology, isolation or passthrough, and nothing else. Of all
# others the name is kept.
_TELLING = re.compile(
    r"(amd_iommu|intel_iommu|iommu(\.\w+)?|hugepages|(default_)?hugepagesz|transparent_hugepage|isolcpus|nohz(_full)?"
    r"|rcu_nocbs|mitigations|pci(e_\w+)?|vfio([-_]\w+)?\.\w+|kvm(_\w+)?\.\w+|numa(_balancing)?|maxcpus|nr_cpus"
    r"|selinux|apparmor|lockdown|efi|memmap|movable_node|processor\.\w+|intel_idle\.\w+|topovirt)\Z"
)

# systemd.net-naming-scheme(7): "prefix xMAC".
_BY_ADDRESS = re.compile(r"\benx[0-9a-f]{12}\b")


def answers(tree: Tree, topology: Topology) -> Dict[str, bytes]:
    """Files of a capture that no copying makes: path below the root -> what the reader made of the machine's answers.

    They are the bytes that it reads of configuration spaces, and what commands and the boot loader's menu said.
    """
    files = needed_config(tree, topology["pci"])
    ids = {item["bdf"]: item.get("module_id") for item in topology["pci"] if item.get("module_id") is not None}
    if ids:
        files[SAVED] = _json(ids)
    files[CAPTURED] = _json(to_capture(topology))
    return files


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(data), sort_keys=True) + "\n").encode()


def repack(archive: bytes, beside: Mapping[str, bytes], identifiers: bool = False) -> bytes:
    """The same tree as a gzipped tar archive that is equal for equal machines.

    :param archive: what ``capture.script`` wrote.
    :param beside: files that take the place of those in the archive: of ``answers``.
    :param identifiers: keep what names the machine.
    :raises TopovirtError: when ``archive`` is damaged.
    """
    files: Dict[str, Optional[bytes]] = {}  # None: a directory
    links: Dict[str, str] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            for member in tar:
                name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
                if member.issym():
                    links[name] = member.linkname
                elif name:
                    source = tar.extractfile(member)
                    files[name] = None if source is None else source.read()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise TopovirtError(f"The capture cannot be read back: {error}.", "Capture it again.") from None
    files.update(beside)
    if not identifiers:
        files = {name: _public(name, data) for name, data in files.items() if not _tells_nothing_else(name, data)}
        named = sorted({name for path in (*files, *links) for name in _BY_ADDRESS.findall(path)})
        numbers = {name: f"enx{number:012x}" for number, name in enumerate(named, start=1)}

        def renamed(path: str) -> str:
            return _BY_ADDRESS.sub(lambda match: numbers.get(match[0], match[0]), path)

        files = {renamed(name): data for name, data in files.items()}
        links = {renamed(name): renamed(target) for name, target in links.items()}
    return _pack(files, links)


def _tells_nothing_else(name: str, data: Optional[bytes]) -> bool:
    """Whether a file has nothing but what names the machine: vital product data of what is no fabric bridge."""
    return name.endswith("/vpd") and data is not None and not is_fabric_bridge(data)


def _public(name: str, data: Optional[bytes]) -> Optional[bytes]:
    """What of a file may be shown."""
    if data is not None and name == "proc/cmdline":
        return (public_cmdline(data.decode("utf-8", "replace")) + "\n").encode()
    if name == "proc/sys/kernel/random/boot_id":
        return NO_BOOT
    if data is not None and name == CAPTURED:
        software = json.loads(data)
        if software["next_cmdline"] is not None:
            software["next_cmdline"] = public_cmdline(software["next_cmdline"])
        return _json(software)
    return MARKED_VPD if name.endswith("/vpd") else data


def public_cmdline(text: str) -> str:
    """The kernel's command line with the values of unknown parameters hidden."""
    words = []
    for word in text.split():
        name, separator, _value = word.partition("=")
        words.append(word if not separator or _TELLING.match(name) else f"{name}={HIDDEN}")
    return " ".join(words)


def _pack(files: Mapping[str, Optional[bytes]], links: Mapping[str, str]) -> bytes:
    """Sorted, without owners and times, so that an unchanged machine gives the same bytes."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in sorted({*files, *links}):
            member = tarfile.TarInfo(name)
            data = files.get(name)
            if name in links:
                member.type, member.linkname, member.mode = tarfile.SYMTYPE, links[name], 0o777
            elif data is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            else:
                member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data or b""))
    return gzip.compress(plain.getvalue(), 9, mtime=0)
