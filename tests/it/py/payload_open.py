"""Opens sealed payloads by what `schemas/payload.md` says alone, with `cryptography`, hashlib and pyarrow's zstd.

    payload_open.py vector FILE             opens the vector, and every changed byte of it is refused
    payload_open.py open ENVELOPE RECORD KEY [KEY]      files, and seeds in hex: prints the reason or the plaintext

It shares no code with the program.
"""

import hashlib
import hmac
import json
import struct
import sys

import pyarrow as pa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import mlkem
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MEMBERS = ["v", "org", "workspace", "instance", "plugin", "kind", "tool", "invocation_id", "direction", "epoch", "started_at",
           "content_type"]


class Refused(Exception):
    """Why something does not open: one of the words of the page."""


def lp(data):
    return struct.pack(">H", len(data)) + data


def extract(salt, ikm):
    return hmac.new(salt or bytes(32), ikm, hashlib.sha256).digest()


def expand(prk, info, length):
    out, block, n = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([n]), hashlib.sha256).digest()
        out, n = out + block, n + 1
    return out[:length]


def hkdf(salt, ikm, info, length):
    return expand(extract(salt, ikm), info, length)


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        if self.at + n > len(self.data):
            raise Refused("format")
        taken = self.data[self.at:self.at + n]
        self.at += n
        return taken

    def u16(self):
        return struct.unpack(">H", self.take(2))[0]

    def lp(self):
        return self.take(self.u16())


def xwing_decapsulate(seed, enc):
    expanded = hashlib.shake_256(seed).digest(96)
    kem, sk_x = mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64]), X25519PrivateKey.from_private_bytes(expanded[64:])
    ss_m, ct_x, pk_x = kem.decapsulate(enc[:1088]), enc[1088:], sk_x.public_key().public_bytes_raw()
    ss_x = sk_x.exchange(X25519PublicKey.from_public_bytes(ct_x))
    return hashlib.sha3_256(ss_m + ss_x + ct_x + pk_x + b"\\.//^\\").digest()


def xwing_public(seed):
    expanded = hashlib.shake_256(seed).digest(96)
    kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64]).public_key().public_bytes_raw()
    return kem + X25519PrivateKey.from_private_bytes(expanded[64:]).public_key().public_bytes_raw()


def x25519_decapsulate(seed, enc):
    sk = X25519PrivateKey.from_private_bytes(seed)
    dh, suite = sk.exchange(X25519PublicKey.from_public_bytes(enc)), b"KEM" + b"\x00\x20"
    prk = extract(b"", b"HPKE-v1" + suite + b"eae_prk" + dh)
    context = enc + sk.public_key().public_bytes_raw()
    return expand(prk, b"\x00\x20" + b"HPKE-v1" + suite + b"shared_secret" + context, 32)


SUITES = {1: (b"\x64\x7a", xwing_decapsulate, xwing_public, 1120),
          2: (b"\x00\x20", x25519_decapsulate, lambda s: X25519PrivateKey.from_private_bytes(s).public_key().public_bytes_raw(), 32)}


def hpke_open(suite, seed, enc, info, sealed):
    kem, decapsulate, _, _ = SUITES[suite]
    suite_id, shared = b"HPKE" + kem + b"\x00\x01" + b"\x00\x02", decapsulate(seed, enc)

    def labeled_extract(salt, label, ikm):
        return extract(salt, b"HPKE-v1" + suite_id + label + ikm)

    context = b"\x00" + labeled_extract(b"", b"psk_id_hash", b"") + labeled_extract(b"", b"info_hash", info)
    secret = labeled_extract(shared, b"secret", b"")

    def labeled_expand(label, length):
        return expand(secret, struct.pack(">H", length) + b"HPKE-v1" + suite_id + label + context, length)

    try:
        return AESGCM(labeled_expand(b"key", 32)).decrypt(labeled_expand(b"base_nonce", 12), sealed, b"")
    except InvalidTag:
        raise Refused("stanza") from None


def read_envelope(data):
    reader = Reader(data)
    if reader.take(5) != b"MCPE\x01":
        raise Refused("format")
    suite = reader.take(1)[0]
    if suite not in SUITES:
        raise Refused("suite")
    org, epoch, count = reader.lp(), reader.lp(), reader.take(1)[0]
    if count not in (1, 2):
        raise Refused("format")
    stanzas = []
    for kind in range(1, count + 1):
        if reader.take(1)[0] != kind:
            raise Refused("format")
        key_id, enc, sealed = reader.take(32), reader.lp(), reader.take(48)
        if len(enc) != SUITES[suite][3]:
            raise Refused("format")
        stanzas.append((key_id, enc, sealed))
    if reader.at != len(data):
        raise Refused("format")
    return suite, org, epoch, stanzas


