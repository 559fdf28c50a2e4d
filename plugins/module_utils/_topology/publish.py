# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A captured machine made fit to be given away: nothing in it tells one machine from another of its kind.

What can name a machine or its owner among the files of a capture is the kernel's command line (UUIDs of disks,
addresses, keys), the id of the boot, adapters' vital product data (serial numbers) and network interfaces that are
named after their address. Configuration space is captured to 256 bytes, so the serial number capability, an extended
one, is not in it.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from typing import Dict, Iterable, Mapping, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.devices import is_fabric_bridge
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.module_ids import SAVED

NO_BOOT = b"00000000-0000-0000-0000-000000000000\n"
HIDDEN = "hidden"

# Parameters of the kernel whose values say something about topology, isolation or passthrough, and nothing else. Of all
# others the name is kept.
_TELLING = re.compile(
    r"(amd_iommu|intel_iommu|iommu(\.\w+)?|hugepages|(default_)?hugepagesz|transparent_hugepage|isolcpus|nohz(_full)?"
    r"|rcu_nocbs|mitigations|pci(e_\w+)?|vfio([-_]\w+)?\.\w+|kvm(_\w+)?\.\w+|numa(_balancing)?|maxcpus|nr_cpus"
    r"|selinux|apparmor|lockdown|efi|memmap|movable_node|processor\.\w+|intel_idle\.\w+|topovirt)\Z"
)

# The shortest vital product data (PCI Local Bus Specification 3.0, appendix I) with the field that marks a board's
# fabric bridge: a read-only resource with one vendor keyword, and the end tag.
_MARKED_VPD = b"\x90\x0e\x00VA\x0bSMDL=SW_MNG\x78"

# systemd.net-naming-scheme(7): "prefix xMAC".
_BY_ADDRESS = re.compile(r"\benx[0-9a-f]{12}\b")

_MAX_BYTES = 64 << 20


def repack(archive: bytes, module_ids: Mapping[str, int], identifiers: bool = False) -> bytes:
    """The same tree as a gzipped tar archive that is equal for equal machines.

    :param archive: what ``capture.script`` wrote.
    :param module_ids: BDF -> module id, kept where the reader looks for saved ones; empty when they are not known.
    :param identifiers: keep what names the machine.
    :raises TopovirtError: when ``archive`` is damaged.
    """
    files: Dict[str, Optional[bytes]] = {}
    links: Dict[str, str] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            for member in tar:
                name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
                source = tar.extractfile(member) if member.isreg() else None
                if member.issym():
                    links[name] = member.linkname
                elif source is not None:
                    files[name] = source.read(_MAX_BYTES)
                elif name:
                    files[name] = None  # a directory
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise TopovirtError(f"The capture cannot be read back: {error}.", "Capture it again.") from None
    if not identifiers:
        public = {name: _public(name, data) for name, data in files.items()}
        files = {name: data for name, data in public.items() if data != b""}
        renamed = _Renamed([*files, *links])
        files = {renamed(name): data for name, data in files.items()}
        links = {renamed(name): renamed(target) for name, target in links.items()}
    if module_ids:
        files[SAVED] = (json.dumps(dict(module_ids), sort_keys=True) + "\n").encode()
    return _pack(files, links)


def _public(name: str, data: Optional[bytes]) -> Optional[bytes]:
    """What of a file may be shown; empty when nothing."""
    if data is None:
        return None
    if name == "proc/sys/kernel/random/boot_id":
        return NO_BOOT
    if name == "proc/cmdline":
        return (public_cmdline(data.decode("utf-8", "replace")) + "\n").encode()
    if name.endswith("/vpd"):
        return _MARKED_VPD if is_fabric_bridge(data) else b""
    return data or b"\n"  # an empty file reads like an empty line, and is no longer "nothing"


class _Renamed:
    """Paths in which interfaces that systemd named after their hardware address have a running number instead."""

    def __init__(self, paths: Iterable[str]) -> None:
        found = sorted({name for path in paths for name in _BY_ADDRESS.findall(path)})
        self._numbers = {name: number for number, name in enumerate(found, start=1)}

    def __call__(self, path: str) -> str:
        return _BY_ADDRESS.sub(lambda match: f"enx{self._numbers.get(match[0], 0):012x}", path)


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
