"""An explicit-state model of the log's protocol, rules L1 to L4: one shard, one org, two or three nodes.

The rules, each of which can be switched off to see what it is for:

L1  A create that is answered with anything but success is decided by reading the object back: ours is won, another's is
    lost, absent is tried again with the same bytes. While the fate at a number is open, nothing joins or leaves the group.
L2  The floor, a number and the id of the object at it, is durable before anything at or under it is deleted. It only rises,
    and is raised by a node that has read and confirmed all that was there.
L3  What was read, present or absent, counts once a floor read after it is lower than the first number read since the last
    confirmation. A won create is acknowledged once a floor read after it is lower than its number.
L4  Each object names the one before, and each state the object at its position. A load lists the log, refuses a hole, and
    compares. What does not fit is held against a floor read after it before it counts as damage.

No clock plays a part. A node may stop before any operation of the store for as long as it likes, since the operations of
different nodes interleave freely; an operation that was answered with an error may take effect at any later step. What
lies under the newest states may be trimmed at once.

A configuration bounds how much can happen: batches, numbers of the log, faults, late effects, kills, tampering. `explore`
visits every state that can be reached within it, and stops at the first that breaks a promise:

- a node that says it is caught up has every batch acknowledged before it found the log's end, and none twice;
- all nodes agree on one order, and none skips a number;
- nothing is acknowledged that was created where another object had been trimmed: nobody would read it;
- on a store that nobody tampered with, no node stops.
"""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Iterator, NamedTuple

Obj = int
"""The number of an object in `_OBJECTS`; 0 if there is no object."""


class Bytes(NamedTuple):
    """What an object consists of, as far as two of them can differ."""

    writer: int
    batch: int
    previous: Obj
    number: int


_OBJECTS: list[Bytes] = [Bytes(-1, 0, 0, 0)]
_INDEX: dict[Bytes, Obj] = {}


def _intern(made: Bytes) -> Obj:
    found = _INDEX.get(made)
    if found is None:
        found = _INDEX[made] = len(_OBJECTS)
        _OBJECTS.append(made)
    return found


def _batch(obj: Obj) -> int:
    return _OBJECTS[obj].batch


class Node(NamedTuple):
    """One node. `step` is what it does next:

    `idle`, `create`, `readback` (after a create that was not answered with success), `won` (before the floor is read and the
    group acknowledged), `get` (the next object of the log), `end` (before the floor is read that confirms the end), `misfit`
    (before the floor is read that tells damage from being left behind), `load` (a state), `list` (the log), `stopped`.
    """

    step: str
    applied: tuple[Obj, ...]
    """The objects it has applied: its position is their number."""
    unconfirmed: int
    """The first number read since the last confirmation; 0 if all that was read is confirmed."""
    attempt: Obj
    """The object whose fate at the next number is open."""
    todo: tuple[int, ...]
    """Batches that it has yet to commit."""
    whole: bool
    """Whether it had every batch that had been acknowledged when it found the log's end."""
    exists: bool
    """Whether the create was answered "exists" rather than with an error."""


class State(NamedTuple):
    """Nodes and store. `log[n]` is the object at number n."""

    nodes: tuple[Node, ...]
    log: tuple[Obj, ...]
    top: int
    """The greatest number that was ever there."""
    floor: int
    under: Obj
    """The object at the floor, as the floor names it."""
    states: tuple[tuple[int, tuple[Obj, ...]], ...]
    late: tuple[tuple[int, Obj], ...]
    """Creates that were answered with an error and are under way."""
    acked: frozenset[int]
    order: tuple[Obj, ...]
    """The longest order that a node has confirmed."""
    dead: frozenset[Obj]
    """Objects created where another had been before: no reader sees them."""
    faults: int
    lates: int
    kills: int
    tampers: int
    """What may go wrong yet."""


