# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trial boots that fail, each in a way of its own, and one that does not.

Nobody touches the server between its reboot and the moment when it answers again. How it is then is compared with
what was recorded before anything was done to it; that it failed as meant is read off its serial console.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from tests.demo.operator import Failure, Operator, Played, record
from tests.tools import manifest, progress
from tests.twin.lifecycle import Server
from tests.twin.qemu import SERIAL_LOG

SOON = 60  # seconds until an unconfirmed trial ends; the least that is allowed
LATER = 150  # enough for an emulated server to be verified
SLACK = 45  # from power-on to the start of what counts, and then some
BACK_SECONDS = 420
ASK_SECONDS = 20
PAUSE_SECONDS = 3
WORD = "topovirt.trial"
RECOVERED = re.compile(r"The trial boot of entry topovirt-\w+ failed, and the host recovered by itself")
PARTS = ("drivers", "hugepages", "cmdline")  # of a manifest

CRASH = "/etc/systemd/system/crash.service"
WANTED = "/etc/systemd/system/sysinit.target.wants/crash.service"
PANIC = f"""
cat > {CRASH} <<'END'
[Unit]
ConditionKernelCommandLine=topovirt
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo c > /proc/sysrq-trigger'
END
ln -s {CRASH} {WANTED}
"""
NO_PANIC = f"rm {CRASH} {WANTED}"

NO_ROOT = r"sed -i '/topovirt=/s/ root=[^ ]*/ root=\/dev\/nowhere rootdelay=5/' /boot/grub/custom.cfg"

# Early binding gets one more address, in an initramfs of its own; the menu entry is written anew by the next run.
IMAGE = "/boot/with-nic.img"
NO_NETWORK = rf"""
set -e
card=$(ip -o route get 10.0.2.2 | sed 's/.* dev \([^ ]*\).*/\1/')
nic=$(basename $(readlink -f /sys/class/net/$card/device))
folder=$(mktemp -d)
cp -a /var/lib/topovirt/initramfs-tools/. $folder
sed -i "s/^devices=\"/&$nic /" $folder/scripts/init-top/topovirt
grep -q "^devices=\"$nic " $folder/scripts/init-top/topovirt
mkinitramfs -d $folder -o {IMAGE} $(uname -r)
rm -r $folder
sed -i 's#/boot/topovirt-[^ ]*#{IMAGE}#' /boot/grub/custom.cfg
"""
NETWORK = f"rm {IMAGE}"


@dataclass(frozen=True)
class Sabotage:
    """A way for a trial boot to fail: commands on the server, and what its console then shows."""

    title: str
    do: str
    proof: tuple[str, ...]
    tidy: str = "true"


KERNEL_PANIC = Sabotage("a kernel panic", PANIC, ("Kernel panic - not syncing: sysrq triggered crash",), NO_PANIC)
ROOT_NOT_FOUND = Sabotage(
    "a root file system that is not found",
    NO_ROOT,
    ("/dev/nowhere does not exist", "Rebooting automatically due to panic= boot argument"),
)
NIC_TAKEN = Sabotage("a management NIC on vfio-pci", NO_NETWORK, (f"topovirt: not confirmed within {SOON} s",), NETWORK)


class Console:
    """The serial console from now on."""

    def __init__(self, server: Server) -> None:
        self.path = server.directory / SERIAL_LOG
        self.start = self.path.stat().st_size

    def missing(self, words: tuple[str, ...]) -> list[str]:
        said = self.path.read_bytes()[self.start :].decode(errors="replace")
        return [word for word in words if word not in said]


def boot_id(server: Server) -> str:
    """Of the boot that answers, empty when none does."""
    asked = server.run("cat /proc/sys/kernel/random/boot_id", timeout=ASK_SECONDS)
    return asked.stdout.strip() if asked.returncode == 0 else ""


def reboot(server: Server) -> float:
    """Reboot by SSH and wait for another boot to answer; returns the seconds.

    :raises Failure: none does.
    """
    before, begin = boot_id(server), time.monotonic()
    server.run("nohup sh -c 'sleep 1; systemctl reboot' > /dev/null 2>&1 &", timeout=ASK_SECONDS)
    while time.monotonic() - begin < BACK_SECONDS:
        time.sleep(PAUSE_SECONDS)
        now = boot_id(server)
        if now and now != before:
            return time.monotonic() - begin
    raise Failure(f"the server does not answer {BACK_SECONDS} s after its reboot")


