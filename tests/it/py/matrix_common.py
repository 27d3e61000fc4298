"""What the sessions of both generations of the SDK have in common."""

from mcp import types


async def sampled(_, params):
    content = params.messages[0].content
    content = types.TextContent(type="text", text=f"heard: {content.text}")
    return types.CreateMessageResult(role="assistant", content=content, model="a-model")


def filled(schema):
    return types.ElicitResult(action="accept", content={field: f"my {field}" for field in schema["properties"]})


def text_of(result):
    return ",".join(part.text for part in result.content)


class Caller:
    """Calls tools with the SDK's session in `self.client`."""

    async def result_of(self, name, arguments, on_progress):
        async def progressed(done, _total, _message):
            on_progress(done)

        return await self.client.call_tool(name, arguments, progress_callback=on_progress and progressed)

    async def tools(self):
        return [tool.name for tool in (await self.client.list_tools()).tools]
