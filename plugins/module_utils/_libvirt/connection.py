# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection to libvirt: import, open, close, and its errors in our words."""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any, Iterator, List, Optional

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import Allocation, parse_domain

URI = "qemu:///system"

# virDomainState of libvirt's API -> the states of our contract. A domain that is shutting down or sleeping still runs.
STATES = {
    0: "running",  # VIR_DOMAIN_NOSTATE: some drivers have no better answer for an active domain
    1: "running",
    2: "running",  # VIR_DOMAIN_BLOCKED
    3: "paused",
    4: "running",  # VIR_DOMAIN_SHUTDOWN: being shut down
    5: "shut off",
    6: "crashed",
    7: "running",  # VIR_DOMAIN_PMSUSPENDED
}


class LibvirtMissing(TopovirtError):
    """libvirt is not installed, or nothing answers at its address."""


def load_libvirt() -> Any:
    """The libvirt binding.

    :raises LibvirtMissing: when this interpreter has none.
    """
    try:
        return importlib.import_module("libvirt")
    except ImportError as error:
        raise LibvirtMissing(
            f"The Python binding of libvirt cannot be imported by {sys.executable}: {error}.",
            "Convert the host with the playbook convert-to-kvm, or install python3-libvirt for the interpreter "
            "that Ansible uses on the host.",
        ) from None


def _silence(_context: Any, _error: Any) -> None:
    """libvirt prints every error to stderr unless a handler takes it; all of them reach us as exceptions."""


def libvirt_error(what: str, error: Exception, hint: str = "") -> TopovirtError:
    """The error of a libvirt call in our form: what was tried, and libvirt's own message."""
    return TopovirtError(f"{what}: {str(error).rstrip('.')}.", hint)


@contextlib.contextmanager
def open_libvirt(uri: str = URI, binding: Any = None) -> Iterator[Any]:
    """An open connection, closed at the end.

    :param binding: the libvirt module, or anything that behaves like it; imported when None.
    :raises LibvirtMissing: when libvirt is not there.
    """
    libvirt = binding if binding is not None else load_libvirt()
    libvirt.registerErrorHandler(_silence, None)
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise LibvirtMissing(
            f"libvirt does not answer at {uri}: {str(error).rstrip('.')}.",
            "See 'systemctl status libvirtd virtqemud.socket' on the host; convert-to-kvm installs and starts libvirt.",
        ) from None
    try:
        yield connection
    finally:
        # A connection that broke meanwhile cannot be closed again; what broke it was reported already.
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()


def read_domain(domain: Any, binding: Any) -> Allocation:
    """The allocation of one domain of a connection.

    :raises libvirt.libvirtError: as any libvirt call.
    """
    active = bool(domain.isActive())
    persistent = bool(domain.isPersistent())
    texts: List[str] = [domain.XMLDesc(0)]
    if active and persistent:
        texts.append(domain.XMLDesc(binding.VIR_DOMAIN_XML_INACTIVE))
    entry = parse_domain(*texts)
    entry["state"] = STATES.get(domain.state()[0], "running" if active else "shut off")
    entry["persistent"] = persistent
    entry["autostart"] = persistent and bool(domain.autostart())
    return entry


def _read_if_there(domain: Any, binding: Any) -> Optional[Allocation]:
    try:
        return read_domain(domain, binding)
    except binding.libvirtError as error:
        # Transient domains vanish by themselves between the list and the look.
        if error.get_error_code() == binding.VIR_ERR_NO_DOMAIN:
            return None
        raise


def read_domains(connection: Any, binding: Any = None) -> List[Allocation]:
    """The allocations of every domain that libvirt knows, ascending by name.

    :raises TopovirtError: when libvirt refuses to list or describe them.
    """
    libvirt = binding if binding is not None else load_libvirt()
    try:
        found = [_read_if_there(domain, libvirt) for domain in connection.listAllDomains(0)]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry["name"])
    except libvirt.libvirtError as error:
        raise libvirt_error("libvirt cannot list its domains", error) from None
