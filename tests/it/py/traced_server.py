"""An MCP server (the Python SDK, which traces itself) whose one tool answers with the trace context that it got.

traced_server.py PORT COLLECTOR
"""

import sys

import traced
from mcp.server.mcpserver import Context, MCPServer

port, collector = sys.argv[1:]
traced.start("upstream", collector, roots=False)
server = MCPServer("traced", log_level="WARNING")
FIELDS = ("traceparent", "tracestate", "baggage")


@server.tool()
def told(fail: bool, ctx: Context) -> dict[str, dict[str, str]]:
    """Answers the trace context of the message and of the headers."""
    if fail:
        raise ValueError("a text that no span of the gateway may hold")
    meta, headers = ctx.request_context.meta or {}, ctx.headers or {}
    return {
        "meta": {field: meta[field] for field in FIELDS if field in meta},
        "headers": {field: headers[field] for field in FIELDS if field in headers},
    }


server.run("streamable-http", port=int(port))
