# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One VM from the state it is in to the state that is wanted.

The steps are decided first, from what is there, and then done: check mode stops in between and so cannot tell anything
else than the real run. Nothing is left half done: what a failing call defined or wrote is taken back.
"""

from __future__ import annotations

import contextlib
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, List, NamedTuple, Optional, Sequence

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt import files as vm_files
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.connection import libvirt_error, read_domain
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.definition import (
    Difference,
    compare,
    render,
    with_identity,
)
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.domains import (
    Allocation,
    metadata_refusal,
    parse_xml,
)

STATES = ("defined", "running", "stopped", "absent")
POLL_SECONDS = 1.0
# How long the guest agent's shutdown may take before the ACPI button is pressed as well, as a share of the timeout.
AGENT_SHARE = 0.5
AGENT_CHANNEL = "org.qemu.guest_agent.0"


class Wanted(NamedTuple):
    """What a caller wants of one VM."""

    name: str
    state: str  # one of STATES
    domain_xml: Optional[str] = None
    files: Sequence[vm_files.WantedFile] = ()
    disks: Sequence[str] = ()  # images that exist already and are removed with the VM
    timeout: float = 600  # seconds, for a shutdown and for the guest agent
    force: bool = False
    wait_for_agent: bool = False

    def paths(self) -> List[str]:
        """Everything that belongs to the VM alone."""
        return [item.path for item in self.files] + list(self.disks)


class Seams(NamedTuple):
    """The outside world."""

    connection: Any  # an open libvirt connection
    binding: Any  # the libvirt module
    root: Path
    lock: Callable[[], ContextManager[Any]]  # the host lock, held while definitions and power states change
    stale: Callable[[], List[str]]  # what changed since the plan; empty when it holds or there was none
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def _diff(header: str, before: str, after: str) -> Dict[str, str]:
    return {"before_header": header, "after_header": header, "before": before, "after": after}


class _Vm:
    """A VM as it is, and the steps on it."""

    def __init__(self, wanted: Wanted, seams: Seams, check_mode: bool) -> None:
        self.wanted = wanted
        self.seams = seams
        self.check_mode = check_mode
        self.libvirt = seams.binding
        self.actions: List[str] = []
        self.stopped_by: Optional[str] = None
        self.differences: List[Difference] = []
        self.restart = False
        self.diffs: List[Dict[str, str]] = []
        self.refresh()

    def refresh(self) -> None:
        """Look at the VM again."""
        self.domain: Any = None
        self.entry: Optional[Allocation] = None
        try:
            self.domain = self.seams.connection.lookupByName(self.wanted.name)
            self.entry = read_domain(self.domain, self.libvirt)
        except self.libvirt.libvirtError as error:
            if error.get_error_code() != self.libvirt.VIR_ERR_NO_DOMAIN:
                raise libvirt_error(f"VM '{self.wanted.name}' cannot be read", error) from None
            self.domain = None

    @property
    def active(self) -> bool:
        return self.entry is not None and self.entry["state"] != "shut off" and bool(self.domain.isActive())

    # What has to be done

    def check(self) -> None:
        """:raises TopovirtError: with every reason why this VM cannot be brought to the wanted state at all."""
        wanted, reasons = self.wanted, []
        if self.entry is None:
            if wanted.state != "absent" and not wanted.domain_xml:
                reasons.append(f"VM '{wanted.name}' is not known to libvirt on this host and no domain_xml is given.")
        else:
            reasons += filter(None, [metadata_refusal(wanted.name, self.entry["metadata"])])
            if not self.entry["ours"] and (wanted.domain_xml or wanted.state == "absent"):
                verb = "removed" if wanted.state == "absent" else "redefined"
                reasons.append(f"VM '{wanted.name}' was not made by topovirt.kvm, so it is not {verb}.")
            if self.entry["state"] == "crashed" and wanted.state == "running":
                reasons.append(f"VM '{wanted.name}' has crashed and is kept as it crashed: stop it with force first.")
        if wanted.domain_xml:
            inside = parse_xml(wanted.domain_xml).findtext("name")
            if inside != wanted.name:
                reasons.append(f"domain_xml names the VM '{inside}', expected '{wanted.name}'.")
        try:
            vm_files.check_paths(wanted.paths())
        except TopovirtError as error:
            reasons.append(str(error))
        if reasons:
            raise TopovirtError(" ".join(reasons))

    def definition(self) -> Optional[str]:
        """The definition to give to libvirt, None when the present one is as wanted."""
        if not self.wanted.domain_xml:
            return None
        uuid = self.entry["uuid"] if self.entry is not None else None
        files = [item.path for item in self.wanted.files]
        # A disk that is no longer named still holds data: it stays noted, and goes only with the VM.
        disks = {*self.noted("disks"), *self.wanted.disks}
        text = with_identity(self.wanted.domain_xml, uuid, files, sorted(disks))
        if self.entry is None:
            return text
        if not self.entry["persistent"]:
            self.differences = [Difference("persistent", "no", "yes")]
        else:
            self.differences = compare(self.domain.XMLDesc(self.libvirt.VIR_DOMAIN_XML_INACTIVE), text)
        return text if self.differences else None

    def files_to_write(self) -> List[vm_files.WantedFile]:
        return [item for item in self.wanted.files if vm_files.differs(self.seams.root, item)]

    def noted(self, key: str) -> List[str]:
        """Paths that the VM's metadata names."""
        metadata = (self.entry["metadata"] if self.entry else None) or {}
        paths = [path for path in metadata.get(key, []) if isinstance(path, str)]
        vm_files.check_paths(paths)
        return paths

    def files_to_remove(self) -> List[str]:
        if self.wanted.state == "absent":
            return vm_files.existing(self.seams.root, self.noted("files") + self.noted("disks"))
        return vm_files.existing(self.seams.root, sorted(set(self.noted("files")) - set(self.wanted.paths())))

    def restart_required(self, definition: Optional[str]) -> bool:
        """Whether the running VM is not what its definition says; metadata takes effect without a restart."""
        if not self.active or not self.entry or not self.entry["persistent"]:
            return False
        text = definition or self.domain.XMLDesc(self.libvirt.VIR_DOMAIN_XML_INACTIVE)
        found = compare(self.domain.XMLDesc(0), text)
        return any(not difference.path.startswith("metadata") for difference in found)

    def state_diff(self, after: str) -> Dict[str, str]:
        before = self.entry["state"] if self.entry else "absent"
        return _diff(f"state of VM {self.wanted.name}", f"{before}\n", f"{after}\n")

    def file_diff(self, path: str, after: str) -> Dict[str, str]:
        before = vm_files.read_prior(self.seams.root, path).content or b""
        return _diff(path, before.decode("utf-8", "replace"), after)

    # Steps

    def define(self, text: str) -> None:
        """:raises TopovirtError: when libvirt refuses; then everything is as it was."""
        try:
            # By libvirt's own schema: it ignores elements that it does not know unless it is asked to look.
            self.domain = self.seams.connection.defineXMLFlags(text, self.libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        except self.libvirt.libvirtError as error:
            raise libvirt_error(f"VM '{self.wanted.name}' cannot be defined", error) from None

    def start(self) -> None:
        try:
            if self.entry is not None and self.entry["state"] == "paused":
                self.domain.resume()
            else:
                self.domain.create()
        except self.libvirt.libvirtError as error:
            raise libvirt_error(
                f"VM '{self.wanted.name}' cannot be started",
                error,
                f"See /var/log/libvirt/qemu/{self.wanted.name}.log on the host. Devices must be bound to vfio-pci "
                "and unused, huge pages free on the NUMA nodes of the VM.",
            ) from None

    def undefine(self) -> None:
        flags = (
            self.libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | self.libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | self.libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | self.libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        )
        try:
            self.domain.undefineFlags(flags)
        except self.libvirt.libvirtError as error:
            raise libvirt_error(f"VM '{self.wanted.name}' cannot be undefined", error) from None

    def gone(self) -> bool:
        """Whether the VM does not run any more. A transient one vanishes when it stops."""
        try:
            return not self.domain.isActive()
        except self.libvirt.libvirtError as error:
            if error.get_error_code() == self.libvirt.VIR_ERR_NO_DOMAIN:
                return True
            raise libvirt_error(f"VM '{self.wanted.name}' cannot be watched", error) from None

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        end = self.seams.clock() + seconds
        while not condition():
            if self.seams.clock() >= end:
                return False
            self.seams.sleep(POLL_SECONDS)
        return True

    def agent_connected(self) -> bool:
        channels = ET.fromstring(self.domain.XMLDesc(0)).findall("./devices/channel/target")
        return any(target.get("name") == AGENT_CHANNEL and target.get("state") == "connected" for target in channels)

    def shutdown(self) -> None:
        """Stop in good order: through the guest agent, else by the ACPI button; by force only when that is wanted.

        :raises TopovirtError: when the VM still runs after the timeout.
        """
        tried: List[str] = []
        left = self.wanted.timeout
        for how, flag, share in (
            ("guest agent", self.libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT, AGENT_SHARE),
            ("ACPI power button", self.libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN, 1.0),
        ):
            try:
                if how == "guest agent" and not self.agent_connected():
                    tried.append("guest agent: not connected")
                    continue
                self.domain.shutdownFlags(flag)
            except self.libvirt.libvirtError as error:
                if self.gone():
                    self.stopped_by = how if tried else "itself"
                    return
                tried.append(f"{how}: {error}")
                continue
            seconds = left * share
            if self.wait(self.gone, seconds):
                self.stopped_by = how
                return
            left -= seconds
            tried.append(f"{how}: still running after {seconds:.0f} s")
        if not self.wanted.force:
            raise TopovirtError(
                f"VM '{self.wanted.name}' did not stop: {'; '.join(tried)}.",
                "Stop it from inside, raise the timeout, or give force to cut its power.",
            )
        try:
            self.domain.destroy()
        except self.libvirt.libvirtError as error:
            if not self.gone():
                raise libvirt_error(f"VM '{self.wanted.name}' cannot be stopped by force", error) from None
        self.stopped_by = "force"

    def wait_for_agent(self) -> None:
        """:raises TopovirtError: when the guest stops by itself or its agent does not answer in time."""

        channels = ET.fromstring(self.domain.XMLDesc(0)).findall("./devices/channel/target")
        if AGENT_CHANNEL not in [target.get("name") for target in channels]:
            raise TopovirtError(
                f"The agent of VM '{self.wanted.name}' cannot be waited for: it has no channel {AGENT_CHANNEL}.",
                "Do not wait for the agent of this VM.",
            )

        def settled() -> bool:
            return self.gone() or self.agent_connected()

        if not self.wait(settled, self.wanted.timeout):
            raise TopovirtError(
                f"VM '{self.wanted.name}' runs, but its guest agent did not answer within {self.wanted.timeout:.0f} s.",
                f"Look at its console: virsh console {self.wanted.name}.",
            )
        if self.gone():
            raise TopovirtError(
                f"VM '{self.wanted.name}' was started and stopped by itself before its guest agent answered.",
                f"Look at its console log and at /var/log/libvirt/qemu/{self.wanted.name}.log on the host.",
            )

    # The way to each state

    def bring_up(self) -> None:
        """To ``defined`` or ``running``; with a definition also half of the way to ``stopped``."""
        definition = self.definition()
        writes, removals = self.files_to_write(), self.files_to_remove() if definition is not None else []
        runs = self.entry is not None and self.entry["state"] == "running"
        start = self.wanted.state == "running" and not runs
        known = self.entry is not None
        if definition is not None:
            changed = self.seams.stale()
            if changed:
                raise TopovirtError(
                    f"The plan for VM '{self.wanted.name}' is stale, the host changed since: {'; '.join(changed)}.",
                    "Plan again (topovirt.kvm.vm_plan) and define the VM from the new plan.",
                )
        self.restart = runs and self.wanted.state != "stopped" and self.restart_required(definition)
        if definition is not None:
            self.diffs.append(
                _diff(f"definition of VM {self.wanted.name}", **render(self.differences))
                if known
                else _diff(f"definition of VM {self.wanted.name}", "", definition)
            )
        self.diffs += [self.file_diff(item.path, item.content) for item in writes]
        self.diffs += [self.file_diff(path, "") for path in removals]
        if start:
            self.diffs.append(self.state_diff("running"))
        self.actions += [f"write {item.path}" for item in writes] + [f"remove {path}" for path in removals]
        self.actions += ([] if definition is None else ["redefine" if known else "define"]) + (
            ["resume" if self.active else "start"] if start else []
        )
        if self.check_mode:
            return
        before = None
        if known and self.entry and self.entry["persistent"]:
            before = self.domain.XMLDesc(self.libvirt.VIR_DOMAIN_XML_INACTIVE)
        prior = [vm_files.read_prior(self.seams.root, path) for path in [item.path for item in writes] + removals]
        try:
            for item in writes:
                vm_files.write(self.seams.root, item)
            if definition is not None:
                self.define(definition)
            if start:
                self.start()
            for path in removals:
                vm_files.remove(self.seams.root, path)
        except (TopovirtError, OSError) as error:
            self.take_back(definition is not None, known, before, prior)
            if isinstance(error, OSError):
                raise TopovirtError(f"A file of VM '{self.wanted.name}' cannot be written: {error}.") from None
            raise

    def take_back(self, defined: bool, known: bool, before: Optional[str], prior: Sequence[vm_files.PriorFile]) -> None:
        """Undo a failing ``bring_up``; the failure that led here is what is reported."""
        if defined and before is not None:
            with contextlib.suppress(self.libvirt.libvirtError):
                self.seams.connection.defineXML(before)
        elif defined:
            self.refresh()
            if self.domain is not None and (not known or (self.entry and self.entry["persistent"])):
                with contextlib.suppress(TopovirtError):
                    self.undefine()
        for item in prior:
            with contextlib.suppress(OSError):
                vm_files.restore(self.seams.root, item)

    def bring_down(self) -> None:
        """To ``stopped`` or ``absent``."""
        absent = self.wanted.state == "absent"
        removals = self.files_to_remove() if absent else []
        active = self.entry is not None and bool(self.domain.isActive())
        undefine = absent and self.entry is not None and self.entry["persistent"]
        if active or undefine:
            self.diffs.append(self.state_diff("absent" if absent else "shut off"))
        self.diffs += [self.file_diff(path, "") for path in removals]
        self.actions += ["stop"] if active else []
        self.actions += ["undefine"] if undefine else []
        self.actions += [f"remove {path}" for path in removals]
        if self.check_mode:
            return
        if active:
            self.shutdown()
        with self.seams.lock():
            if undefine:
                self.undefine()
            try:
                for path in removals:
                    vm_files.remove(self.seams.root, path)
            except OSError as error:
                raise TopovirtError(f"VM '{self.wanted.name}' is removed, but not all its files: {error}.") from None

    def result(self) -> Dict[str, Any]:
        wanted = self.wanted
        if self.check_mode:
            final = {"running": "running", "stopped": "shut off", "absent": "absent"}.get(wanted.state)
            state = final or (self.entry["state"] if self.entry else "shut off")
        else:
            self.refresh()
            state = self.entry["state"] if self.entry else "absent"
        return {
            "name": wanted.name,
            "state": state,
            "actions": self.actions,
            "changed": bool(self.actions),
            "restart_required": self.restart,
            "stopped_by": self.stopped_by,
            "diff": self.diffs,
        }


def ensure(wanted: Wanted, seams: Seams, check_mode: bool) -> Dict[str, Any]:
    """Bring one VM to the wanted state.

    :returns: ``name``, ``state`` (of the contract's states, or ``absent``), ``changed``, ``actions`` (what was or would
        be done, in order), ``restart_required`` (it runs with another definition than the next start will use),
        ``stopped_by`` (``guest agent``, ``ACPI power button``, ``force``, ``itself`` or None), ``diff``.
    :raises TopovirtError: when the state cannot be reached; a definition or file of this call is taken back then.
    """
    up = wanted.state in ("defined", "running") or (wanted.state == "stopped" and wanted.domain_xml is not None)
    with seams.lock() if up and not check_mode else contextlib.nullcontext():
        vm = _Vm(wanted, seams, check_mode)
        vm.check()
        if up:
            vm.bring_up()
    if wanted.state in ("stopped", "absent"):
        vm.bring_down()
    elif wanted.wait_for_agent and wanted.state == "running" and not check_mode:
        vm.wait_for_agent()
    return vm.result()
