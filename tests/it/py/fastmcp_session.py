"""FastMCP as a client: lists the tools of an MCP server and calls one, as JSON.

usage: fastmcp_session.py URL TOOL ARGUMENTS
"""

import asyncio
import json
import sys

from fastmcp import Client

url, tool, arguments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])


async def main():
    async with Client(url) as client:
        tools = sorted(tool.name for tool in await client.list_tools())
        result = await client.call_tool(tool, arguments)
        print(json.dumps({"tools": tools, "structured": result.structured_content, "text": result.content[0].text}))


asyncio.run(main())
