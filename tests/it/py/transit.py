"""A server of Vault's transit protocol, as far as a KEK goes: versions, encrypt, decrypt, rewrap, rotate, config, trim, AppRole login with tokens that
expire. Refusals are Vault's: 403 for a token that is none, 400 for a ciphertext of a version that may not be used or is not there any more.

    transit.py PORT
"""

import base64
import json
import os
import secrets
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY = {"latest_version": 1, "min_available_version": 0, "min_decryption_version": 1, "min_encryption_version": 0}
VERSIONS = {1: os.urandom(32)}
TOKENS = {}
# Requests that a token is good for: it expires in the midst of things.
USES = 7


class Refused(Exception):
    """A status, and what Vault says of it."""


def encrypt(plaintext):
    version = KEY["latest_version"]
    nonce = os.urandom(12)
    sealed = nonce + AESGCM(VERSIONS[version]).encrypt(nonce, base64.b64decode(plaintext), None)
    return {"ciphertext": f"vault:v{version}:{base64.b64encode(sealed).decode()}", "key_version": version}


def decrypt(ciphertext):
    prefix, version, sealed = ciphertext.split(":")
    version = int(version[1:])
    if prefix != "vault" or version < KEY["min_decryption_version"] or version not in VERSIONS:
        raise Refused(400, "ciphertext or signature version is disallowed by policy (too old)")
    sealed = base64.b64decode(sealed)
    try:
        return base64.b64encode(AESGCM(VERSIONS[version]).decrypt(sealed[:12], sealed[12:], None)).decode()
    except InvalidTag:
        raise Refused(400, "invalid ciphertext: unable to decrypt") from None


def answer(method, path, body):
    match (method, path):
        case ("POST", "transit/encrypt/mcpg"):
            return encrypt(body["plaintext"])
        case ("POST", "transit/decrypt/mcpg"):
            return {"plaintext": decrypt(body["ciphertext"])}
        case ("POST", "transit/rewrap/mcpg"):
            return encrypt(decrypt(body["ciphertext"]))
        case ("GET", "transit/keys/mcpg"):
            return {"name": "mcpg", **KEY, "keys": {str(version): 0 for version in VERSIONS}}
        case ("POST", "transit/keys/mcpg/rotate"):
            KEY["latest_version"] += 1
            VERSIONS[KEY["latest_version"]] = os.urandom(32)
            return None
        case ("POST", "transit/keys/mcpg/config"):
            for name in ("min_decryption_version", "min_encryption_version"):
                if body[name] > KEY["latest_version"]:
                    raise Refused(400, f"cannot set {name} higher than the latest version")
                KEY[name] = body[name]
            return None
        case ("POST", "transit/keys/mcpg/trim"):
            least = body["min_available_version"]
            if least > min(KEY["min_decryption_version"], KEY["min_encryption_version"]) or 0 in (
                    KEY["min_decryption_version"], KEY["min_encryption_version"]):
                raise Refused(400, "minimum available version cannot be higher than minimum decryption or encryption version")
            KEY["min_available_version"] = least
            for version in [version for version in VERSIONS if version < least]:
                del VERSIONS[version]
            return None
    raise Refused(404, "no handler for route")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, value):
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_one(self, method):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.removeprefix("/v1/")
        if path == "sys/health":
            return self.reply(200, {"initialized": True})
        if self.headers.get("X-Vault-Request") != "true":
            return self.reply(412, {"errors": ["missing X-Vault-Request"]})
        body = json.loads(body) if body else {}
        if path == "auth/approle/login":
            if (body.get("role_id"), body.get("secret_id")) != ("the-role", "the-secret"):
                return self.reply(400, {"errors": ["invalid role or secret ID"]})
            token = secrets.token_hex(16)
            TOKENS[token] = USES
            return self.reply(200, {"auth": {"client_token": token}})
        token = self.headers.get("X-Vault-Token", "")
        if TOKENS.get(token, 0) <= 0:
            return self.reply(403, {"errors": ["permission denied"]})
        TOKENS[token] -= 1
        try:
            data = answer(method, path, body)
        except Refused as refused:
            return self.reply(refused.args[0], {"errors": [refused.args[1]]})
        return self.reply(204, None) if data is None else self.reply(200, {"data": data})

    def do_GET(self):
        self.handle_one("GET")

    def do_POST(self):
        self.handle_one("POST")


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
