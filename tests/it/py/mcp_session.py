"""A whole session of the official Python SDK with an MCP server: everything that a client can do, as JSON.

usage: mcp_session.py URL MODE [PREFIX]     MODE: auto, or legacy for the versions with sessions
                                            PREFIX: what the tools' and prompts' names start with, `fixture__` say
"""

import asyncio
import json
import sys

from mcp import types
from mcp.client import Client

url, mode, prefix = sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else ""


async def main():
    logs, progress, seen = [], [], {}

    async def on_log(params):
        logs.append([params.level, params.data])

    async def on_sampling(_, params):
        asked = params.messages[0].content.text
        return types.CreateMessageResult(
            role="assistant", content=types.TextContent(type="text", text=f"heard: {asked}"), model="a-model"
        )

    async def on_elicitation(_, params):
        fields = sorted(params.requested_schema["properties"])
        return types.ElicitResult(action="accept", content={field: f"my {field}" for field in fields})

    async def on_roots(_):
        return types.ListRootsResult(roots=[types.Root(uri="file:///home/user/project", name="project")])

    async def on_progress(done, total, message):
        progress.append([done, total])

    client = Client(
        url,
        logging_callback=on_log,
        sampling_callback=on_sampling,
        elicitation_callback=on_elicitation,
        list_roots_callback=on_roots,
        log_level="debug",
        mode=mode,
    )

    async def call(tool, arguments=None, **more):
        result = await client.call_tool(prefix + tool, arguments or {}, **more)
        return {"error": result.is_error, "text": [part.text for part in result.content if part.type == "text"]}

    async with client:
        seen["tools"] = sorted(tool.name for tool in (await client.list_tools()).tools)
        seen["prompts"] = sorted(prompt.name for prompt in (await client.list_prompts()).prompts)
        seen["resources"] = sorted(str(resource.uri) for resource in (await client.list_resources()).resources)
        templates = (await client.list_resource_templates()).resource_templates
        seen["templates"] = [template.uri_template for template in templates]
        seen["echo"] = await call("echo", {"message": "hi"})
        seen["fails"] = await call("test_error_handling")
        seen["sampling"] = await call("test_sampling", {"prompt": "how are you"})
        seen["elicitation"] = await call("test_elicitation", {"message": "who are you"})
        seen["roots"] = await call("roots")
        seen["logging"] = await call("test_tool_with_logging")
        seen["progress"] = await call("test_tool_with_progress", progress_callback=on_progress)
        resource = await client.read_resource("test://template/123/data")
        seen["resource"] = resource.contents[0].text
        prompt = await client.get_prompt(prefix + "test_prompt_with_arguments", {"arg1": "a", "arg2": "b"})
        seen["prompt"] = prompt.messages[0].content.text
        reference = types.PromptReference(type="ref/prompt", name=prefix + "test_prompt_with_arguments")
        completion = await client.complete(reference, {"name": "arg1", "value": "par"})
        seen["completion"] = completion.completion.values
    seen["logs"], seen["progressed"] = logs, progress
    print(json.dumps(seen))


asyncio.run(main())