def padded(length):
    if length <= 256:
        return 256
    e = length.bit_length() - 1
    unit = 1 << (e - e.bit_length())
    return -(-length // unit) * unit


def read_header(data):
    try:
        header = json.loads(data.decode("utf-8"))
    except ValueError:
        raise Refused("format") from None
    texts = isinstance(header, dict) and all(
        isinstance(v, str) or isinstance(v, list) and all(isinstance(i, str) for i in v) for v in header.values())
    canonical = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    if not texts or canonical != data or any(not isinstance(header.get(name), str) for name in MEMBERS):
        raise Refused("format")
    if header["v"] != "mcpg.payload/1" or header["started_at"][:10] != header["epoch"][:10]:
        raise Refused("format")
    if header["kind"] not in ("tool", "resource", "prompt", "task") or header["direction"] not in ("request", "response"):
        raise Refused("format")
    return header


def open_record(envelope, record, seeds, cap=16 << 20):
    reader = Reader(record)
    if reader.take(5) != b"MCPY\x01":
        raise Refused("format")
    suite = reader.take(1)[0]
    if suite not in SUITES:
        raise Refused("suite")
    h = reader.u16()
    envelope_id, salt = reader.take(32), reader.take(32)
    header = read_header(reader.take(h))
    commitment, sealed = reader.take(32), record[104 + h:]
    if len(sealed) < 16:
        raise Refused("format")
    of, org, epoch, stanzas = read_envelope(envelope)
    if of != suite:
        raise Refused("suite")
    if envelope_id != hashlib.sha256(envelope).digest() or (org.decode(), epoch.decode()) != (header["org"], header["epoch"]):
        raise Refused("envelope")
    if len(seeds) != len(stanzas):
        raise Refused("stanza")
    ikm = b""
    for kind, (seed, (key_id, enc, share)) in enumerate(zip(seeds, stanzas), 1):
        if hashlib.sha256(SUITES[suite][2](seed)).digest() != key_id:
            raise Refused("stanza")
        info = b"mcpg.payload/1 stanza" + bytes([kind]) + lp(org) + lp(epoch) + key_id
        ikm += hpke_open(suite, seed, enc, info, share)
    content_key = hkdf(bytes(32), ikm, b"mcpg.payload/1 content" + envelope_id, 32)
    d = hashlib.sha256(record[:72 + h]).digest()
    if not hmac.compare_digest(hkdf(salt, content_key, b"mcpg.payload/1 commit" + d, 32), commitment):
        raise Refused("commitment")
    key = hkdf(salt, content_key, b"mcpg.payload/1 record" + d, 44)
    try:
        plain = AESGCM(key[:32]).decrypt(key[32:], sealed, record[:104 + h])
    except InvalidTag:
        raise Refused("tag") from None
    if len(plain) < 9:
        raise Refused("padding")
    flag, raw, length = struct.unpack(">BII", plain[:9])
    if raw > cap:
        raise Refused("length")
    body, rest = plain[9:9 + length], plain[9 + length:]
    if len(body) != length or any(rest) or len(plain) != padded(9 + length) or flag > 1:
        raise Refused("padding")
    if flag == 1:
        try:
            body = pa.decompress(body, decompressed_size=raw, codec="zstd", asbytes=True)
        except (pa.ArrowException, OSError):
            raise Refused("length") from None
    if len(body) != raw:
        raise Refused("length")
    return header, body


def reason(*args):
    try:
        open_record(*args)
    except Refused as refused:
        return str(refused)
    return None


def vector(path):
    of = {}
    with open(path, encoding="ascii") as lines:
        for line in lines:
            name, value = line.split()
            of[name] = bytes.fromhex(value)
    envelope, record, seeds = of["envelope"], of["record"], [of["epoch_sk"], of["tenant_sk"]]
    header, body = open_record(envelope, record, seeds)
    changed = {}
    for data, others in ((record, lambda r: (envelope, r, seeds)), (envelope, lambda e: (e, record, seeds))):
        for at in range(len(data)):
            spoilt = bytearray(data)
            spoilt[at] ^= 1
            why = reason(*others(bytes(spoilt)))
            changed[why] = changed.get(why, 0) + 1
    alone = reason(envelope, record, seeds[:1])
    return {"opened": body == of["plaintext"], "tool": header["tool"], "sound": changed.pop(None, 0), "refused": changed,
            "alone": alone}


if __name__ == "__main__":
    if sys.argv[1] == "vector":
        print(json.dumps(vector(sys.argv[2])))
    else:
        envelope, record = (open(path, "rb").read() for path in sys.argv[2:4])
        try:
            header, body = open_record(envelope, record, [bytes.fromhex(seed) for seed in sys.argv[4:]])
            print(json.dumps({"header": header, "text": body.decode("utf-8")}))
        except Refused as refused:
            print(json.dumps({"refused": str(refused)}))