@dataclass(frozen=True)
class Config:
    """What can happen, and which rules hold."""

    todo: tuple[tuple[int, ...], ...] = ((1, 3), (2,))
    """The batches of each node."""
    numbers: int = 4
    """The greatest number of the log."""
    keep: int = 1
    """The floor is at most the position of the state that is the `keep`th newest."""
    faults: int = 1
    lates: int = 1
    kills: int = 0
    tamper: str = ""
    """`hole`: an object is taken out of the log. `regrown`: the log is restored to an older moment and grows again."""
    L1: bool = True
    L2: bool = True
    L3: bool = True
    L4: bool = True

    def without(self, rule: str) -> Config:
        return replace(self, **{rule: False})


class Broken(Exception):
    """A promise is broken."""


class Stopped(Exception):
    """A node stops with an exact error, on a store that was tampered with."""


Step = tuple[str, State]


def initial(config: Config) -> State:
    nodes = tuple(Node("idle", (), 0, 0, todo, True, False) for todo in config.todo)
    budget = (config.faults, config.lates, config.kills, 1 if config.tamper else 0)
    return State(nodes, (0,) * (config.numbers + 2), 0, 0, 0, (), (), frozenset(), (), frozenset(), *budget)


def _show(objects: tuple[Obj, ...]) -> str:
    return "[" + " ".join(f"b{_batch(obj)}" for obj in objects) + "]"


def _with(state: State, at: int, node: Node) -> State:
    return state._replace(nodes=state.nodes[:at] + (node,) + state.nodes[at + 1 :])


def _slot(log: tuple[Obj, ...], number: int, obj: Obj) -> tuple[Obj, ...]:
    return log[:number] + (obj,) + log[number + 1 :]


def _put(state: State, number: int, obj: Obj) -> State:
    """An object takes its place. Where another has been before, no reader will ever see it."""
    dead = state.dead | {obj} if number <= state.top else state.dead
    return state._replace(log=_slot(state.log, number, obj), top=max(state.top, number), dead=dead)


def _reload(state: State, at: int, node: Node) -> State:
    """The node drops what it has and loads again. A group whose fate is open is answered so, and not tried again."""
    todo = node.todo[1:] if node.attempt else node.todo
    return _with(state, at, Node("load", (), 0, 0, todo, True, False))


def _apply(config: Config, state: State, at: int, node: Node, number: int) -> Node:
    """The object at `number` is read: it is applied if it fits."""
    obj = state.log[number]
    unconfirmed = node.unconfirmed or number
    last = node.applied[-1] if node.applied else 0
    if config.L4 and _OBJECTS[obj].previous != last:
        return node._replace(step="misfit", unconfirmed=unconfirmed)
    return node._replace(step="get", applied=node.applied + (obj,), unconfirmed=unconfirmed)


def _lost(config: Config, node: Node) -> Node:
    """After a loss. What was read may be a dead object in the place of our own, trimmed one: until a floor confirms it the
    fate stays open."""
    free = node.unconfirmed == 0 or not config.L3
    step = "create" if free and node.step == "get" else node.step
    return node._replace(step=step, attempt=0 if free else node.attempt)


def _acknowledge(state: State, at: int, node: Node) -> State:
    obj, batch = node.attempt, node.todo[0]
    if obj in state.dead:
        raise Broken(
            f"node {at} acknowledges b{batch} at {len(node.applied) + 1}, where another object has been and was trimmed"
            f" (floor {state.floor}): nobody reads it"
        )
    node = Node("idle", node.applied + (obj,), 0, 0, node.todo[1:], node.whole, False)
    return _with(state, at, node)._replace(acked=state.acked | {batch})


def _caught_up(state: State, at: int, node: Node) -> State:
    """The node believes that it has read all of the log, and answers a read."""
    applied = node.applied
    if not node.whole:
        raise Broken(
            f"node {at} is caught up and lacks an acknowledged batch: it has {_show(applied)},"
            f" acknowledged are {sorted(state.acked)}"
        )
    batches = [_batch(obj) for obj in applied]
    if len(set(batches)) < len(batches):
        raise Broken(f"node {at} counts a batch twice: {_show(applied)}")
    shorter = min(len(applied), len(state.order))
    if applied[:shorter] != state.order[:shorter]:
        raise Broken(f"two nodes disagree on the order: {_show(applied)} and {_show(state.order)}")
    order = applied if len(applied) > len(state.order) else state.order
    node = node._replace(step="create" if node.attempt else "idle", unconfirmed=0, whole=True)
    return _with(state, at, node)._replace(order=order)


