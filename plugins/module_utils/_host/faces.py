# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules that do one step alone: how each makes its step of its options, and what all of them take and return."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._host.cmdline.edit import Edit
from ansible_collections.topovirt.kvm.plugins.module_utils._host.face import commands, demand_root, runner, shown
from ansible_collections.topovirt.kvm.plugins.module_utils._host.hugepages import Hugepages, pools_of
from ansible_collections.topovirt.kvm.plugins.module_utils._host.journals import Journals
from ansible_collections.topovirt.kvm.plugins.module_utils._host.kernel_cmdline import KernelCmdline, edit_of
from ansible_collections.topovirt.kvm.plugins.module_utils._host.lock import host_lock
from ansible_collections.topovirt.kvm.plugins.module_utils._host.nic_firmware import NicFirmware, wanted_firmware
from ansible_collections.topovirt.kvm.plugins.module_utils._host.pci_binding import PciBinding, demand_effect
from ansible_collections.topovirt.kvm.plugins.module_utils._host.pcie_acs import PcieAccess
from ansible_collections.topovirt.kvm.plugins.module_utils._host.places import Run
from ansible_collections.topovirt.kvm.plugins.module_utils._host.single import Single
from ansible_collections.topovirt.kvm.plugins.module_utils._host.step import Context, Step
from ansible_collections.topovirt.kvm.plugins.module_utils._host.tuned_profile import TunedProfile, wanted_profile
from ansible_collections.topovirt.kvm.plugins.module_utils._host.wanted import devices_of, pcie_acs_of
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.reader import read_topology

# Options of all these modules, beside their own.
COMMON_SPEC: Dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "restored"], "default": "present"},
    "root": {"type": "path", "default": "/"},
}

# None for options: of a way back, which takes everything from the journal.
_Builder = Callable[[Context, Mapping[str, Any]], Step]


def _hugepages(context: Context, options: Mapping[str, Any]) -> Step:
    return Hugepages(context, pools_of(options["pages"], context.topology) if options else {})


def _kernel_cmdline(context: Context, options: Mapping[str, Any]) -> Step:
    return KernelCmdline(context, edit_of(options) if options else Edit(), options.get("backend", "auto"))


def _tuned_profile(context: Context, options: Mapping[str, Any]) -> Step:
    return TunedProfile(context, wanted_profile(options) if options else None)


def _pci_binding(context: Context, options: Mapping[str, Any]) -> Step:
    if not options:
        return PciBinding(context, persistent=False)
    persistent, at_once = bool(options.get("persistent", True)), bool(options.get("at_once", True))
    demand_effect(persistent, at_once)
    errors: List[str] = []
    context.wanted = replace(context.wanted, devices=devices_of(options, context.topology, [], errors))
    if errors or not context.wanted.devices:
        wrong = "; ".join(errors) or "devices names none"
        raise TopovirtError(f"The wanted devices are wrong: {wrong}.", "Nothing was changed.")
    return PciBinding(context, persistent, options.get("tolerate") or [])


def _pcie_acs(context: Context, options: Mapping[str, Any]) -> Step:
    if options:
        errors: List[str] = []
        chosen = {name: options.get(name) for name in ("devices", "exclude")}
        devices = devices_of(chosen, context.topology, ["gpu", "nic"], errors)
        registers = {name: options.get(name) for name in ("bits", "ats", "max_read_request")}
        wanted = pcie_acs_of({"enabled": True, **registers}, errors)
        if errors:
            raise TopovirtError(f"The wanted registers are wrong: {'; '.join(errors)}.", "Nothing was changed.")
        context.wanted = replace(context.wanted, devices=devices, pcie_acs=wanted)
    return PcieAccess(context)


def _nic_firmware(context: Context, options: Mapping[str, Any]) -> Step:
    return NicFirmware(context, *wanted_firmware(options, context.topology)) if options else NicFirmware(context)


BUILDERS: Dict[str, _Builder] = {
    "hugepages": _hugepages,
    "kernel_cmdline": _kernel_cmdline,
    "nic_firmware": _nic_firmware,
    "pci_binding": _pci_binding,
    "pcie_acs": _pcie_acs,
    "tuned_profile": _tuned_profile,
}


def single(name: str, options: Mapping[str, Any], root: Path, run: Run) -> Single:
    """The step of the module ``name``; of empty options one that can only be restored."""
    return Single(
        name,
        root,
        run,
        lambda: read_topology(root, run if root == Path("/") else None),
        lambda context: BUILDERS[name](context, options),
        bool(options.get("at_once", True)),
    )


def run_face(name: str, params: Mapping[str, Any], check_mode: bool, run_command: Any) -> Dict[str, Any]:
    """Run the module ``name`` and return its result.

    :raises TopovirtError: for refusals and failures.
    """
    demand_root()
    root, restore = Path(params["root"]), params["state"] == "restored"
    step = single(name, {} if restore else params, root, commands(run_command))
    with contextlib.nullcontext() if check_mode else host_lock(root, name):
        done = (step.restored if restore else step.present)(check_mode)
    return {
        "changed": done.changed,
        "journal_state": done.journal,
        "reboot_required": done.reboot_required,
        "kept": done.kept,
        **shown(done.plan),
        **done.results,
    }


def run_journal(params: Mapping[str, Any], check_mode: bool, run_command: Any) -> Dict[str, Any]:
    """Run the module ``host_journal`` and return its result.

    :raises TopovirtError: for refusals and failures.
    """
    demand_root()
    root, run = Path(params["root"]), commands(run_command)
    journals = Journals(root, lambda name: single(name, {}, root, run), lambda: runner(root, run))
    if params["action"] == "show":
        return {"changed": False, **journals.show()}
    if params["action"] == "verify":
        return {"changed": False, **journals.show(), **journals.verify()}
    with contextlib.nullcontext() if check_mode else host_lock(root, "host_journal (restore)"):
        done = journals.restore(check_mode)
    return {
        "changed": done.changed,
        "reboot_required": done.reboot_required,
        "kept": done.kept,
        **shown(done.plan),
        **journals.show(),
    }
