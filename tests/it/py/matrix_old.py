"""A session of SDK 1.x, which speaks the revisions up to 2025-11-25 alone."""

from contextlib import asynccontextmanager, suppress

import anyio
from mcp import ClientSession, McpError, types
from mcp.client.streamable_http import streamablehttp_client

from matrix_common import Caller, filled, sampled, text_of


@asynccontextmanager
async def connect(_mode, url, token):
    headers = {"authorization": f"Bearer {token}"} if token else None
    session = Session()
    async with (
        streamablehttp_client(url, headers=headers) as (read, write, _),
        ClientSession(
            read,
            write,
            sampling_callback=sampled,
            elicitation_callback=elicited,
            message_handler=session.on_message,
            client_info=types.Implementation(name="matrix-python", version="1.0.0"),
        ) as session.client,
    ):
        session.capabilities = (await session.client.initialize()).capabilities
        yield session


async def elicited(_, params):
    return filled(params.requestedSchema)


class Session(Caller):
    def __init__(self):
        self.listeners = {}

    async def on_message(self, message):
        if isinstance(message, types.ServerNotification):
            self.listeners.get(type(message.root), lambda: None)()

    async def call(self, name, arguments, on_progress=None):
        result = await self.result_of(name, arguments, on_progress)
        return text_of(result), result.structuredContent

    @asynccontextmanager
    async def subscribed(self, uri, listener):
        self.listeners[types.ResourceUpdatedNotification] = listener
        await self.client.subscribe_resource(uri)
        yield
        await self.client.unsubscribe_resource(uri)

    @asynccontextmanager
    async def tools_watched(self, listener):
        self.listeners[types.ToolListChangedNotification] = listener
        yield

    @asynccontextmanager
    async def cancelled(self, hangs, name, arguments):
        """A call that is under way inside, and cancelled at the end."""
        # The SDK cancels no request by itself and keeps its number for itself.
        number = self.client._request_id

        async def hang():
            # The server may say that it was cancelled.
            with suppress(McpError):
                await self.call(name, arguments, on_progress=lambda _: hangs.set())
                raise AssertionError("the call was answered")

        async with anyio.create_task_group() as group:
            group.start_soon(hang)
            yield
            params = types.CancelledNotificationParams(requestId=number, reason="enough")
            await self.client.send_notification(types.ClientNotification(types.CancelledNotification(params=params)))
            group.cancel_scope.cancel()

    async def task(self, name, arguments):
        # A server that has no tasks of this revision is called as ever.
        if not self.capabilities.tasks:
            text, _ = await self.call(name, arguments)
            return text, None
        tasks = self.client.experimental
        states = []
        created = (await tasks.call_tool_as_task(name, arguments)).task
        states.append(created.status)
        async for polled in tasks.poll_task(created.taskId):
            states.append(polled.status)
        result = await tasks.get_task_result(created.taskId, types.CallToolResult)
        return text_of(result), states