def _stop(config: Config, state: State, at: int, node: Node, why: str) -> Step:
    if not config.tamper or state.tampers:
        raise Broken(f"node {at} stops on a store that nobody tampered with: {why}")
    return f"node {at}: stops: {why}", _with(state, at, node._replace(step="stopped"))


def _idle(config: Config, state: State, at: int, node: Node) -> Iterator[Step]:
    position = len(node.applied)
    if node.todo and position < config.numbers:
        yield f"node {at}: means to create {position + 1}", _with(state, at, node._replace(step="create"))
    yield f"node {at}: begins to catch up", _with(state, at, node._replace(step="get"))
    # Only what is confirmed is flushed.
    if position and node.unconfirmed == 0 and all(at_ != position for at_, _ in state.states):
        states = tuple(sorted(state.states + ((position, node.applied),)))
        yield f"node {at}: writes state/{position} {_show(node.applied)}", state._replace(states=states)


def _create(config: Config, state: State, at: int, node: Node) -> Iterator[Step]:
    number, batch = len(node.applied) + 1, node.todo[0]
    if number > config.numbers:
        yield f"node {at}: the model ends", _with(state, at, node._replace(step="idle"))
        return
    # The same bytes as long as the fate at this number is open.
    obj = node.attempt
    if not obj or _OBJECTS[obj].number != number:
        obj = _intern(Bytes(at, batch, node.applied[-1] if node.applied else 0, number))
    who = f"node {at}: creates {number} (b{batch})"
    node = node._replace(attempt=obj)
    readback = node._replace(step="readback", exists=False)
    if state.log[number]:
        yield f"{who}: exists", _with(state, at, readback._replace(exists=True))
        return
    yield f"{who}: won", _with(_put(state, number, obj), at, node._replace(step="won"))
    if not state.faults:
        return
    faulty = state._replace(faults=state.faults - 1)
    exists = readback._replace(exists=True)
    yield f"{who}: done, answered with an error", _with(_put(faulty, number, obj), at, readback)
    yield f'{who}: done, answered "exists"', _with(_put(faulty, number, obj), at, exists)
    yield f"{who}: not done, error", _with(faulty, at, readback)
    yield f'{who}: not done, answered "exists"', _with(faulty, at, exists)
    if state.lates:
        late = tuple(sorted(state.late + ((number, obj),)))
        faulty = faulty._replace(lates=state.lates - 1, late=late)
        yield f"{who}: no answer, and still under way", _with(faulty, at, readback)


def _readback(config: Config, state: State, at: int, node: Node) -> Iterator[Step]:
    number = len(node.applied) + 1
    found = state.log[number]
    who = f"node {at}: reads {number} back"
    if not config.L1:
        # "Exists" is a loss, whatever is there; an error is tried again.
        if node.exists and found:
            yield f"{who}: takes it for a loss", _with(state, at, _lost(config, _apply(config, state, at, node, number)))
        else:
            yield f"node {at}: tries {number} again", _with(state, at, node._replace(step="create"))
    elif not found:
        yield f"{who}: absent", _with(state, at, node._replace(step="create"))
    elif found == node.attempt:
        yield f"{who}: ours", _with(state, at, node._replace(step="won"))
    else:
        yield f"{who}: lost", _with(state, at, _lost(config, _apply(config, state, at, node, number)))


