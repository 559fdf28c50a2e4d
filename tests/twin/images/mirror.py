# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Debian mirror that this machine already uses: where it is, which versions it has, trees made from it."""

from __future__ import annotations

import hashlib
import lzma
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.twin.images import process
from tests.twin.images.process import KEYRING, BakeError

SUITE = "trixie"
BACKPORTS = "trixie-backports"
APT_HELPER = "/usr/lib/apt/apt-helper"
#: What of the machine's apt configuration decides how a mirror is reached.
ACCESS_OPTIONS = re.compile(r"^Acquire::(https?|ftp)::|^Acquire::(Retries|ForceIPv[46]) ")


def candidate_uris(index_targets: str) -> list[str]:
    """Archive addresses in order of trust, from ``apt-get indextargets`` lines of URI, label and component.

    Security and third-party archives do not carry the suites that are baked, so they do not count.
    """
    labelled, unlabelled = [], []
    for line in index_targets.splitlines():
        uri, label, component = [*line.split("\t"), "", ""][:3]
        if component != "main" or "security" in uri:
            continue
        if label == "Debian":
            labelled.append(uri)
        elif not label:  # never updated: the label is not known yet
            unlabelled.append(uri)
    return list(dict.fromkeys(labelled + unlabelled))


def parse_versions(packages_index: str, names: Iterable[str]) -> dict[str, str]:
    """Versions of the named packages in the text of a Packages index; names that are not there are left out."""
    wanted = set(names)
    found: dict[str, str] = {}
    for block in packages_index.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Package") in wanted:
            found[fields["Package"]] = fields.get("Version", "")
    return found


class Mirror:
    """One Debian archive, reached as apt reaches it (proxies and credentials included)."""

    def __init__(self, uri: str, access: Sequence[str] = ()) -> None:
        self.uri = uri if uri.endswith("/") else uri + "/"
        self.access = tuple(access)
        self._fetched: dict[str, bytes] = {}

    @classmethod
    def of_this_machine(cls) -> Mirror:
        """The first archive in apt's configuration that answers for the baked suite.

        :raises BakeError: there is none, or none answers.
        """
        form = "$(REPO_URI)\t$(LABEL)\t$(COMPONENT)"
        uris = candidate_uris(process.output(["apt-get", "indextargets", "--format", form]))
        if not uris:
            raise BakeError(
                "apt's configuration names no Debian archive with the component main; add one to its sources."
            )
        dump = process.output(["apt-config", "dump"]).splitlines()
        access = [line for line in dump if ACCESS_OPTIONS.match(line)]
        reasons = []
        for uri in uris:
            mirror = cls(uri, access)
            try:
                mirror.fetch(f"dists/{SUITE}/InRelease")
            except BakeError as error:
                reasons.append(f"{uri}: {error}")
            else:
                return mirror
        raise BakeError(f"No archive of apt's configuration answers for {SUITE}: {'; '.join(reasons)}")

    def fetch(self, path: str) -> bytes:
        """Content of a file of the archive, kept for the life of this object."""
        if path not in self._fetched:
            with tempfile.TemporaryDirectory() as folder:
                # apt's download user must be able to write here
                Path(folder).chmod(0o777)
                target = Path(folder) / "file"
                process.output([APT_HELPER, "-o", "Acquire::Retries=3", "download-file", self.uri + path, target])
                self._fetched[path] = target.read_bytes()
        return self._fetched[path]

    def state(self) -> str:
        """Digest of the stable suite; changes with its point releases only."""
        return hashlib.sha256(self.fetch(f"dists/{SUITE}/InRelease")).hexdigest()[:12]

    def versions(self, suite: str, names: Iterable[str]) -> dict[str, str]:
        """Versions of packages in a suite."""
        index = lzma.decompress(self.fetch(f"dists/{suite}/main/binary-amd64/Packages.xz")).decode()
        return parse_versions(index, names)

    def bootstrap(
        self,
        target: Path,
        variant: str,
        packages: Iterable[str],
        log_file: Path,
        *,
        suites: Sequence[str] = (SUITE,),
        hooks: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Make a tree with mmdebstrap. ``hooks``: pairs of stage (setup, customize) and command."""
        command = [
            "mmdebstrap",
            "--mode=root",
            f"--variant={variant}",
            "--architectures=amd64",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Retries "3"',
            f"--include={','.join(packages)}",
        ]
        command += [f"--aptopt={option}" for option in self.access]
        command += [f"--{stage}-hook={hook}" for stage, hook in hooks]
        lines = [f"deb [signed-by={KEYRING}] {self.uri} {suite} main" for suite in suites]
        process.run([*command, SUITE, target, *lines], log_file)


def installed(tree: Path) -> dict[str, str]:
    """Versions of the packages of a tree, from its dpkg database."""
    text = (tree / "var/lib/dpkg/status").read_text()
    names = re.findall(r"^Package: (.+)$", text, re.MULTILINE)
    return dict(sorted(parse_versions(text, names).items()))
