# Copyright: the topovirt.kvm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The best placement of a batch by trying all of them, as docs/reference/placement.md says what is best.

VMs are placed one after the other, largest first. What was placed so far matters to the rest only by which GPUs are
gone and by how many NICs and NVMe devices the GPUs of each kind have been promised: GPUs are of one kind when they are
equally far from every unit, and who gets which unit is settled for all at once at the end, by trying all. So placements
that agree in this are one *state*, of which the cheapest is kept (:meth:`Oracle._states`). Nothing is left out by that:
costs and nodes of VMs are sums, and the capacity left depends on the state alone. States that an exchange of GPUs makes
equal are one too, if the exchange is proven to change nothing (:mod:`tests.oracle.symmetry`).

States are dropped early by one bound. No unit costs less than the cheapest pair of the host; *excess* is what a state
costs beyond that price for each of its units. It never shrinks when VMs are added: without their units, what is left is
a way to keep the promises made before, and each unit taken away cost that price at least. The search is repeated with
more and more excess allowed until it finds a placement; all that exceed by no more were then seen, so the best was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from math import comb, inf

from tests.oracle.symmetry import changes_nothing, exchange, exchanges
from tests.oracle.truth import ROLES, Truth, Unit, Wanted, least_cost, pairs_tied

ALLOWED_EXCESS = (0, 3, 8, 20, inf)
_BITS = 6  # of a packed vector's element: promised units of one kind of GPUs
_ITEM = (1 << _BITS) - 1

State = tuple[int, int, int]  # GPUs gone, bit by bit; NICs promised by kind of GPU; NVMe devices likewise
Key = tuple[int, int, tuple[int, ...]]  # levels 1 to 3, all the less the better


@dataclass(frozen=True)
class Optimum:
    """The best there is."""

    key: Key
    sets: tuple[frozenset[str], ...]  # GPUs of each VM in the order of the batch; level 4 decides among equals


@dataclass
class Count:
    """How much was looked at."""

    batches: int = 0
    refused: int = 0  # batches among them that fit nowhere
    placements: int = 0  # ways to give each VM of each batch its GPUs that keep the hard constraints
    steps: int = 0  # ways to add one VM to a state


@dataclass(frozen=True)
class _Item:
    """A VM of the batch and the units, tied to each other only, that are set aside for it."""

    wanted: Wanted
    claims: frozenset[frozenset[str]] = frozenset()


class _Swap:
    """A proven exchange of GPUs as an operation on packed states.

    :param there: bit of a GPU -> bit of the one in whose place it is, for all.
    :param kinds: kind of GPUs that become another -> that other.
    """

    def __init__(self, there: Sequence[int], kinds: Mapping[int, int]) -> None:
        self.low, self.high = (
            [
                sum(1 << there[start + bit] for bit in range(min(8, len(there) - start)) if byte >> bit & 1)
                for byte in all_
            ]
            for start, all_ in ((0, range(256)), (8, range(256)))
        )
        self.moves = [(old * _BITS, new * _BITS) for old, new in kinds.items()]
        self.stays = ~sum(_ITEM << at for at, _to in self.moves)

    def _moved(self, promised: int) -> int:
        result = promised & self.stays
        for at, to in self.moves:
            result |= (promised >> at & _ITEM) << to
        return result

    def least(self, state: State) -> State:
        """The lesser of the state and its image."""
        gone, nics, nvmes = state
        image = self.low[gone & 255] | self.high[gone >> 8]
        if image > gone:
            return state
        return min(state, (image, self._moved(nics), self._moved(nvmes)))


