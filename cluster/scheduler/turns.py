"""Whose turn it is: tenants' lines in rounds, and the first of them whose head fits.

This is deficit round robin with its empty rounds skipped. In each round a tenant may use up
`quantum_tokens`. A turn is one task; whoever has something left of the round goes to its end, and
whoever has not goes to the end of the round in which they will: the one that their account, all that
they have used so far, divided by the quantum points at. So a round is a row of lines to which lines
are only ever appended, the order is by round and then by place, and nobody walks rounds in which
nobody may go.

A row knows the smallest need in each half, quarter, eighth … of itself (a segment tree). So the first
line whose head fits into what a worker has left is found in O(log n), and that there is none at once.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterator

from cluster.scheduler.state import TaskRecord

NEVER = 1 << 62
"""A need that nothing satisfies: a place that is empty."""
MAX_AHEAD = 256
"""Rounds a tenant can be made to sit out at most; so there are never more rows than this."""


class Line:
    """One tenant's waiting tasks of one model and tier, in order of arrival, and its account."""

    __slots__ = ("head", "need", "number", "place", "tasks", "tenant", "used_tokens")

    def __init__(self, tenant: str, used_tokens: int) -> None:
        self.tenant = tenant
        # Ordered dicts are O(1) at both ends and in the middle; a plain dict slows down when its
        # front is deleted again and again.
        self.tasks: OrderedDict[str, TaskRecord] = OrderedDict()
        self.used_tokens = used_tokens
        """What it has used in this contest: its own past, or where the others were when it came."""
        self.number = -1
        """The round it stands in; -1 while nothing of it waits."""
        self.place = -1
        self.head: TaskRecord
        """The first in the line; the last that was, when there is nobody."""
        self.need = NEVER
        """The tokens its head needs room for."""

    def move_up(self) -> None:
        """Let the first in the line be its head."""
        self.head = head = self.tasks[next(iter(self.tasks))]
        self.need = head.kv_tokens


class Row:
    """The lines of one round, in the order of their turns."""

    __slots__ = ("_front", "_lines", "_tree", "_width", "size")

    def __init__(self) -> None:
        self.size = 0
        self._width = 8
        self._lines: list[Line | None] = []
        self._front = 0
        self._tree = [NEVER] * 16
        """A node's children are at twice its index and the next; the leaves are the places."""

    def append(self, line: Line) -> None:
        """Put a line at the end."""
        if len(self._lines) == self._width:
            self._make_room()
        line.place = len(self._lines)
        self._lines.append(line)
        self.size += 1
        self._set(line.place, line.need)

    def remove(self, line: Line) -> None:
        """Take a line out."""
        self._lines[line.place] = None
        self.size -= 1
        self._set(line.place, NEVER)

    def update(self, line: Line) -> None:
        """Note that a line has another head."""
        self._set(line.place, line.need)

    def first(self) -> Line:
        """Return the line whose turn is next; there must be one."""
        lines = self._lines
        while (line := lines[self._front]) is None:
            self._front += 1
        return line

    def fitting(self, room_tokens: int, start: int = 0) -> Line | None:
        """Return the first line at or after a place whose head needs no more than that."""
        tree, width = self._tree, self._width
        if tree[1] > room_tokens or start >= width:
            return None
        node = 1
        if start:
            node = start + width
            while tree[node] > room_tokens:
                while node & 1:  # a right half: what is under its parent lies behind
                    node >>= 1
                if not node:
                    return None
                node += 1
        while node < width:
            node <<= 1
            if tree[node] > room_tokens:
                node += 1
        return self._lines[node - width]

    def __iter__(self) -> Iterator[Line]:
        return (line for line in self._lines if line is not None)

    def _set(self, place: int, need: int) -> None:
        tree = self._tree
        node = place + self._width
        tree[node] = need
        while node > 1:
            other = tree[node ^ 1]
            node >>= 1
            smaller = need if need < other else other
            if tree[node] == smaller:
                break
            tree[node] = need = smaller

    def _make_room(self) -> None:
        lines: list[Line | None] = []
        for line in self:
            line.place = len(lines)
            lines.append(line)
        self._lines, self._front = lines, 0
        while self._width < 2 * len(lines):
            self._width *= 2
        width = self._width
        tree = self._tree = [NEVER] * (2 * width)
        for line in self:
            tree[width + line.place] = line.need
        for node in range(width - 1, 0, -1):
            tree[node] = min(tree[2 * node], tree[2 * node + 1])


