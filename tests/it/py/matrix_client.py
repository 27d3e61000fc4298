"""The Python SDK as a client of the matrix.

usage: matrix_client.py '{"mode": "old" | "modern" | "auto", "targets": [{"name", "url", "token"}], "patience_ms": 60000}'

Prints one JSON object: by target and scenario, "ok", "without a task", or what went wrong. The client of the old revisions is SDK 1.x (matrix_old.py), the
others are SDK 2.x (matrix_modern.py): both are named `mcp`, so a process has one of them. Targets are visited at once, the scenarios of one by one.
"""

import contextlib
import json
import logging
import os
import sys
import uuid
from pathlib import Path

request = json.loads(sys.argv[1])
if request["mode"] == "old":
    sys.path.insert(0, str(Path(__file__).parents[3] / ".venv/share/mcp-1"))
    from matrix_old import connect
else:
    from matrix_modern import connect

import anyio  # noqa: E402

# What the SDK logs of a connection that a scenario gave up is expected.
logging.disable(logging.CRITICAL)

PATIENCE = request["patience_ms"] / 1000
WATCHED = "test://watched-resource"


def same(what, got, expected):
    if got != expected:
        raise AssertionError(f"{what}: {got}, not {expected}")


async def until(ask):
    """Asks until the answer is true: how long that may take is for the patience of the scenario to say."""
    while not await ask():
        await anyio.sleep(0.05)


async def tool_call(session):
    _, structured = await session.call("echo", {"message": "grüße", "wei": 7})
    same("structured content", structured, {"message": "grüße", "wei": 7})


async def progress(session):
    seen = []
    await session.call("test_tool_with_progress", {}, on_progress=seen.append)
    same("progress", seen, [0, 50, 100])


async def elicitation(session):
    text, _ = await session.call("test_elicitation", {"message": "who are you"})
    same("answer", text, 'User response: action=accept, content={"username":"my username","email":"my email"}')


async def sampling(session):
    text, _ = await session.call("test_sampling", {"prompt": "how are you"})
    same("answer", text, "LLM response: heard: how are you")


async def resource_subscription(session):
    updated = anyio.Event()
    async with session.subscribed(WATCHED, updated.set):
        await session.call("touch", {"uri": WATCHED})
        await updated.wait()


async def task(session):
    label = str(uuid.uuid4())
    text, states = await session.task("long_job", {"ms": 300, "label": label})
    same("result", text, f"done: {label}")
    if states is None:
        return "without a task"
    # Of the states between the first and the last, polling may see any.
    same("states", [states[0], states[-1]], ["working", "completed"])


async def cancellation(session):
    key, hangs = str(uuid.uuid4()), anyio.Event()
    async with session.cancelled(hangs, "hang", {"key": key}):
        await hangs.wait()

    async def noticed():
        text, _ = await session.call("cancellations", {"key": key})
        return text == "1"

    await until(noticed)


async def list_changed(session):
    changed, name = anyio.Event(), f"grown_{uuid.uuid4()}"
    async with session.tools_watched(changed.set):
        same("the new tool is there already", name in await session.tools(), False)
        await session.call("grow", {"name": name})
        await changed.wait()

        async def listed():
            return name in await session.tools()

        await until(listed)


SCENARIOS = {
    "tool call": tool_call,
    "progress": progress,
    "elicitation": elicitation,
    "sampling": sampling,
    "resource subscription": resource_subscription,
    "task": task,
    "cancellation": cancellation,
    "tools/list_changed": list_changed,
}


def because(error):
    """What is at the bottom of an error that task groups have wrapped."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


async def visit(target, verdicts):
    """All scenarios; one that fails takes its connection along, so that it does not disturb the next one."""
    left = list(SCENARIOS)
    while left:
        name = left[0]
        try:
            with anyio.fail_after(PATIENCE) as limit:
                async with connect(request["mode"], target["url"], target.get("token")) as session:
                    while left:
                        name = left[0]
                        limit.deadline = anyio.current_time() + PATIENCE
                        verdicts[name] = await SCENARIOS[name](session) or "ok"
                        left.pop(0)
        except BaseException as error:
            # Its connection may fail to close after the last of them.
            if left and name == left[0]:
                verdicts[name] = because(error)
                left.pop(0)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise


async def main():
    seen = {target["name"]: {} for target in request["targets"]}
    async with anyio.create_task_group() as group:
        for target in request["targets"]:
            group.start_soon(visit, target, seen[target["name"]])
    print(json.dumps(seen), flush=True)
    # Scenarios that failed may have left something open.
    os._exit(0)


with contextlib.suppress(KeyboardInterrupt):
    anyio.run(main)
