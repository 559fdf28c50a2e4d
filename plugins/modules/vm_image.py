#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_image
short_description: Bring a boot source of VMs to the host
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Makes a kernel, an initial RAM disk or a disk image present below C(/var/lib/libvirt/images/topovirt), where libvirt
    may read it.
  - An image appears whole or not at all. One that is present already is left alone.
  - With O(backing) it makes the overlay that one VM writes to, so that several VMs can share one image.
options:
  name:
    description:
      - Path of the image below C(/var/lib/libvirt/images/topovirt).
    type: str
    required: true
  src:
    description:
      - Path of a file on the controller, absolute or found like that of M(ansible.builtin.copy).
      - It is sent only when the host does not have the same content.
    type: str
  path:
    description:
      - Absolute path of a file on the host that is copied.
    type: str
  url:
    description:
      - Address that the image is fetched from, by the host. Needs O(checksum).
    type: str
  checksum:
    description:
      - What the image must be, as C(sha256:) and the digest in hexadecimal.
    type: str
  backing:
    description:
      - O(name) of the image that an overlay in qcow2 format is made over.
      - An overlay that exists holds data of a VM and is never made again.
    type: str
  backing_format:
    description:
      - Format of that image.
    type: str
    choices: [qcow2, raw]
    default: qcow2
  size:
    description:
      - Size of the overlay as C(qemu-img) takes it, for example V(100G). Without it that of the image below.
    type: str
  mode:
    description:
      - Permissions of the image, as an octal number in quotes. Those of an overlay belong to libvirt.
    type: str
    default: '0644'
attributes:
  action:
    description: Has a corresponding action plugin, so that parts of the options can be executed on the controller.
    support: full
  async:
    description: Supports being used with the C(async) keyword.
    support: none
  check_mode:
    description: Can run in check mode and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Will return details on what has changed or would change.
    support: partial
    details:
      - The difference names the file; contents of images are not shown.
  platform:
    description: Where the module runs.
    support: full
    platforms: posix
requirements:
  - C(qemu-img) on the host, for O(backing)
"""

EXAMPLES = r"""
- name: Fetch a cloud image
  topovirt.kvm.vm_image:
    name: debian-13.qcow2
    url: https://images.example.org/debian-13.qcow2
    checksum: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

- name: Send a kernel
  topovirt.kvm.vm_image:
    name: images/tiny/kernel
    src: files/vmlinuz

- name: Make the disk of one VM over it
  topovirt.kvm.vm_image:
    name: vms/train-0/root.qcow2
    backing: debian-13.qcow2
    size: 100G
"""

RETURN = r"""
path:
  description: Absolute path of the image on the host.
  returned: success
  type: str
  sample: /var/lib/libvirt/images/topovirt/debian-13.qcow2
actions:
  description: What was done or would be done.
  returned: success
  type: list
  elements: str
send:
  description: Whether the content of O(src) had to be sent.
  returned: success
  type: bool
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._libvirt.images import Image, ensure_image


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "src": {"type": "str"},
            "path": {"type": "str"},
            "url": {"type": "str"},
            "checksum": {"type": "str"},
            "backing": {"type": "str"},
            "backing_format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
            "size": {"type": "str"},
            "mode": {"type": "str", "default": "0644"},
        },
        mutually_exclusive=[["src", "path", "url", "backing"]],
        required_one_of=[["src", "path", "url", "backing"]],
        supports_check_mode=True,
    )
    try:
        image = Image(**{**module.params, "mode": int(module.params["mode"], 8)})
        result = ensure_image(Path("/"), image, open_url, module.run_command, module.check_mode)
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    except ValueError as error:
        # A mode that is no octal number, or an address that open_url does not understand.
        module.fail_json(msg=f"Image '{module.params['name']}': {error}.")
    done = "".join(f"{action}\n" for action in result["actions"])
    module.exit_json(**result, diff={"before": "", "after": done})


if __name__ == "__main__":
    main()