def _won(config: Config, state: State, at: int, node: Node) -> Iterator[Step]:
    number = len(node.applied) + 1
    if not config.L3:
        yield f"node {at}: acknowledges b{node.todo[0]} at {number}", _acknowledge(state, at, node)
    elif state.floor < (node.unconfirmed or number):
        label = f"node {at}: reads floor {state.floor}, acknowledges b{node.todo[0]} at {number}"
        yield label, _acknowledge(state, at, node)
    else:
        yield f"node {at}: reads floor {state.floor} after the create: left behind", _reload(state, at, node)


def _get(config: Config, state: State, at: int, node: Node) -> Iterator[Step]:
    number = len(node.applied) + 1
    if number > config.numbers + 1:
        return
    if number <= config.numbers and state.log[number]:
        applied = _apply(config, state, at, node, number)
        what = "does not fit" if applied.step == "misfit" else f"is b{_batch(state.log[number])}, applied"
        yield f"node {at}: gets {number}, which {what}", _with(state, at, applied)
        return
    whole = state.acked <= {_batch(obj) for obj in node.applied}
    node = node._replace(step="end", whole=whole, unconfirmed=node.unconfirmed or number)
    if config.L3:
        yield f"node {at}: gets {number}: absent", _with(state, at, node)
    else:
        yield f"node {at}: gets {number}: absent, which it believes", _caught_up(state, at, node)


def _end(config: Config, state: State, at: int, node: Node) -> Iterator[Step]:
    if state.floor < node.unconfirmed:
        yield f"node {at}: reads floor {state.floor}: this is the end", _caught_up(state, at, node)
    else:
        yield f"node {at}: reads floor {state.floor}: left behind", _reload(state, at, node)


def _misfit(config: Config, state: State, at: int, node: Node) -> Iterator[Step]:
    if state.floor >= node.unconfirmed:
        yield f"node {at}: reads floor {state.floor}: left behind", _reload(state, at, node)
    else:
        yield _stop(config, state, at, node, f"the chain does not fit at {len(node.applied) + 1}, floor {state.floor}")


def _load(config: Config, state: State, at: int, node: Node) -> Iterator[Step]:
    if not state.states:
        yield f"node {at}: finds no state", _with(state, at, node._replace(step="list", unconfirmed=1))
        return
    position, applied = state.states[-1]
    last = max([n for n in range(1, config.numbers + 1) if state.log[n]] + [state.floor])
    # What the floor names stands for the object at it, which may be deleted.
    there = state.under if position == state.floor else state.log[position] if position > state.floor else 0
    if config.L4 and last < position:
        yield _stop(config, state, at, node, f"the log ends at {last}, before state/{position}")
    elif config.L4 and there and there != applied[-1]:
        yield _stop(config, state, at, node, f"{position} is not what state/{position} names")
    else:
        loaded = node._replace(step="list", applied=applied, unconfirmed=position + 1)
        yield f"node {at}: loads state/{position} {_show(applied)}", _with(state, at, loaded)


def _list(config: Config, state: State, at: int, node: Node) -> Iterator[Step]:
    number = len(node.applied) + 1
    found = [n for n in range(number, config.numbers + 1) if state.log[n]]
    if config.L4 and found != list(range(number, number + len(found))) and state.floor < number:
        yield _stop(config, state, at, node, "the log has a hole")
    else:
        yield f"node {at}: replays from {number}", _with(state, at, node._replace(step="get"))


_STEPS = {
    "idle": _idle,
    "create": _create,
    "readback": _readback,
    "won": _won,
    "get": _get,
    "end": _end,
    "misfit": _misfit,
    "load": _load,
    "list": _list,
}