@dataclass
class Oracle:
    """Answers for one host. What one batch needed to know helps with the next that begins alike."""

    truth: Truth
    count: Count = field(default_factory=Count)

    def __post_init__(self) -> None:
        truth = self.truth
        self.order = sorted(truth.free)
        self.bit = {gpu: 1 << index for index, gpu in enumerate(self.order)}
        self.all = (1 << len(self.order)) - 1
        self.tied = sorted(pairs_tied(truth), key=min)
        kinds: dict[tuple[int, ...], int] = {}
        self.kind = [kinds.setdefault(tuple(unit.cost[gpu] for unit in truth.units), len(kinds)) for gpu in self.order]
        self.first_of_kind = [self.order[self.kind.index(kind)] for kind in range(len(kinds))]
        self.cheapest = {
            role: min((unit.cost[gpu] for unit in truth.units if unit.role == role for gpu in self.order), default=0)
            for role in ROLES
        }
        free = truth.free
        self.loose = {
            role: [
                unit
                for unit in truth.units
                if unit.role == role and unit.group.isdisjoint(truth.gpus) and unit.group not in self.tied
            ]
            for role in ROLES
        }
        self.node_masks = [
            (sum(self.bit[gpu] for gpu in free if truth.node_of[gpu] == node), room)
            for node, room in truth.room.items()
        ]
        self.block_masks = Counter((len(block), self.mask(block)) for block in truth.blocks if block <= free)
        self.block_sizes = sorted({len(block) for block in truth.blocks}, reverse=True)
        self.swaps = list(self._swaps())
        self.alike = self._alike()
        self._tables: dict[tuple[tuple[_Item, ...], float], dict[State, tuple[int, int]]] = {}
        # What depends on few values is remembered.
        self.capacity = cache(self._capacity)
        self.fits = cache(self._fits)
        self.nodes_of = cache(self._nodes_of)
        self.choices = cache(self._choices)
        self.promises = cache(self._promises)
        self.canonical = cache(self._canonical)
        self.ways = cache(self._ways)
        self.price = {role: self._pricer(self.loose[role]) for role in ROLES}

    def mask(self, gpus: frozenset[str]) -> int:
        return sum(self.bit[gpu] for gpu in gpus)

    def names(self, mask: int) -> frozenset[str]:
        return frozenset(gpu for gpu in self.order if self.bit[gpu] & mask)

    # --- what is the same ---

    def _swaps(self) -> Iterator[_Swap]:
        """Proven exchanges, as far as GPUs of a kind become GPUs of one kind again."""
        for there in exchanges(self.truth):
            after = [self.order.index(there.get(gpu, gpu)) for gpu in self.order]
            kinds = {(self.kind[old], self.kind[new]) for old, new in enumerate(after)}
            if len({old for old, _new in kinds}) == len(kinds):
                yield _Swap(after, {old: new for old, new in kinds if old != new})

    def _alike(self) -> list[list[int]]:
        """GPUs that only go together (one IOMMU group) as masks, in lists of which any two can change places."""
        atoms = sorted({self.truth.group_of[gpu] & self.truth.free for gpu in self.order}, key=min)
        lists: list[list[frozenset[str]]] = []
        for atom in atoms:
            for known in lists:
                if len(known[0]) == len(atom) and changes_nothing(self.truth, exchange(sorted(atom), sorted(known[0]))):
                    known.append(atom)
                    break
            else:
                lists.append([atom])
        return [[self.mask(atom) for atom in known] for known in lists]

    def _canonical(self, state: State) -> State:
        for swap in self.swaps:
            state = swap.least(state)
        return state

    # --- GPUs ---

    def _capacity(self, gone: int) -> tuple[int, ...]:
        left = (self.all & ~gone).bit_count()
        whole = Counter[int]()
        for (size, block), times in self.block_masks.items():
            if not block & gone:
                whole[size] += times
        return tuple(-min(whole[size], left // size) for size in self.block_sizes)

    def _fits(self, gone: int) -> bool:
        return all((gone & mask).bit_count() <= room for mask, room in self.node_masks)

    def _nodes_of(self, chosen: int) -> int:
        return sum(bool(chosen & mask) for mask, _room in self.node_masks)

    def rank(self, chosen: int) -> tuple[int, ...]:
        """What level 4 compares."""
        return tuple(index for index in range(len(self.order)) if chosen >> index & 1)

    def _choices(self, free: int, size: int) -> list[tuple[int, int]]:
        """Sets of so many free GPUs that the fabric allows, as masks, and how many sets each stands for."""
        truth = self.truth
        if truth.model == "shared_nvswitch":
            found = [(self.mask(chosen), 1) for chosen in truth.sets if len(chosen) == size and truth.allowed(chosen)]
            return [(chosen, times) for chosen, times in found if not chosen & ~free]
        if truth.model == "full_passthrough" and size > 1:
            whole = len(self.order) == len(truth.gpus) == size and free == self.all and truth.allowed(truth.free)
            return [(self.all, 1)] if whole else []
        found = []
        there = [[atom for atom in atoms if not atom & ~free] for atoms in self.alike]

        def draw(index: int, left: int, chosen: int, times: int) -> None:
            if left == 0:
                found.append((chosen, times))
            elif index < len(there):
                atoms = there[index]
                for number in range(len(atoms) + 1):
                    taken = sum(atoms[:number])
                    if taken.bit_count() > left:
                        break
                    draw(index + 1, left - taken.bit_count(), chosen | taken, times * comb(len(atoms), number))

        draw(0, size, 0, 1)
        return [(chosen, times) for chosen, times in found if truth.allowed(self.names(chosen))]

    def _ways(self, sizes: tuple[int, ...]) -> dict[int, int]:
        """GPUs gone after VMs of these sizes -> number of ways to get there or to what is the same."""
        if not sizes:
            return {0: 1}
        found = Counter[int]()
        for gone, times in self.ways(sizes[:-1]).items():
            for chosen, more in self.choices(self.all & ~gone, sizes[-1]):
                self.count.steps += 1
                if self.fits(gone | chosen):
                    found[self.canonical((gone | chosen, 0, 0))[0]] += times * more
        return dict(found)

    # --- units ---

    def _pricer(self, units: Sequence[Unit]) -> Callable[[int], float]:
        """Packed promises -> least cost of keeping them, each unit going to any kind of GPU or to none."""
        costs = [[unit.cost[gpu] for gpu in self.first_of_kind] for unit in units]

        @cache
        def price(index: int, promised: int) -> float:
            if not promised:
                return 0
            if index == len(costs):
                return inf
            best = price(index + 1, promised)
            for kind, cost in enumerate(costs[index]):
                if promised >> kind * _BITS & _ITEM:
                    best = min(best, cost + price(index + 1, promised - (1 << kind * _BITS)))
            return best

        return lambda promised: price(0, promised)

    def _promises(self, chosen: int, item: _Item) -> list[tuple[int, int, int]]:
        """Ways to promise a VM its units: NICs, NVMe devices, and the cost of units that only it can have."""
        nics, nvmes = (self._promises_of(role, chosen, item) for role in ROLES)
        return [(nic, nvme, own + more) for (nic, own), (nvme, more) in product(nics, nvmes)]

    def _promises_of(self, role: str, chosen: int, item: _Item) -> list[tuple[int, int]]:
        count, gpus = item.wanted.of(role), self.names(chosen)
        most = -(-count // len(gpus))
        room = Counter(self.kind[index] for index in range(len(self.order)) if chosen >> index & 1)
        own = [
            unit
            for unit in self.truth.units
            if unit.role == role and (unit.group in item.claims or unit.group & gpus)  # free groups go as wholes
        ]
        found = []
        for used in range(min(count, len(own)) + 1):
            for parts in _parts([room[kind] * most for kind in sorted(room)], count - used):
                left = {
                    self.first_of_kind[kind]: room[kind] * most - part
                    for kind, part in zip(sorted(room), parts, strict=True)
                }
                cost = least_cost(left, own, used)
                if cost is not None:
                    packed = sum(part << kind * _BITS for kind, part in zip(sorted(room), parts, strict=True))
                    found.append((packed, cost))
        return found

    # --- batches ---

    def _promised(self, state: State) -> float:
        """Least cost of what was promised to the VMs of a state."""
        return self.price["nic"](state[1]) + self.price["nvme"](state[2])

    def _next(self, state: State, item: _Item) -> Iterator[tuple[int, State, int]]:
        """GPUs of one more VM, the state then, the cost of units that only the VM can have."""
        gone, nics, nvmes = state
        for chosen, _times in self.choices(self.all & ~gone, item.wanted.gpus):
            if self.fits(gone | chosen):
                for nic, nvme, own in self.promises(chosen, item):
                    yield chosen, (gone | chosen, nics + nic, nvmes + nvme), own

    def _states(self, items: tuple[_Item, ...], excess: float) -> dict[State, tuple[int, int]]:
        """States after these VMs -> least cost of units that only one VM can have, and least number of nodes then."""
        if not items:
            return {(0, 0, 0): (0, 0)}
        key = (items, excess)
        if key not in self._tables:
            found: dict[State, tuple[int, int]] = {}
            least = sum(self.cheapest[role] * item.wanted.of(role) for item in items for role in ROLES)
            for state, (own, nodes) in self._states(items[:-1], excess).items():
                for chosen, then, more in self._next(state, items[-1]):
                    self.count.steps += 1
                    cost = self._promised(then)
                    if cost == inf or own + more + cost - least > excess:
                        continue
                    there = self.canonical(then)
                    value = (own + more, nodes + self.nodes_of(chosen))
                    if there not in found or value < found[there]:
                        found[there] = value
            self._tables[key] = found
        return self._tables[key]

    def _key(self, state: State, value: tuple[int, int]) -> Key:
        return value[0] + int(self._promised(state)), value[1], self.capacity(state[0])

    def _best_key(self, items: tuple[_Item, ...]) -> Key | None:
        """Levels 1 to 3 of the best."""
        for excess in ALLOWED_EXCESS:
            states = self._states(items, excess)
            if states:
                return min(self._key(state, value) for state, value in states.items())
        return None

    def _first(self, items: tuple[_Item, ...], key: Key) -> list[int]:
        """Level 4: GPUs of each VM, of all placements with this key."""
        rest = [
            sum(self.cheapest[role] * item.wanted.of(role) for item in items[number:] for role in ROLES)
            for number in range(len(items) + 1)
        ]

        @cache
        def leads(number: int, state: State, own: int, nodes: int) -> bool:
            """Can the key be reached from here? Exchanged states answer alike; each VM to come has a node at least."""
            if own + self._promised(state) + rest[number] > key[0] or nodes + len(items) - number > key[1]:
                return False
            if number == len(items):
                return self._key(state, (own, nodes)) == key
            return any(
                leads(number + 1, self.canonical(then), own + more, nodes + self.nodes_of(chosen))
                for chosen, then, more in self._next(state, items[number])
            )

        result: list[int] = []
        reached: set[tuple[State, int, int]] = {((0, 0, 0), 0, 0)}
        for number, item in enumerate(items):
            by_set: dict[int, set[tuple[State, int, int]]] = {}
            for state, own, nodes in reached:
                for chosen, then, more in self._next(state, item):
                    by_set.setdefault(chosen, set()).add((then, own + more, nodes + self.nodes_of(chosen)))
            for chosen in sorted(by_set, key=self.rank):
                reached = {
                    (then, own, nodes)
                    for then, own, nodes in by_set[chosen]
                    if leads(number + 1, self.canonical(then), own, nodes)
                }
                if reached:
                    result.append(chosen)
                    break
        return result

    def best(self, batch: Sequence[Wanted]) -> Optimum | None:
        """The best placement; None when the batch fits nowhere."""
        self.count.batches += 1
        found = self._best(batch)
        self.count.refused += found is None
        return found

    def _best(self, batch: Sequence[Wanted]) -> Optimum | None:
        order = sorted(range(len(batch)), key=lambda index: -batch[index].gpus)
        if sum(wanted.gpus for wanted in batch) > len(self.order):
            return None
        self.count.placements += sum(self.ways(tuple(batch[index].gpus for index in order)).values())
        for role in ROLES:
            if sum(wanted.of(role) for wanted in batch) > sum(unit.role == role for unit in self.truth.units):
                return None
        if not self.ways(tuple(batch[index].gpus for index in order)):
            return None
        found: list[tuple[Key, list[tuple[int, ...]], list[int]]] = []
        for owners in product(range(len(batch)), repeat=len(self.tied)):
            items = tuple(
                _Item(
                    batch[index],
                    frozenset(group for group, owner in zip(self.tied, owners, strict=True) if owner == place),
                )
                for place, index in enumerate(order)
            )
            key = self._best_key(items)
            if key is not None and (not found or key <= min(found)[0]):
                chosen = self._first(items, key)
                found.append((key, [self.rank(mask) for mask in chosen], chosen))
        if not found:
            return None
        best, _ranks, chosen = min(found)
        by_place = dict(zip(order, chosen, strict=True))
        return Optimum(best, tuple(self.names(by_place[index]) for index in range(len(batch))))


def _parts(most: Sequence[int], count: int) -> Iterator[tuple[int, ...]]:
    """All ways to write ``count`` as a sum of numbers from 0 to ``most`` each."""
    if not most:
        if count == 0:
            yield ()
        return
    for first in range(min(most[0], count) + 1):
        if count - first <= sum(most[1:]):
            for rest in _parts(most[1:], count - first):
                yield (first, *rest)
