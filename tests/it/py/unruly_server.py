"""MCP servers that misbehave, each in one way that was seen in the wild.

On standard input and output: `unruly_server.py stdio KIND`. Over HTTP: `unruly_server.py http KIND PORT`.
Beside what its kind does, each is a sound server of 2025-11-25 with the tools `echo` and `break`.
"""

import http.server
import json
import sys
import time
import uuid

KIND = sys.argv[2]


def answer(message):
    """The result of a request; None for what is not a request."""
    params = message.get("params") or {}
    match message.get("method"):
        case "initialize":
            capabilities = {"tools": {}, "resources": {}, "completions": {}}
            info = {"name": KIND, "version": "1"}
            return {"protocolVersion": params["protocolVersion"], "capabilities": capabilities, "serverInfo": info}
        case "ping":
            return {}
        case "tools/list":
            return tools(params.get("cursor"))
        case "resources/templates/list":
            return {"resourceTemplates": [{"name": KIND, "uriTemplate": f"{KIND}://{{name}}"}]}
        case "resources/list":
            return {"resources": []}
        case "completion/complete":
            own = params["ref"].get("uri") == f"{KIND}://{{name}}"
            return {"completion": {"values": [KIND] if own else []}}
        case "tools/call":
            return {"content": [{"type": "text", "text": json.dumps(params.get("arguments"), ensure_ascii=False)}]}


def tools(cursor):
    own = [{"name": name, "inputSchema": {"type": "object"}} for name in ("echo", "break")]
    if KIND == "cursor-stays":
        return {"tools": own, "nextCursor": "again"}
    if KIND == "cursor-circles":
        number = int(cursor or 0)
        return {"tools": own + [{"name": f"t{number}", "inputSchema": {}}], "nextCursor": str((number + 1) % 3)}
    return {"tools": own}


def reply(message):
    result = answer(message)
    if result is None:
        return {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "Method not found"}}
    return {"jsonrpc": "2.0", "id": message["id"], "result": result}


def over_pipes():
    out = sys.stdout.buffer

    def say(text, encoding="utf-8"):
        out.write(text.encode(encoding))
        out.flush()

    if KIND == "chatter":
        say("Secure MCP Server running on stdio\n{ not: json }\n[info] ready\n\x00\xff\n", "latin-1")
    if KIND == "utf-16":
        say("\ufeff", "utf-16-le")
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "id" not in message:
            continue
        text = json.dumps(reply(message), ensure_ascii=False)
        breaks = message["method"] == "tools/call" and message["params"]["name"] == "break"
        if KIND == "utf-16":
            say(text + "\r\n", "utf-16-le")
        elif KIND == "latin-1":
            say(text + "\n", "latin-1")
        elif KIND == "pretty":
            say(json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\r\n")
        elif KIND == "half-line" and breaks:
            say(text[: len(text) // 2])
            sys.exit(1)
        elif KIND == "long-line" and breaks:
            say('{"result":{"content":[{"type":"text","text":"' + "x" * 3_000_000 + '"}]},"jsonrpc":"2.0","id":%d}\n' % message["id"])
        elif KIND == "chatter":
            say("debug: answering\n" + text + "\n")
        else:
            say(text + "\n")
    if KIND == "stays":
        time.sleep(1000)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sessions = set()

    def log_message(self, *_):
        pass

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.send(405)

    def do_DELETE(self):
        self.sessions.discard(self.headers.get("mcp-session-id"))
        self.send(200)

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if KIND == "redirects":
            return self.send(307, location=self.path + "/?token=hunter2")
        headers = {"content_type": "application/json"}
        method = message.get("method")
        if method == "initialize":
            headers["mcp_session_id"] = uuid.uuid4().hex
            self.sessions.add(headers["mcp_session_id"])
        elif method == "server/discover":
            return self.send(400)
        elif self.headers.get("mcp-session-id") not in self.sessions:
            error = {"code": -32000, "message": "Bad Request: No valid session ID provided"}
            body = json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode()
            return self.send(400, body, content_type="application/json")
        if "id" not in message:
            return self.send(202)
        self.send(200, json.dumps(reply(message)).encode(), **headers)


if sys.argv[1] == "stdio":
    over_pipes()
else:
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), Handler).serve_forever()
