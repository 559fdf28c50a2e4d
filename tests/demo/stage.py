# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the scenarios on emulated servers do besides running playbooks: ``python -m tests.demo.stage STEP [SCENARIO]``.

create      boot the server, write inventory and variables, record how the host is
agree       the recorded tree of the machine is what the booted kernel shows, and so does lstopo on the server
in-use      devices that the host uses are in the passthrough set: one refusal names them all, nothing changes
alone       each module of one step: check mode, for real, again, after a reboot, and back
lockdown    under kernel lockdown registers are not written: refused, and nothing changes
no-iommu    a server whose IOMMU is off in firmware is refused, nothing changes
predict     run convert-to-kvm in check mode, then for real: the same tasks change something
truth       convert-to-kvm in check mode, then for real, both held to what an observer sees and to the journal; on a
            server that has the packages already, or on an untouched one after they were given to another one
truth-back  the same of convert-to-bare-metal, after truth
refuse      bad input, each refused with its reason and without a change
settle      wait for the guests; those that the emulated CPU hung are reset, and that is told
guest-lstopo  lstopo says of each running guest's kernel what the reader says
controls    boot three VMs that are wrong on purpose; the comparison flags each for what is wrong
trial-...   a trial boot fails, and the host recovers by itself; or it does not fail, see trials.py
sriov       virtual functions of the management card: with a conversion, after a reboot, at once, and back
tenants     from one large VM to two tenants that share the board, compared with the host
as-before   the host is what create recorded
destroy     end the server
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.bench import on_server
from tests.bench.against_lstopo import CHECKS
from tests.demo import alone, controls, harsh, sriov, steady, story, trials, truth
from tests.demo.operator import Failure, Operator, changes, management_nic, record
from tests.tools import manifest, progress, workspace
from tests.tools.scenario import OWNER
from tests.twin.lifecycle import Server, TwinError

BEFORE = "before.json"

# The host's own use of devices below GPU switches and on the board, made and undone. The first NVMe is mounted, the
# second is swap space, the third only carries a signature; the management NIC needs nothing to be in use.
USE = (
    "set -e; disks=$(ls -d /sys/bus/pci/drivers/nvme/0*/nvme/nvme* | sort); set -- $disks; "
    "one=/dev/$(basename $1)n1 two=/dev/$(basename $2)n1 three=/dev/$(basename $3)n1; "
    "mkfs.ext4 -q -F $one; mkdir -p /mnt/data; mount $one /mnt/data; mkswap $two; swapon $two; mkswap $three"
)
UNUSE = (
    "umount /mnt/data; rmdir /mnt/data; swapoff -a; "
    "for disk in /dev/nvme?n1; do wipefs --quiet --all $disk; done; udevadm settle"
)
LOCK_DOWN = "sed -i 's/^GRUB_CMDLINE_LINUX=\"/&lockdown=integrity /' /etc/default/grub && update-grub"
IN_USE_WORDS = ("/mnt/data", "swap space", "holds data", "TWINNVME2", "SSH session", "default route")


@dataclass(frozen=True)
class Setting:
    """What a scenario starts from."""

    machine: str = "hgx-h200"
    variant: str | None = None
    requests: dict[str, Any] = field(default_factory=lambda: story.ONE_VM)
    shape: str = "debian"
    variables: dict[str, Any] = field(default_factory=dict)  # of the operator, beside the story's own
    harsh: bool = False  # see harsh.py
    packages_there: bool = False  # the administrator has installed what the conversion needs


SETTINGS = {
    "hgx-h200": Setting(),
    "hgx-h200-wrong": Setting(),
    "no-iommu": Setting(variant="no-iommu"),
    "dgx-2": Setting("dgx-2", requests=story.SIXTEEN),
    "debian": Setting("pcie-l40s", requests=story.ONE_GPU, variables=story.REGISTERS, packages_there=True),
    "rhel9": Setting(requests=story.ONE_GPU, shape="rhel9"),
    "rhel10": Setting(requests=story.ONE_GPU, shape="rhel10", harsh=True, variables=harsh.VARIABLES),
    "single-steps": Setting("pcie-l40s", shape="rhel9"),
    "lockdown": Setting("pcie-l40s", variables=story.REGISTERS),
    "trial-boot": Setting(requests={}),
    "sriov": Setting("pcie-l40s", requests={}, variables={"kvm_host_fabric_model": "none"}),
}


@dataclass(frozen=True)
class Refusal:
    """Bad input and the words that its refusal must contain."""

    name: str
    playbook: str
    words: tuple[str, ...]
    variables: dict[str, Any] = field(default_factory=dict)


def vms(*requests: dict[str, Any]) -> dict[str, Any]:
    return {"gpu_vms": list(requests)}