def _trim(config: Config, state: State) -> Iterator[Step]:
    if len(state.states) > 2:
        yield f"trim: deletes state/{state.states[0][0]}", state._replace(states=state.states[1:])
    limit = state.states[-config.keep][0] if len(state.states) >= config.keep else 0
    readers = [n for n in state.nodes if n.step == "idle" and not n.unconfirmed and len(n.applied) > state.floor]
    furthest = min(limit, max((len(node.applied) for node in readers), default=0))
    applied = max((node.applied for node in readers), key=len, default=())
    if config.L2:
        for number in range(state.floor + 1, furthest + 1):
            yield f"trim: the floor becomes {number}", state._replace(floor=number, under=applied[number - 1])
        deletable = range(1, state.floor + 1)
    else:
        # Deleted first, said afterwards.
        deletable = range(1, max(state.floor, furthest) + 1)
        if furthest > state.floor and not any(state.log[1 : furthest + 1]):
            yield f"trim: the floor becomes {furthest}", state._replace(floor=furthest, under=applied[furthest - 1])
    for number in deletable:
        if state.log[number]:
            yield f"trim: deletes {number} (floor {state.floor})", state._replace(log=_slot(state.log, number, 0))


def _tamper(config: Config, state: State) -> Iterator[Step]:
    """All nodes are stopped, the store is changed, and all start again."""
    if not state.tampers:
        return
    after = state
    for at, node in enumerate(state.nodes):
        after = _reload(after, at, node)
    after = after._replace(tampers=0)
    if config.tamper == "hole":
        for number in range(state.floor + 1, config.numbers):
            if state.log[number] and state.log[number + 1]:
                yield f"RESTORE: {number} is gone", after._replace(log=_slot(state.log, number, 0))
    elif state.top > state.floor and state.log[state.top]:
        lost = state.log[state.top]
        grown = _intern(Bytes(9, 9, _OBJECTS[lost].previous, state.top))
        acked = (state.acked - {_batch(lost)}) | {9}
        yield (
            f"RESTORE: the log as of {state.top - 1}, and grown again: {state.top} is b9, acknowledged",
            after._replace(log=_slot(state.log, state.top, grown), acked=acked, order=()),
        )


def successors(config: Config, state: State) -> Iterator[Step]:
    """Everything that can happen next."""
    for at, node in enumerate(state.nodes):
        if node.step == "stopped":
            continue
        yield from _STEPS[node.step](config, state, at, node)
        if state.kills:
            yield f"node {at}: is killed and starts again", _reload(state._replace(kills=state.kills - 1), at, node)
    for at, (number, obj) in enumerate(state.late):
        after = state._replace(late=state.late[:at] + state.late[at + 1 :])
        if state.log[number]:
            yield f"store: the late create of {number} (b{_batch(obj)}) finds it there", after
        else:
            yield f"store: the late create of {number} (b{_batch(obj)}) is done", _put(after, number, obj)
    yield from _trim(config, state)
    yield from _tamper(config, state)


@dataclass(frozen=True)
class Found:
    """What exploring a configuration found."""

    states: int
    complete: bool
    broken: str | None = None
    trace: tuple[str, ...] = ()


def explore(config: Config, most: int, seconds: float) -> Found:
    """Visits every state breadth first, so that the first counterexample is among the shortest."""
    first = initial(config)
    came_from: dict[State, Step | None] = {first: None}
    queue = deque([first])
    began = time.monotonic()
    while queue:
        state = queue.popleft()
        try:
            for label, after in successors(config, state):
                if after not in came_from:
                    came_from[after] = (label, state)
                    queue.append(after)
        except Broken as broken:
            trace = []
            while (step := came_from[state]) is not None:
                label, state = step
                trace.append(label)
            return Found(len(came_from), False, str(broken), tuple(reversed(trace)))
        if len(came_from) > most or len(came_from) % 512 == 0 and time.monotonic() - began > seconds:
            return Found(len(came_from), False)
    return Found(len(came_from), True)


def walk(config: Config, seconds: float, seed: int, depth: int = 90) -> Found:
    """Random walks, for configurations that are too large to visit whole."""
    draw, began, steps = random.Random(seed), time.monotonic(), 0
    while time.monotonic() - began < seconds:
        state, trace = initial(config), []
        for _ in range(depth):
            try:
                after = list(successors(config, state))
            except Broken as broken:
                return Found(steps, False, str(broken), tuple(trace))
            if not after:
                break
            label, state = draw.choice(after)
            trace.append(label)
            steps += 1
    return Found(steps, False)