def judge(mine: Operator, before: dict[str, Any], sabotage: Sabotage, console: Console, took: str) -> None:
    """It failed as meant, and the host is as it was.

    :raises Failure: otherwise.
    """
    missing = console.missing(sabotage.proof)
    if missing:
        raise Failure(f"{sabotage.title}: the console does not show {', '.join(missing)}")
    now = record(mine.server)
    differences = manifest.compare(before, {**before, **{part: now[part] for part in PARTS}})
    if differences:
        raise Failure(f"{sabotage.title}: not as before: {'; '.join(differences[:20])}")
    mine.server.copy_from(sabotage.tidy)
    progress.say(f"{sabotage.title}: the host answers again, {took}; {', '.join(PARTS)} as before")


def demand_words(played: Played, text: str) -> None:
    if not RECOVERED.search(" ".join(text.split())):
        raise Failure(f"nobody was told that the trial boot failed (log: {played.log})")


def panic(mine: Operator, before: dict[str, Any]) -> None:
    """The role itself reboots, and says what happened."""
    mine.server.copy_from(KERNEL_PANIC.do)
    console, begin = Console(mine.server), time.monotonic()
    played = mine.play("panic", "convert_to_kvm", variables={"kvm_host_confirm_timeout": SOON})
    if played.status == 0:
        raise Failure(f"a conversion whose trial boot panicked passed (log: {played.log})")
    demand_words(played, played.reason)
    progress.say(f"convert-to-kvm: {played.reason}")
    took = progress.clock(time.monotonic() - begin)
    judge(mine, before, KERNEL_PANIC, console, f"{took} after the start of the playbook")


def by_hand(mine: Operator, before: dict[str, Any], name: str, sabotage: Sabotage) -> None:
    """The role prepares another try, and is told of the last one's end; then the operator reboots."""
    variables = {"kvm_host_confirm_timeout": SOON, "kvm_host_reboot_ok": False}
    played = mine.must_play(name, "convert_to_kvm", variables=variables)
    demand_words(played, played.text)
    mine.server.copy_from(sabotage.do)
    console = Console(mine.server)
    took = progress.clock(reboot(mine.server))
    judge(mine, before, sabotage, console, f"{took} after its reboot began")


def no_root(mine: Operator, before: dict[str, Any]) -> None:
    by_hand(mine, before, "no-root", ROOT_NOT_FOUND)


def no_network(mine: Operator, before: dict[str, Any]) -> None:
    by_hand(mine, before, "no-network", NIC_TAKEN)


def outlive(server: Server, what: str) -> None:
    """Stay up for longer than an unconfirmed trial may.

    :raises Failure: another boot answers, or none.
    """
    boot = boot_id(server)
    uptime = float(server.copy_from("cut -d ' ' -f 1 /proc/uptime"))
    time.sleep(max(0.0, LATER + SLACK - uptime))
    if not boot or boot_id(server) != boot:
        raise Failure(f"{what} did not stay up for {LATER + SLACK} s")
    progress.say(f"{what}: up for more than {LATER + SLACK} s, where an unconfirmed trial may have {LATER} s")


def good(mine: Operator, before: dict[str, Any]) -> None:
    """Nobody interferes: it is confirmed, and lasts."""
    variables = {"kvm_host_confirm_timeout": LATER}
    mine.must_play("good", "convert_to_kvm", variables=variables)
    outlive(mine.server, "the confirmed trial boot")
    progress.say(f"the committed entry answers after {progress.clock(reboot(mine.server))}")
    words = mine.server.copy_from("cat /proc/cmdline").decode().split()
    if not any(word.startswith("topovirt=") for word in words) or WORD in words:
        raise Failure(f"the command line is not that of the committed entry: {' '.join(words)}")
    taken = [bdf for bdf, (driver, _override) in record(mine.server)["drivers"].items() if driver == "vfio-pci"]
    if not taken or [bdf for bdf in taken if before["drivers"][bdf][0] == "vfio-pci"]:
        raise Failure(f"these devices are on vfio-pci, and were not before: {', '.join(taken) or 'none'}")
    outlive(mine.server, "the committed entry")
    again = mine.must_play("again", "convert_to_kvm", variables=variables)
    if again.changed:
        raise Failure(f"a second run changed {again.changed} tasks (log: {again.log})")


STEPS = {"trial-panic": panic, "trial-no-root": no_root, "trial-no-network": no_network, "trial-good": good}