REFUSALS = (
    Refusal("converting while a VM runs", "convert_to_kvm", ("train-8",), story.SHARED_FABRIC),
    Refusal("converting back while a VM runs", "convert_to_bare_metal", ("train-8",)),
    Refusal("4 GPUs under full_passthrough", "deploy_vms", ("4", "8", "1"), vms(story.request("four", 4))),
    Refusal("more GPUs than there are", "deploy_vms", ("9", "8"), vms(story.request("nine", 9))),
    Refusal("a name twice", "deploy_vms", ("same",), vms(story.request("same", 1), story.request("same", 1))),
    Refusal("no GPU count", "deploy_vms", ("gpus",), vms({"name": "nothing", "image": story.IMAGE})),
    Refusal(
        "an image that is not there", "deploy_vms", ("nowhere",), vms(story.request("a", 8) | {"image": "nowhere"})
    ),
)


def operator(scenario: str) -> Operator:
    folder = workspace.WORK / "scenario" / scenario
    setting = SETTINGS[scenario]
    server = Server(setting.machine, setting.variant, directory=folder / "server", os=setting.shape)
    return Operator(server, folder, workspace.COLLECTIONS)


def create(mine: Operator) -> None:
    mine.server.down()
    shutil.rmtree(mine.folder, ignore_errors=True)
    owner = os.environ.get(OWNER)
    mine.server.up(owner=int(owner) if owner else None)
    setting = SETTINGS[mine.folder.name]
    if setting.harsh:
        harsh.make(mine.server)
    mine.write_inventory(story.variables(mine.images(), str(mine.reports)) | setting.requests | setting.variables)
    (mine.folder / BEFORE).write_text(json.dumps(record(mine.server)), encoding="utf-8")


def prove(mine: Operator) -> None:
    """On an untouched server what packages bring by themselves is measured on another one, before."""
    server = mine.server
    if not truth.measurement(server).is_file() or SETTINGS[mine.folder.name].packages_there:
        truth.install_plainly(mine)
        if SETTINGS[mine.folder.name].packages_there:
            (mine.folder / BEFORE).write_text(json.dumps(record(server)), encoding="utf-8")
        else:
            create(mine)
    truth.convert(mine)


def agree(mine: Operator) -> None:
    if on_server.agree(mine.server):
        raise Failure("the recorded tree, on which the fast tests rest, or lstopo is not what the kernel shows")


def predict(mine: Operator) -> None:
    said = []
    for name, arguments in (("check", ("--check", "--diff")), ("convert", ("--diff",))):
        said.append(changes(mine.must_play(name, "convert_to_kvm", *arguments).text))
    errors = story.prediction_errors(*said)
    if errors:
        raise Failure(f"check mode did not tell the truth: {'; '.join(errors)} (logs: {mine.logs})")


def state(server: Server) -> str:
    """What no refusal may change: VMs, journal, drivers, command line."""
    command = (
        "virsh --quiet list --all; "
        "find /var/lib/topovirt /etc/default/grub* /boot -type f -exec sha256sum {} + | sort -k2;"
        " for d in /sys/bus/pci/devices/*; do echo $d $(readlink $d/driver); done; cat /proc/cmdline"
    )
    return server.copy_from(command).decode()


def demand(mine: Operator, name: str, refusal: Refusal) -> None:
    """Run it; it must be refused with its words, and change nothing."""
    before = state(mine.server)
    played = mine.play(name, refusal.playbook, variables=refusal.variables)
    if played.status == 0:
        raise Failure(f"{refusal.name} was not refused (log: {played.log})")
    missing = [word for word in refusal.words if word not in played.reason]
    if missing or "Traceback" in played.text:
        raise Failure(f"{refusal.name}: the refusal does not name {', '.join(missing)}: {played.reason}")
    progress.say(f"{refusal.name}: {played.reason}")
    if state(mine.server) != before:
        raise Failure(f"{refusal.name} was refused, but changed the host (log: {played.log})")


def refuse(mine: Operator) -> None:
    for number, refusal in enumerate(REFUSALS):
        demand(mine, f"refusal-{number}", refusal)


def refuse_used_devices(mine: Operator) -> None:
    management = management_nic(mine.server)
    variables = {"kvm_host_passthrough": ["gpu", "nic", "nvme"], "kvm_host_devices": [management]}
    mine.server.copy_from(USE)
    try:
        words = (*IN_USE_WORDS, management)
        demand(mine, "in-use", Refusal("devices that the host uses", "convert_to_kvm", words, variables))
    finally:
        mine.server.copy_from(UNUSE)


def refuse_without_iommu(mine: Operator) -> None:
    demand(mine, "no-iommu", Refusal("a host without IOMMU", "convert_to_kvm", ("no IOMMU", "firmware")))


