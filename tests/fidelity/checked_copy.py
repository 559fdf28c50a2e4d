# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy of a definition without what only the planned host can give: KVM, its CPU, its nodes and huge pages.

What is left is what libvirt judges and QEMU boots on any machine. Each removal names what libvirt would say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lxml import etree

GIB = 1 << 30
#: Of the booted copy, all cells together. A guest touches little of it, but without memory above 4 GiB, which every
#: planned one has, SeaBIOS keeps no room around 64-bit BARs (src/fw/pciinit.c, pci_setup).
MEMORY_BYTES = 6 * GIB


@dataclass(frozen=True)
class Boot:
    """Files and sockets that a copy is to boot with."""

    kernel: Path
    initrd: Path
    cmdline: str
    disk: Path
    agent: Path  # socket of the guest agent
    ovmf_code: Path
    ovmf_vars: Path  # a copy that the guest may write to


def _parse(xml: str) -> etree._Element:
    return etree.fromstring(xml, etree.XMLParser(remove_blank_text=True))


def _text(domain: etree._Element) -> str:
    return etree.tostring(domain, pretty_print=True, encoding="unicode")


def _drop(domain: etree._Element, *paths: str) -> None:
    for path in paths:
        for element in domain.findall(path):
            parent = element.getparent()
            assert parent is not None
            parent.remove(element)


def _need(domain: etree._Element, path: str) -> etree._Element:
    found = domain.find(path)
    if found is None:
        raise ValueError(f"the definition has no {path}")
    return found


def without_host(xml: str, phys_bits: int) -> str:
    """The copy.

    :param phys_bits: address width that the guest's CPU has on the planned host.
    """
    domain = _parse(xml)
    # "Emulator does not support virt type kvm"
    domain.set("type", "qemu")
    # "hugepages backend unavailable"; "NUMA node 1 is unavailable"
    _drop(domain, "memoryBacking/hugepages", "numatune")
    # "CPU mode 'host-passthrough' for x86_64 qemu domain on x86_64 host is not supported by hypervisor"; cache and
    # address width can be the host's own with that mode only.
    cpu = _need(domain, "cpu")
    cpu.set("mode", "maximum")
    _drop(cpu, "cache")
    width = _need(cpu, "maxphysaddr")
    width.attrib.clear()
    width.set("mode", "emulate")
    width.set("bits", str(phys_bits))
    return _text(domain)


def for_boot(copy: str, boot: Boot) -> str:
    """A copy from :func:`without_host`, small enough for any machine, that boots a kernel.

    Cells and PCI stay as they are; each cell keeps one vCPU and its part of ``MEMORY_BYTES``.
    """
    domain = _parse(copy)
    cells = domain.findall("cpu/numa/cell")
    cell_kib = MEMORY_BYTES // len(cells) >> 10
    for number, cell in enumerate(cells):
        cell.set("cpus", str(number))
        cell.set("memory", str(cell_kib))
        cell.set("unit", "KiB")
    _need(domain, "memory").text = str(len(cells) * cell_kib)
    _need(domain, "vcpu").text = str(len(cells))
    _drop(domain, "cputune", "cpu/topology", "memoryBacking", "os")
    os = etree.Element("os")
    kind = etree.SubElement(os, "type", arch="x86_64", machine="q35")
    kind.text = "hvm"
    if _parse(copy).find("os[@firmware='efi']") is not None:
        loader = etree.SubElement(os, "loader", readonly="yes", type="pflash")
        loader.text = str(boot.ovmf_code)
        etree.SubElement(os, "nvram").text = str(boot.ovmf_vars)
    for tag, value in (("kernel", boot.kernel), ("initrd", boot.initrd), ("cmdline", boot.cmdline)):
        etree.SubElement(os, tag).text = str(value)
    _need(domain, "vcpu").addnext(os)
    for source in domain.findall("devices/disk/source"):
        source.set("file", str(boot.disk))
    channel = _need(domain, "devices/channel[@type='unix']")
    channel.insert(0, etree.Element("source", mode="bind", path=str(boot.agent)))
    # The console of a guest without libvirt has no terminal; the boot adds its own.
    _drop(domain, "devices/serial", "devices/console")
    return _text(domain)
