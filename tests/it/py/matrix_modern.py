"""A session of SDK 2.x: pinned to 2026-07-28, or in whatever revision it finds.

The SDK knows no tasks. What an application adds to it by the SDK's own interface for extensions is here, forty lines.
"""

import warnings
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
from mcp import types
from mcp.client import Client, ClientExtension, ResultClaim
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

from matrix_common import Caller, filled, sampled, text_of

VERSION = "2026-07-28"

# Against a server of an old revision the SDK advises against what that revision asks for.
warnings.simplefilter("ignore")


@asynccontextmanager
async def connect(mode, url, token):
    headers = {"authorization": f"Bearer {token}"} if token else {}
    session = Session()
    async with (
        create_mcp_http_client(headers=headers) as http,
        Client(
            streamable_http_client(url, http_client=http),
            mode="auto" if mode == "auto" else VERSION,
            client_info=types.Implementation(name="matrix-python", version="2.0.0"),
            sampling_callback=sampled,
            elicitation_callback=elicited,
            message_handler=session.on_message,
            extensions=[session.tasks],
            cache=None,
        ) as session.client,
    ):
        yield session


async def elicited(_, params):
    return filled(params.requested_schema)


class Session(Caller):
    def __init__(self):
        self.listeners = {}
        self.tasks = Tasks()

    @property
    def modern(self):
        return self.client.protocol_version == VERSION

    async def on_message(self, message):
        self.listeners.get(getattr(message, "method", None), lambda: None)()

    async def call(self, name, arguments, on_progress=None):
        result = await self.result_of(name, arguments, on_progress)
        return text_of(result), result.structured_content

    @asynccontextmanager
    async def listening(self, listener, **wanted):
        async with self.client.listen(**wanted) as stream, anyio.create_task_group() as group:
            for name, value in wanted.items():
                assert getattr(stream.honored, name) == value, f"not acknowledged: {name}"

            async def events():
                async for _ in stream:
                    listener()

            group.start_soon(events)
            yield
            group.cancel_scope.cancel()

    @asynccontextmanager
    async def subscribed(self, uri, listener):
        if self.modern:
            async with self.listening(listener, resource_subscriptions=[uri]):
                yield
            return
        self.listeners["notifications/resources/updated"] = listener
        await self.client.subscribe_resource(uri)
        yield
        await self.client.unsubscribe_resource(uri)

    @asynccontextmanager
    async def tools_watched(self, listener):
        if self.modern:
            async with self.listening(listener, tools_list_changed=True):
                yield
            return
        self.listeners["notifications/tools/list_changed"] = listener
        yield

    @asynccontextmanager
    async def cancelled(self, hangs, name, arguments):
        """A call that is under way inside, and cancelled at the end."""

        async def hang():
            await self.call(name, arguments, on_progress=lambda _: hangs.set())
            raise AssertionError("the call was answered")

        async with anyio.create_task_group() as group:
            group.start_soon(hang)
            yield
            group.cancel_scope.cancel()

    async def task(self, name, arguments):
        self.tasks.states = None
        result = await self.client.call_tool(name, arguments)
        return text_of(result), self.tasks.states


class Task(types.Result):
    result_type: Literal["task"] = "task"
    task_id: str
    status: str


class TaskState(types.Result):
    status: str
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class TaskParams(types.RequestParams):
    task_id: str


class GetTask(types.Request[TaskParams, Literal["tasks/get"]]):
    method: Literal["tasks/get"] = "tasks/get"
    params: TaskParams
    name_param = "taskId"


class Tasks(ClientExtension):
    """The client's half of the extension: a call that became a task is asked for until it ends."""

    identifier = "io.modelcontextprotocol/tasks"
    states = None

    def claims(self):
        return [ResultClaim(result_type="task", model=Task, resolve=self.finish)]

    async def finish(self, task, context):
        self.states = [task.status]
        while True:
            state = await context.session.send_request(GetTask(params=TaskParams(task_id=task.task_id)), TaskState)
            self.states.append(state.status)
            if state.status == "completed":
                return types.CallToolResult.model_validate(state.result)
            assert state.status == "working", f"the task is {state.status}: {state.error}"
            await anyio.sleep(0.05)
