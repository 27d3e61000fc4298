"""An explicit-state model of an org's stored states (rule L5): nodes that store, replace and delete them.

A state is full, or holds the changes upon the one at another position, by any writer; see `src/state/snapshot.rs`.
A node stores a state in steps, and may stop before any of them for as long as it likes: it creates it if absent, lists
the folder, perhaps takes its place in full, reads the one before, deletes one after the other what is needed no more.
Only then it relies on it: the log may be trimmed up to there, so a node that loads must find that state or a newer one.

The rules, each of which can be switched off to see what it is for:

counts   A state of changes counts if all that it stands on is listed, and nothing else between it and the full one.
chain    It is the whole chain that is looked at so, not only what lies between the state and its base.
deletes  Only the writer of the newest state that is listed deletes.
any      Changes go upon whichever state is at their base's position, not upon those bytes alone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Iterator, NamedTuple, Optional


class Stored(NamedTuple):
    """The bytes of a state: who wrote them, where, and what they are put upon."""

    writer: int
    position: int
    chain: tuple[int, ...] = ()
    base: Optional["Stored"] = None
    """The bytes of the last of the chain; only with the rule `any` off."""


class Node(NamedTuple):
    """A node: what it does next, and what it knows."""

    step: str = "idle"
    position: int = 0
    saved: Optional[Stored] = None
    draft: Optional[Stored] = None
    found: Optional[Stored] = None
    listed: tuple[int, ...] = ()
    gone: tuple[int, ...] = ()


class World(NamedTuple):
    store: tuple[Optional[Stored], ...]
    nodes: tuple[Node, ...]
    relied: int
    """The newest position that a node has relied on."""
    kills: int


@dataclass(frozen=True)
class Config:
    nodes: int
    positions: int
    kills: int = 0
    off: frozenset[str] = frozenset()

    def without(self, rule: str) -> "Config":
        return replace(self, off=self.off | {rule})

    def begin(self) -> World:
        return World((None,) * (self.positions + 1), (Node(),) * self.nodes, 0, self.kills)


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    states: int
    complete: bool
    broken: str = ""
    trace: tuple[str, ...] = ()
    """The stores on the way to what is broken."""


def _readable(config: Config, world: World, position: int) -> bool:
    state = world.store[position]
    if state is None:
        return False
    if not state.chain:
        return True
    base = state.chain[-1]
    return ("any" not in config.off or world.store[base] == state.base) and _readable(config, world, base)


def _newest(config: Config, world: World) -> int:
    return max((at for at, _ in enumerate(world.store) if _readable(config, world, at)), default=0)


def _is_whole(config: Config, listed: tuple[int, ...], chain: tuple[int, ...], position: int) -> bool:
    if "counts" in config.off:
        return True
    if "chain" in config.off:
        base = chain[-1] if chain else position
        return set(chain) <= set(listed) and not any(base < at < position for at in listed)
    full = chain[0] if chain else position
    return tuple(at for at in listed if full <= at < position) == chain


def _decided(config: Config, world: World, me: int) -> World:
    """What a node does once it has listed the folder."""
    node = world.nodes[me]
    draft, found, listed, position = node.draft, node.found, node.listed, node.position
    assert draft is not None
    newest = listed[-1] <= position
    result = draft
    if found is not None and node.step == "listed":
        if not draft.chain and not _is_whole(config, listed, found.chain, position):
            return _with(world, me, node._replace(step="put"))
        result = found
    if not _is_whole(config, listed, result.chain, position):
        if draft.chain:
            full = draft._replace(chain=(), base=None)
            return _with(world, me, node._replace(step="create", draft=full, saved=None, found=None, listed=()))
        return _with(world, me, Node(position=position))
    node = node._replace(saved=result)
    if newest or "deletes" in config.off:
        return _with(world, me, node._replace(step="before"))
    return _relies(_with(world, me, node), me)


def _relies(world: World, me: int) -> World:
    node = world.nodes[me]
    rested = Node(position=node.position, saved=node.saved)
    return _with(world, me, rested)._replace(relied=max(world.relied, node.position))


def _with(world: World, me: int, node: Node) -> World:
    nodes = list(world.nodes)
    nodes[me] = node
    return world._replace(nodes=tuple(nodes))


def _put(world: World, position: int, state: Optional[Stored]) -> World:
    store = list(world.store)
    store[position] = state
    return world._replace(store=tuple(store))


def _needless(config: Config, world: World, node: Node) -> tuple[int, ...]:
    """What nothing stands on any more, as far as the node has listed."""
    assert node.saved is not None
    chain = node.saved.chain + (node.position,)
    for before in sorted((at for at in node.listed if at < node.position), reverse=True):
        older = [at for at in node.listed if at < before]
        state = world.store[before]
        if state is None:
            return ()
        if _is_whole(config, node.listed, state.chain, before):
            return tuple(at for at in older if at not in chain and at not in state.chain)
    return ()


def _drafts(config: Config, me: int, position: int, saved: Optional[Stored]) -> Iterator[Stored]:
    """What a node may store at a position: when it writes in full again is not modelled."""
    writer = me if "any" in config.off else 0
    yield Stored(writer, position)
    if saved is not None:
        base = saved if "any" in config.off else None
        yield Stored(writer, position, saved.chain + (saved.position,), base)


def _next(config: Config, world: World) -> Iterator[World]:
    for me, node in enumerate(world.nodes):
        if world.kills and node.step != "idle":
            # It loads the newest state that it can read.
            at = _newest(config, world)
            yield _with(world, me, Node(position=at, saved=world.store[at]))._replace(kills=world.kills - 1)
        if node.step == "idle":
            for position in range(node.position + 1, config.positions + 1):
                for draft in _drafts(config, me, position, node.saved):
                    yield _with(world, me, Node("create", position, node.saved, draft))
        elif node.step == "create":
            found = world.store[node.position]
            created = world if found is not None else _put(world, node.position, node.draft)
            yield _with(created, me, node._replace(step="list", found=found))
        elif node.step == "list":
            listed = tuple(at for at, state in enumerate(world.store) if state is not None)
            yield _decided(config, _with(world, me, node._replace(step="listed", listed=listed)), me)
        elif node.step == "put":
            yield _decided(config, _put(_with(world, me, node), node.position, node.draft), me)
        elif node.step == "before":
            gone = _needless(config, world, node)
            yield _with(world, me, node._replace(step="delete", gone=gone)) if gone else _relies(world, me)
        elif node.step == "delete":
            rest = _with(_put(world, node.gone[0], None), me, node._replace(gone=node.gone[1:]))
            yield rest if node.gone[1:] else _relies(rest, me)


def explore(config: Config, most: int) -> Found:
    """Visits every state that can be reached, and stops at the first in which what was relied on cannot be read."""
    begin = config.begin()
    before: dict[World, Optional[World]] = {begin: None}
    waiting = deque([begin])
    while waiting:
        world = waiting.popleft()
        for reached in _next(config, world):
            if reached in before:
                continue
            before[reached] = world
            if _newest(config, reached) < reached.relied:
                return Found(len(before), False, f"nothing is left of {reached.relied} or later", _trace(before, reached))
            if len(before) >= most:
                return Found(len(before), False)
            waiting.append(reached)
    return Found(len(before), True)


def _trace(before: dict[World, Optional[World]], end: World) -> tuple[str, ...]:
    trace: list[str] = []
    world: Optional[World] = end
    while world is not None:
        stored = [f"{state.position} on {state.chain[-1]}" if state.chain else f"{state.position}" for state in world.store if state]
        steps = ", ".join(f"{node.step} {node.position}" for node in world.nodes)
        trace.append(f"{steps}; stored: {', '.join(stored) or 'nothing'}; relied on: {world.relied}")
        world = before[world]
    return tuple(reversed(trace))
