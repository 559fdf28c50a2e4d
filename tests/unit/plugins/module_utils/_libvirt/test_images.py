# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from pathlib import Path
from typing import IO, Any

import pytest
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.images import Image, ensure_image

HOME = "var/lib/libvirt/images/topovirt"
KERNEL = b"a kernel"
SUM = "sha256:" + hashlib.sha256(KERNEL).hexdigest()


class Host:
    """A root directory, a network with one file, and a qemu-img that makes overlays as JSON."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sent = KERNEL
        self.fetched: list[str] = []
        (root / "srv").mkdir()
        (root / "srv/vmlinuz").write_bytes(KERNEL)

    def fetch(self, url: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        self.fetched.append(url)
        return contextlib.closing(io.BytesIO(self.sent))

    def qemu_img(self, command: list[str]) -> tuple[int, str, str]:
        assert command[0] == "qemu-img"
        if command[1] == "info":
            return 0, Path(command[-1]).read_text(), ""
        backing = command[command.index("-b") + 1]
        Path(command[command.index(backing) + 1]).write_text(json.dumps({"backing-filename": backing}))
        return 0, "", ""

    def ensure(self, check: bool = False, **given: Any) -> dict[str, Any]:
        return ensure_image(self.root, Image(**given), self.fetch, self.qemu_img, check)

    def files(self) -> dict[str, bytes]:
        home = self.root / HOME
        return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize(
    "source", [{"path": "/srv/vmlinuz"}, {"url": "https://example.org/vmlinuz", "checksum": SUM}], ids=["path", "url"]
)
def test_present_once_and_as_predicted(host: Host, source: dict[str, Any]) -> None:
    predicted = host.ensure(check=True, name="k/vmlinuz", **source)
    assert host.files() == {} and host.fetched == []
    assert host.ensure(name="k/vmlinuz", **source) == predicted
    assert predicted["changed"] is True and predicted["send"] is False
    assert predicted["path"] == f"/{HOME}/k/vmlinuz" and predicted["actions"] == [f"write /{HOME}/k/vmlinuz"]
    assert host.files() == {"k/vmlinuz": KERNEL}
    assert (host.root / HOME / "k/vmlinuz").stat().st_mode & 0o777 == 0o644
    assert host.ensure(name="k/vmlinuz", **source)["changed"] is False
    assert len(host.fetched) <= 1


def test_a_file_of_the_controller_is_asked_for_only_when_it_is_missing(host: Host) -> None:
    wanted: dict[str, Any] = {"name": "vmlinuz", "src": "/on/the/controller", "checksum": SUM}
    assert host.ensure(**wanted)["send"] is True
    assert host.files() == {}
    host.ensure(name="vmlinuz", path="/srv/vmlinuz", checksum=SUM)
    assert host.ensure(**wanted) == {"changed": False, "path": f"/{HOME}/vmlinuz", "actions": [], "send": False}


def test_directories_can_be_searched_whatever_the_umask(host: Host) -> None:
    old = os.umask(0o077)
    try:
        host.ensure(name="images/tiny/vmlinuz", path="/srv/vmlinuz")
    finally:
        os.umask(old)
    for place in ("", "images", "images/tiny"):
        assert (host.root / HOME / place).stat().st_mode & 0o777 == 0o711
    assert (host.root / HOME / "images/tiny/vmlinuz").stat().st_mode & 0o777 == 0o644


def test_a_source_that_changed_is_copied_again(host: Host) -> None:
    host.ensure(name="vmlinuz", path="/srv/vmlinuz")
    (host.root / "srv/vmlinuz").write_bytes(b"a newer kernel")
    assert host.ensure(name="vmlinuz", path="/srv/vmlinuz")["changed"] is True
    assert host.files() == {"vmlinuz": b"a newer kernel"}


def test_the_mode_is_kept_right(host: Host) -> None:
    host.ensure(name="vmlinuz", path="/srv/vmlinuz")
    (host.root / HOME / "vmlinuz").chmod(0o600)
    assert host.ensure(name="vmlinuz", path="/srv/vmlinuz")["actions"] == [f"set mode of /{HOME}/vmlinuz to 0644"]
    assert host.ensure(name="vmlinuz", path="/srv/vmlinuz")["changed"] is False


def test_what_arrives_wrong_is_not_kept_and_replaces_nothing(host: Host) -> None:
    source: dict[str, Any] = {"name": "vmlinuz", "url": "https://example.org/vmlinuz", "checksum": SUM}
    host.sent = b"something else"
    with pytest.raises(TopovirtError, match=r"has the checksum sha256:.*expected"):
        host.ensure(**source)
    assert host.files() == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": "/srv/none"}, "/srv/none does not exist on the host"),
        ({"path": "/srv"}, "/srv does not exist on the host or is no file"),
        ({"path": "srv/vmlinuz"}, "is not absolute"),
        ({"path": "/srv/vmlinuz", "checksum": "sha256:" + "0" * 64}, "another checksum"),
        ({"path": "/srv/vmlinuz", "checksum": "md5:abc"}, "not of the form sha256"),
        ({"url": "https://example.org/vmlinuz"}, "has no checksum"),
        ({"path": "/srv/vmlinuz", "name": "../escape"}, "not a path below"),
        ({"path": "/srv/vmlinuz", "name": "/etc/passwd"}, "not a path below"),
        ({"backing": "none.qcow2"}, r"none\.qcow2 below it does not exist"),
    ],
)
def test_refusals_change_nothing(host: Host, given: dict[str, Any], message: str) -> None:
    with pytest.raises(TopovirtError, match=message):
        host.ensure(**{"name": "vmlinuz", **given})
    assert host.files() == {}


def test_an_overlay_is_made_once_and_never_again(host: Host) -> None:
    host.ensure(name="base.qcow2", path="/srv/vmlinuz")
    host.ensure(name="other.qcow2", path="/srv/vmlinuz")
    overlay: dict[str, Any] = {"name": "vms/a/root.qcow2", "backing": "base.qcow2", "size": "1G"}
    assert host.ensure(check=True, **overlay)["changed"] is True
    assert "vms/a/root.qcow2" not in host.files()
    assert host.ensure(**overlay)["actions"] == [f"create /{HOME}/vms/a/root.qcow2"]
    made = host.files()
    assert host.ensure(**overlay)["changed"] is False
    with pytest.raises(TopovirtError, match=r"lies over .*base\.qcow2, wanted is .*other\.qcow2"):
        host.ensure(**{**overlay, "backing": "other.qcow2"})
    assert host.files() == made