def refuse_under_lockdown(mine: Operator) -> None:
    """The kernel is locked down as with Secure Boot; without access control a conversion is still possible."""
    mine.server.copy_from(LOCK_DOWN)
    trials.reboot(mine.server)
    said = mine.server.copy_from("cat /sys/kernel/security/lockdown").decode().strip()
    if "[integrity]" not in said:
        raise Failure(f"the kernel is not locked down: {said}")
    demand(
        mine, "lockdown", Refusal("registers under lockdown", "convert_to_kvm", ("pcie_acs", "locked down (integrity)"))
    )
    played = mine.must_play("without", "check_host", variables={"kvm_host_pcie_acs": {}})
    if "Nothing speaks against it" not in played.text:
        raise Failure(f"check-host does not say that nothing speaks against a conversion (log: {played.log})")


def settle(mine: Operator) -> None:
    progress.say(f"guests answer after {steady.settle(mine.server, progress.say)} resets")


def ask_lstopo(mine: Operator) -> None:
    """lstopo and the reader on the files of each guest's kernel."""
    for name in mine.server.copy_from("virsh --quiet list --name --state-running").decode().split():
        differing = on_server.guest_differences(mine.server, name)
        if differing:
            raise Failure(f"lstopo says otherwise of the guest {name}: {', '.join(differing)}")
        progress.say(f"{name}: lstopo and the reader agree in {len(CHECKS)} kinds of facts")


def flag_controls(mine: Operator) -> None:
    """Stop the right VM, boot each wrong one in its place, and demand that verify-vms flags it."""
    server = mine.server
    right = server.copy_from("virsh dumpxml --inactive train-8").decode()
    rows = server.copy_from(
        "cd /sys/bus/pci/devices && for d in *; do echo $d $(cat $d/vendor $d/device); done"
    ).decode()
    gpus, nics = (controls.bdfs(rows, ids) for ids in controls.GPU_AND_NIC)
    mine.must_play("controls-stop", "stop_vms", variables={"vms": "train-8"})
    for control in controls.CONTROLS:
        xml, broken = controls.definition(control, right, gpus, nics)
        created = server.run("cat > /run/control.xml && virsh create /run/control.xml", timeout=600, data=xml)
        if created.returncode:
            raise Failure(f"{control.title}: the VM does not start: {created.stderr.strip()}")
        settle(mine)
        folder = mine.folder / "controls"
        played = mine.play(
            control.name, "verify_vms", variables={"vms": control.name, "topovirt_report_dir": str(folder)}
        )
        server.copy_from(f"virsh destroy {control.name}; rm -f /run/control.xml")
        found = folder / server.machine_name / f"{control.name}.json"
        if not found.is_file():
            raise Failure(f"{control.title}: verify-vms did not get to compare: {played.reason}")
        why = controls.objection(control, broken, json.loads(found.read_text(encoding="utf-8")))
        if why or not played.status:
            raise Failure(f"{control.title} was not flagged as it must be: {why or 'verify-vms passed'}")
        progress.say(f"{control.title}: flagged. {played.reason}")


def tenants(mine: Operator) -> None:
    """From one large VM to two tenants, the second beside the first."""
    mine.must_play("delete-one", "delete_vms", variables={"vms": "all"})
    mine.write_inventory(story.variables(mine.images(), str(mine.reports)) | story.SHARED_FABRIC)
    mine.must_play("share", "convert_to_kvm")
    for number, requests in enumerate((story.FIRST_TENANT, story.TWO_TENANTS), start=1):
        mine.must_play(f"deploy-tenant-{number}", "deploy_vms", variables=requests)
        settle(mine)
    mine.must_play("verify-tenants", "verify_vms")


def before(mine: Operator) -> dict[str, Any]:
    """What create recorded."""
    found: dict[str, Any] = json.loads((mine.folder / BEFORE).read_text(encoding="utf-8"))
    return found


def as_before(mine: Operator) -> None:
    differences = manifest.compare(before(mine), record(mine.server))
    if differences:
        raise Failure("not as before: " + "; ".join(differences[:20]))


def trial(step: Callable[[Operator, dict[str, Any]], None]) -> Callable[[Operator], None]:
    return lambda mine: step(mine, before(mine))


def destroy(mine: Operator) -> None:
    mine.server.down()


STEPS: dict[str, Callable[[Operator], None]] = {
    "create": create, "agree": agree, "in-use": refuse_used_devices, "no-iommu": refuse_without_iommu,
    "lockdown": refuse_under_lockdown, "alone": alone.run,
    "predict": predict, "refuse": refuse, "settle": settle, "guest-lstopo": ask_lstopo, "controls": flag_controls,
    "tenants": tenants, "truth": prove, "truth-back": truth.back, "sriov": sriov.prove,
    **{name: trial(step) for name, step in trials.STEPS.items()},
    "as-before": as_before, "destroy": destroy,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("scenario", choices=SETTINGS, nargs="?", default="hgx-h200")
    options = parser.parse_args()
    try:
        STEPS[options.step](operator(options.scenario))
    except (Failure, TwinError) as failure:
        print(f"{options.step}: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
