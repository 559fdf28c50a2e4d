# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Vital product data as an adapter stores them (PCI Local Bus Specification 3.0, appendix I)."""

from __future__ import annotations

from tests.twin.description import Vpd

# Large resources: a tag of one byte, a length of two. The end is a small resource without content.
PRODUCT_NAME = 0x82
READ_ONLY = 0x90
END = 0x78


def encode(vpd: Vpd) -> bytes:
    """Name, read-only fields, and the checksum that ends them: all bytes up to and with it add up to zero."""
    fields = b"".join(_field(keyword, value.encode("ascii")) for keyword, value in vpd.fields.items())
    checksum_field = b"RV\x01"
    head = _large(PRODUCT_NAME, vpd.name.encode("ascii"))
    # The length counts the checksum, which is not known yet but as a zero does not change the sum.
    sum_without = sum(head + _large(READ_ONLY, fields + checksum_field + b"\0"))
    return head + _large(READ_ONLY, fields + checksum_field + bytes([-sum_without & 0xFF])) + bytes([END])


def _field(keyword: str, value: bytes) -> bytes:
    return keyword.encode("ascii") + bytes([len(value)]) + value


def _large(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + len(content).to_bytes(2, "little") + content
