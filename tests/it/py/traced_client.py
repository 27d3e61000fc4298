"""An agent with OpenTelemetry's SDK: calls a tool within a span of its own, with baggage, and prints what the tool answered.

traced_client.py URL TOOL COLLECTOR
"""

import asyncio
import json
import sys

import traced
from mcp import Client
from opentelemetry import baggage, context, trace

url, tool, collector = sys.argv[1:]
provider = traced.start("agent", collector, roots=True)


async def main():
    async with Client(url, mode="legacy") as client:
        with trace.get_tracer("agent").start_as_current_span("turn") as turn:
            context.attach(baggage.set_baggage("tenant", "blue"))
            answer = await client.call_tool(tool, {"fail": False})
            refusal = await client.call_tool(tool, {"fail": True})
        print(json.dumps({
            "trace": f"{turn.get_span_context().trace_id:032x}",
            "told": answer.structured_content,
            "failed": refusal.is_error,
        }))


asyncio.run(main())
provider.shutdown()
