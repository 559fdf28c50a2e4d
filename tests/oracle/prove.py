# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every batch on a host: the solver's answer beside the oracle's."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from ansible_collections.topovirt.kvm.plugins.module_utils._errors import TopovirtError

from tests.oracle.hosts import MOST_GPUS, Host, multisets
from tests.oracle.optimum import Count, Oracle
from tests.oracle.subject import Place
from tests.oracle.truth import Wanted
from tests.oracle.verdict import Fault, fault


def judged(host: Host, place: Place, count: Count, most: int = MOST_GPUS) -> Iterator[tuple[list[Wanted], Fault]]:
    """Batches of every multiset of sizes, in an order of their own each, that are not answered with the best there is.

    :param count: what was looked at is added to it.
    :param most: GPUs of the largest batch.
    """
    truth = host.truth()
    oracle = Oracle(truth, count)
    random = Random(host.name)
    for sizes in multisets(most):
        batch = host.batch(tuple(random.sample(sizes, len(sizes))))
        best = oracle.best(batch)
        try:
            found = fault(truth, batch, place(batch), best)
        except TopovirtError as error:
            found = Fault(0, f"undecided: {error}")
        if found is not None:
            yield batch, found
