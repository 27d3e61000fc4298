"""Checks the log's protocol (`protocol.py`) and an org's stored states (`states.py`): with every rule no counterexample,
with any rule off one.

    python3 tests/model/check.py          the bounded configurations, visited whole; about a minute
    python3 tests/model/check.py long     the large ones, and random walks beyond them; an hour
    python3 tests/model/check.py NAME…    those of that name

Exit code 0 if all came out as expected, 1 if one did not.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import states
from protocol import Config, Found, explore, walk

MOST_STATES = 4_000_000
"""About a kilobyte each."""


@dataclass(frozen=True)
class Case:
    """A configuration, and what is to be found in it."""

    config: Config | states.Config
    sound: bool
    seconds: float = 120.0
    whole: bool = True
    """Whether it is to be visited whole, where it is sound."""
    walks: bool = False


FAULTS = Config(todo=((1,), (2,)), numbers=3, keep=1)
KILLS = Config(todo=((1,), (2,)), numbers=3, keep=1, faults=0, lates=0, kills=1)
THREE = Config(todo=((1,), (2,), ()), numbers=3, keep=1, faults=0, lates=0)
REGROWN = Config(todo=((1,), (2,)), numbers=3, keep=1, faults=0, lates=0, tamper="regrown")
HOLE = Config(todo=((1,), (2,)), numbers=3, keep=1, faults=0, lates=0, tamper="hole")
TWO = Config(todo=((1, 3), (2,)), numbers=4, keep=1)
STATES = states.Config(nodes=2, positions=4, kills=1)
STATES_FAR = states.Config(nodes=2, positions=5, kills=1)
WIDE = Config(todo=((1, 3), (2, 5), (4,)), numbers=6, keep=1, faults=2, lates=2, kills=1)

CASES: dict[str, Case] = {
    "faults": Case(FAULTS, sound=True),
    "kills": Case(KILLS, sound=True),
    "three": Case(THREE, sound=True),
    "regrown": Case(REGROWN, sound=True),
    "hole": Case(HOLE, sound=True),
    "without-L1": Case(TWO.without("L1"), sound=False),
    "without-L2": Case(TWO.without("L2"), sound=False),
    "without-L3": Case(TWO.without("L3"), sound=False),
    "without-L4": Case(REGROWN.without("L4"), sound=False),
    "states": Case(STATES, sound=True),
    "states-without-counts": Case(STATES.without("counts"), sound=False),
    "states-without-deletes": Case(STATES.without("deletes"), sound=False),
    "states-without-chain": Case(STATES_FAR.without("chain"), sound=False),
    "states-without-any": Case(STATES.without("any"), sound=False),
}

LONG: dict[str, Case] = {
    "two": Case(TWO, sound=True, seconds=900),
    "two-keep2": Case(Config(todo=((1, 3), (2,)), numbers=4, keep=2), sound=True, seconds=900),
    "two-kills": Case(Config(todo=((1,), (2,)), numbers=4, keep=1, kills=1), sound=True, seconds=900),
    "three-busy": Case(Config(todo=((1, 3), (2,), ()), numbers=4, faults=0, lates=0), sound=True, seconds=1800),
    "three-faults": Case(Config(todo=((1,), (2,), (4,)), numbers=3), sound=True, seconds=900, whole=False),
    "states-far": Case(STATES_FAR, sound=True),
    "states-three": Case(states.Config(nodes=3, positions=4), sound=True, whole=False),
    "walks": Case(WIDE, sound=True, seconds=300, walks=True),
    "walks-without-L1": Case(WIDE.without("L1"), sound=False, seconds=300, walks=True),
    "walks-without-L2": Case(WIDE.without("L2"), sound=False, seconds=300, walks=True),
    "walks-without-L3": Case(WIDE.without("L3"), sound=False, seconds=300, walks=True),
}


def check(name: str, case: Case) -> bool:
    """Checks one configuration and prints what was found. Whether it came out as expected."""
    began = time.monotonic()
    found: Found | states.Found
    if isinstance(case.config, states.Config):
        found = states.explore(case.config, MOST_STATES)
    elif case.walks:
        found = walk(case.config, case.seconds, seed=1)
    else:
        found = explore(case.config, MOST_STATES, case.seconds)
    if case.walks:
        expected = (found.broken is None) == case.sound
        extent = f"{found.states} steps"
    else:
        expected = (found.complete or not case.whole and not found.broken) if case.sound else found.broken is not None
        extent = f"{found.states} states, {'complete' if found.complete else 'not complete'}"
    outcome = "counterexample" if found.broken else "no counterexample"
    verdict = "as expected" if expected else "NOT AS EXPECTED"
    print(f"{name}: {outcome}, {extent}, {time.monotonic() - began:.1f} s: {verdict}", flush=True)
    if found.broken and not expected:
        for number, label in enumerate(found.trace, 1):
            print(f"  {number:2} {label}")
        print(f"  => {found.broken}", flush=True)
    return expected


def main(names: list[str]) -> int:
    known = CASES | LONG
    match names:
        case []:
            chosen = list(CASES)
        case ["long"]:
            chosen = list(LONG)
        case _:
            chosen = names
    unknown = [name for name in chosen if name not in known]
    if unknown:
        print(f"no such configuration: {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    outcomes = [check(name, known[name]) for name in chosen]
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