class Rounds:
    """The lines of one model and tier in the order in which they may go."""

    __slots__ = ("_numbers", "_quantum", "_rows", "current", "size")

    def __init__(self, quantum_tokens: int) -> None:
        self.size = 0
        self.current = 0
        """The latest round in which somebody had a turn: where newcomers stand."""
        self._quantum = quantum_tokens
        self._rows: dict[int, Row] = {}
        self._numbers: list[int] = []

    def __iter__(self) -> Iterator[Line]:
        for number in self._numbers:
            yield from self._rows[number]

    @property
    def origin_tokens(self) -> int:
        """The account of somebody who comes now: no debt, and no savings from when they were away."""
        return self.current * self._quantum

    def enter(self, line: Line) -> None:
        """Let a line with tasks take its place."""
        line.move_up()
        self._append(line)
        self.size += 1

    def leave(self, line: Line) -> None:
        """Take a line out that has nobody left."""
        self._remove(line)
        line.number = -1
        self.size -= 1

    def serve(self, line: Line, tokens: int) -> None:
        """Charge a line for its turn; its head has just been taken out."""
        number, row = line.number, self._rows[line.number]
        if number > self.current:
            self.current = number
        line.used_tokens += tokens
        row.remove(line)
        if line.tasks:
            line.move_up()
            if self._number(line) == number:
                row.append(line)
                return
            self._append(line)
        else:
            line.number = -1
            self.size -= 1
        if not row.size:
            self._drop(number)

    def settle(self, line: Line, tokens: int) -> None:
        """Correct a line's account by what it was charged too little, or, negative, too much."""
        # Less than a newcomer's account would be savings from the time it was away.
        least_tokens = min(line.used_tokens, self.origin_tokens)
        line.used_tokens = max(line.used_tokens + tokens, least_tokens)
        if line.number >= 0 and line.number != self._number(line):
            self._remove(line)
            self._append(line)

    def moved_up(self, line: Line) -> None:
        """Note that a line has lost its head without a turn."""
        line.move_up()
        self._rows[line.number].update(line)

    def first(self) -> Line | None:
        """Return the line whose turn is next, if there is any."""
        return self._rows[self._numbers[0]].first() if self._numbers else None

    def fitting(self, room_tokens: int) -> Iterator[Line]:
        """Yield the lines whose heads need no more than that, in order. Do not change them meanwhile."""
        for number in self._numbers:
            row = self._rows[number]
            line = row.fitting(room_tokens)
            while line is not None:
                yield line
                line = row.fitting(room_tokens, line.place + 1)

    def number_at(self, used_tokens: int) -> int:
        """Return the round that an account points at."""
        return min(used_tokens // self._quantum, self.current + MAX_AHEAD)

    def owes(self, line: Line) -> bool:
        """Return whether a line has used more than a newcomer's account says."""
        return line.used_tokens > self.origin_tokens

    def _number(self, line: Line) -> int:
        return self.number_at(line.used_tokens)

    def _append(self, line: Line) -> None:
        number = line.number = self._number(line)
        row = self._rows.get(number)
        if row is None:
            row = self._rows[number] = Row()
            insort(self._numbers, number)
        row.append(line)

    def _remove(self, line: Line) -> None:
        row = self._rows[line.number]
        row.remove(line)
        if not row.size:
            self._drop(line.number)

    def _drop(self, number: int) -> None:
        del self._rows[number]
        self._numbers.remove(number)
