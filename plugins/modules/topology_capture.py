#!/usr/bin/python
# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: topology_capture
short_description: Record what the reader of topologies reads, in a file that may be given away
version_added: 0.1.0
author:
  - the topovirt.kvm authors (@topovirt)
description:
  - Writes an archive of exactly the files below V(/sys), V(/proc) and V(/etc) that M(topovirt.kvm.topology_info) needs
    to read the machine. As it is, or unpacked anywhere, O(topovirt.kvm.topology_info#module:root) reads it back.
  - What names a machine is left out unless O(identifiers) is set. Values of kernel parameters that have nothing to do
    with topology, isolation or passthrough are replaced by V(hidden), the id of the boot by zeros, vital product data
    by the mark of a fabric bridge or nothing, interfaces named after their address by a running number.
  - What the host uses itself (mounts, routes, open files) is not part of a capture.
  - Module ids of GPUs are kept in the archive when they are known.
  - Needs C(sh), C(tar) and C(gzip) on the host, and root for the kinds of PCIe ports.
options:
  dest:
    description:
      - File on the host that is written, with the ending C(.tar.gz). Its directory must exist.
    type: path
    required: true
  root:
    description:
      - Directory below which V(/sys), V(/proc) and V(/etc) are read.
    type: path
    default: /
  identifiers:
    description:
      - Keep what names the machine.
    type: bool
    default: false
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
  diff_mode:
    description: Will return details on what has changed or would change.
    support: none
    details:
      - The file is an archive.
  platform:
    description: Where the module runs.
    support: full
    platforms: posix
seealso:
  - module: topovirt.kvm.topology_info
"""

EXAMPLES = r"""
- name: Record the machine
  topovirt.kvm.topology_capture:
    dest: /var/tmp/node17.tar.gz
  become: true

- name: Fetch the recording
  ansible.builtin.fetch:
    src: /var/tmp/node17.tar.gz
    dest: captures/
    flat: true
"""

RETURN = r"""
path:
  description: The file.
  returned: success
  type: str
  sample: /var/tmp/node17.tar.gz
bytes:
  description: Its size.
  returned: success
  type: int
  sample: 41230
"""

import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.capture import script
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.face import ARGUMENT_SPEC, read_for
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.publish import answers, repack
from ansible_collections.topovirt.kvm.plugins.module_utils._topology.sysfs import Tree


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "dest": {"type": "path", "required": True},
            "root": ARGUMENT_SPEC["root"],
            "identifiers": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    dest, root = Path(module.params["dest"]), Path(module.params["root"])
    if not dest.parent.is_dir():
        module.fail_json(msg=f"dest: {dest.parent} is no directory on the host. Make it first.")
    if dest.is_dir():
        module.fail_json(msg=f"dest: {dest} is a directory. Give the path of a file.")
    status, archive, errors = module.run_command(["/bin/sh", "-c", script(str(root))], encoding=None)
    if status != 0:
        module.fail_json(
            msg=f"The machine below {root} cannot be captured: {errors.decode('utf-8', 'replace').strip()}"
        )
    try:
        data = repack(archive, answers(Tree(root), read_for(module)), module.params["identifiers"])
    except TopovirtError as error:
        module.fail_json(msg=str(error))
    try:
        changed = not dest.is_file() or dest.read_bytes() != data
        if changed and not module.check_mode:
            with tempfile.NamedTemporaryFile(dir=module.tmpdir, delete=False) as file:
                file.write(data)
            module.atomic_move(file.name, str(dest))
            os.chmod(dest, 0o600)
    except OSError as error:
        module.fail_json(msg=f"{dest} cannot be written: {error.strerror}")
    module.exit_json(changed=changed, path=str(dest), bytes=len(data))


if __name__ == "__main__":
    main()
