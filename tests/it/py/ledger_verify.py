"""Verifies an audit ledger. Written from the format's description alone; shares no code and no library with the program.

usage: ledger_verify.py LEDGER ORG VKEY… [--witness VKEY…]

LEDGER is the folder that holds `checkpoint`, `checkpoints/`, `segments/` and `tile/`, or a tar file of it. Prints one line of
JSON. Exit code 0: sound. 1: not sound, with what is wrong first, at which entry and in which file. 2: could not check.
"""

import base64
import datetime
import hashlib
import json
import os
import re
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from ledger_claims import false_claim
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

VERSION = "mcpg.audit/1"
STRINGS = (
    "event_id actor action target decision reason workspace instance request_id trace_id span_id invocation_id "
    "detail salt prev_hash"
).split()
TIMES = ["occurred_at", "recorded_at"]
LISTS = ["policy_ids", "obligations"]
NUMBERS = ["seq", "emitter_seq"]
COLUMNS = {*STRINGS, *TIMES, *LISTS, *NUMBERS, "entry_hash"}
SEGMENT = re.compile(r"segments/(\d{20})-(\d{20})\.parquet")
HEAD = re.compile(r"checkpoints/(\d{20})")
# Columns that only emitters fill.
EMITTERS = "workspace instance request_id trace_id span_id invocation_id emitter_seq".split()
EPOCH = datetime.datetime(1970, 1, 1)
ZEROS = "0" * 64
TILE = 256


class NotSound(Exception):
    """The first thing that is wrong: its kind, the entry where known, the file, why."""


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right)


def plain_number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"0|[1-9][0-9]{0,18}", text) else None


# --- where it lies -------------------------------------------------------------------------------------------------


class Folder:
    def __init__(self, path: str):
        self.path = path

    def list(self, folder: str) -> list[str]:
        try:
            return [f"{folder}/{name}" for name in sorted(os.listdir(os.path.join(self.path, folder)))]
        except FileNotFoundError:
            return []

    def read(self, path: str) -> bytes | None:
        try:
            with open(os.path.join(self.path, path), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None


class Tar:
    def __init__(self, path: str):
        self.tar = tarfile.open(path, "r:")
        self.members = {member.name: member for member in self.tar if member.isfile()}

    def list(self, folder: str) -> list[str]:
        return sorted(name for name in self.members if name.rpartition("/")[0] == folder)

    def read(self, path: str) -> bytes | None:
        member = self.members.get(path)
        return self.tar.extractfile(member).read() if member else None


# --- heads ---------------------------------------------------------------------------------------------------------


class Key:
    """A verifier key: name+id+base64 of the algorithm's byte and the public key."""

    def __init__(self, vkey: str):
        self.name, number, rest = vkey.split("+", 2)
        data = base64.b64decode(rest, validate=True)
        self.algorithm, self.public = data[0], Ed25519PublicKey.from_public_bytes(data[1:])
        self.id = sha256(self.name.encode() + b"\n" + data)[:4]
        if self.id.hex() != number or self.algorithm not in (1, 4):
            raise ValueError(f"{vkey} is not a verifier key")

    def has_signed(self, text: bytes, signature: bytes) -> bool:
        if self.algorithm == 4:
            time, signature = int.from_bytes(signature[:8], "big"), signature[8:]
            text = f"cosignature/v1\ntime {time}\n".encode() + text
        try:
            self.public.verify(signature, text)
            return True
        except InvalidSignature:
            return False


class Head:
    """A checkpoint, whose signatures `keys` must have made: any of them, or each where `each`."""

    def __init__(self, path: str, data: bytes):
        self.path = path
        try:
            text = data.decode()
            body, _, signatures = text.rpartition("\n\n")
            self.body = (body + "\n").encode()
            self.origin, size, root = body.split("\n")
            self.size, self.root = plain_number(size), base64.b64decode(root, validate=True)
            lines = re.findall(r"— (\S+) (\S+)\n", signatures)
            if self.size is None or len(self.root) != 32 or "".join(f"— {n} {s}\n" for n, s in lines) != signatures:
                raise ValueError
            self.signatures = [(name, base64.b64decode(line, validate=True)) for name, line in lines]
        except ValueError:
            raise NotSound("forged_head", None, path, "it is no checkpoint") from None

    def signed_by(self, key: Key) -> bool:
        mine = [sig[4:] for name, sig in self.signatures if name == key.name and sig[:4] == key.id]
        if any(not key.has_signed(self.body, signature) for signature in mine):
            raise NotSound("forged_head", None, self.path, f"the signature of {key.name} does not verify")
        return bool(mine)


def newest_head(source, org: str, keys: list[Key], witnesses: list[Key]) -> tuple[Head, list[Head]]:
    data = source.read("checkpoint")
    older = []
    for path in source.list("checkpoints"):
        if not HEAD.fullmatch(path):
            raise NotSound("forged_head", None, path, "its name is not a size in 20 digits")
        older.append(Head(path, source.read(path)))
        if older[-1].size != int(HEAD.fullmatch(path)[1]):
            raise NotSound("forged_head", None, path, "its name is not its size")
    heads = ([Head("checkpoint", data)] if data is not None else []) + older
    if not heads:
        if source.list("segments"):
            raise NotSound("missing", None, "checkpoint", "there is no head")
        raise FileNotFoundError("there is no ledger")
    # The greater of `checkpoint`, which is overwritten, and of those that are kept; of two of one size, `checkpoint`.
    head = max(heads, key=lambda one: one.size)
    older = [one for one in heads if one is not head]
    if not re.fullmatch(rf"[^+\s]+/orgs/{re.escape(org)}/audit/[1-9][0-9]*", head.origin):
        raise NotSound("wrong_org", None, head.path, f"it is of {head.origin}")
    if not any([head.signed_by(key) for key in keys]):
        raise NotSound("wrong_key", None, head.path, "no key that was given has signed it")
    copies = [one for one in heads if one.body == head.body]
    if not all([any([copy.signed_by(key) for copy in copies]) for key in witnesses]):
        raise NotSound("not_cosigned", None, head.path, "a witness has not signed it")
    for one in older:
        if one.origin != head.origin:
            raise NotSound("wrong_org", None, one.path, f"it is of {one.origin}")
        signed = any([one.signed_by(key) for key in keys])
        if one.size == head.size and one.root != head.root:
            raise NotSound("forked" if signed else "forged_head", None, one.path, f"{head.path} has another root")
    return head, older


# --- the tree ------------------------------------------------------------------------------------------------------


class Tree:
    """Grows leaf by leaf; compares every tile that fills, or ends at the head's size, with the stored one."""

    def __init__(self, source, size: int):
        self.source, self.size, self.count = source, size, 0
        self.levels: list[list[bytes]] = [[]]
        self.leaves: list[bytes | None] = []
        self.differs: tuple[int, str, str] | None = None

    def append(self, hash_: bytes, leaf: bytes | None) -> None:
        self.count += 1
        self.leaves.append(leaf)
        level = 0
        while True:
            if level == len(self.levels):
                self.levels.append([])
            self.levels[level].append(hash_)
            if len(self.levels[level]) < TILE:
                break
            self.compare(level, (self.count >> 8 * level) - TILE)
            hash_ = self.root_of(self.levels[level])
            self.levels[level] = []
            level += 1
        if self.count % TILE == 0:
            self.leaves = []

    def compare_edge(self) -> None:
        for level, hashes in enumerate(self.levels):
            if hashes:
                self.compare(level, (self.count >> 8 * level) // TILE * TILE)

    def compare(self, level: int, first: int) -> None:
        if self.count > self.size:
            return
        hashes = self.levels[level]
        path, data = self.tile(str(level), first // TILE, len(hashes))
        self.same(level, first, path, [data[i : i + 32] for i in range(0, 32 * len(hashes), 32)] if data else None, hashes)
        if level == 0:
            path, data = self.tile("entries", first // TILE, len(hashes))
            if data is not None or any(self.leaves):
                self.same(0, first, path, self.entries(data), self.leaves)

    def same(self, level: int, first: int, path: str, found: list | None, wanted: list) -> None:
        for place, want in enumerate(wanted):
            if want is not None and (found is None or place >= len(found) or found[place] != want):
                why = "it is not there" if found is None else "it does not hold what the entries give"
                seq = (first + place) << 8 * level
                if self.differs is None or seq < self.differs[0]:
                    self.differs = (seq, path, why)
                return

    def tile(self, kind: str, number: int, width: int) -> tuple[str, bytes | None]:
        name = f"{number % 1000:03d}"
        while number >= 1000:
            number //= 1000
            name = f"x{number % 1000:03d}/{name}"
        path = f"tile/{kind}/{name}"
        data = self.source.read(f"{path}.p/{width}") if width < TILE else None
        return (f"{path}.p/{width}", data) if data is not None else (path, self.source.read(path))

    @staticmethod
    def entries(data: bytes | None) -> list[bytes] | None:
        if data is None:
            return None
        found, at = [], 0
        while at < len(data):
            end = at + 2 + int.from_bytes(data[at : at + 2], "big")
            found.append(data[at + 2 : end])
            at = end
        return found

    @staticmethod
    def root_of(hashes: list[bytes]) -> bytes:
        """The root of a complete subtree."""
        while len(hashes) > 1:
            hashes = [node(hashes[i], hashes[i + 1]) for i in range(0, len(hashes), 2)]
        return hashes[0]

    def root(self) -> bytes:
        if self.count == 0:
            return sha256(b"")
        root = None
        for hashes in self.levels:
            end = len(hashes)
            while end:
                width = end & -end
                subtree = self.root_of(hashes[end - width : end])
                root = subtree if root is None else node(subtree, root)
                end -= width
        return root


# --- segments ------------------------------------------------------------------------------------------------------


def canonical(row: dict, origin: str) -> bytes:
    members = {"v": VERSION, "origin": origin}
    for name in STRINGS:
        if row[name] is not None:
            members[name] = row[name]
    for name in NUMBERS:
        if row[name] is not None:
            members[name] = str(row[name])
    for name in LISTS:
        if row[name]:
            members[name] = row[name]
    for name in TIMES:
        if row[name] is not None:
            time = EPOCH + datetime.timedelta(microseconds=row[name])
            members[name] = time.isoformat(timespec="microseconds") + "Z"
    # All names are ASCII, so that this is the order of RFC 8785, and its escapes are the ones that json writes.
    return json.dumps(members, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


class Segment:
    def __init__(self, path: str):
        self.path = path
        self.first, self.last = (int(number) for number in SEGMENT.fullmatch(path).groups())

    def open(self, source, origin: str) -> pq.ParquetFile:
        try:
            file = pq.ParquetFile(pa.BufferReader(source.read(self.path)))
        except (pa.ArrowException, OSError) as error:
            raise NotSound("unreadable", self.first, self.path, str(error)) from None
        metadata = file.metadata.metadata or {}
        if metadata.get(b"mcpg.v") != VERSION.encode():
            raise NotSound("wrong_version", self.first, self.path, f"mcpg.v is {metadata.get(b'mcpg.v')}")
        if metadata.get(b"mcpg.origin") != origin.encode():
            raise NotSound("wrong_org", self.first, self.path, f"mcpg.origin is {metadata.get(b'mcpg.origin')}")
        names = file.schema_arrow.names
        if len(set(names)) != len(names) or set(names) - COLUMNS:
            raise NotSound("changed", self.first, self.path, "it has columns that an entry does not have")
        return file

    def rows(self, source, origin: str):
        file = self.open(source, origin)
        try:
            for batch in file.iter_batches(batch_size=4096):
                columns = {}
                for name in COLUMNS:
                    if name not in batch.schema.names:
                        columns[name] = [None] * batch.num_rows
                    elif name in TIMES:
                        column = batch.column(name)
                        columns[name] = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64()).to_pylist()
                    else:
                        columns[name] = batch.column(name).to_pylist()
                for values in zip(*columns.values()):
                    yield dict(zip(columns, values))
            self.check_claims(source, file)
        except (pa.ArrowException, OSError) as error:
            raise NotSound("unreadable", self.first, self.path, str(error)) from None

    def check_claims(self, source, file: pq.ParquetFile) -> None:
        """What the file says of its rows beside them must be so."""

        def column(group: int, name: str) -> list:
            found = file.read_row_group(group, columns=[name], use_threads=False).column(0).combine_chunks()
            if name in TIMES:
                found = found.cast(pa.timestamp("us", found.type.tz)).cast(pa.int64())
            return found.to_pylist()

        why = false_claim(source.read(self.path), file, column)
        if why:
            raise NotSound("false_statistics", self.first, self.path, why)

    def holds_elsewhere(self, source, origin: str, seq: int) -> bool:
        return any(row["seq"] == seq for row in self.rows(source, origin))


def cover(source) -> tuple[list[Segment], list[Segment]]:
    """The segments to read, and those whose entries a wider one has too."""
    paths = source.list("segments")
    for path in paths:
        match = SEGMENT.fullmatch(path)
        if not match or match[1] > match[2]:
            raise NotSound("added", None, path, "it is not named as a segment")
    wide, inner = [], []
    for segment in sorted(map(Segment, paths), key=lambda s: (s.first, -s.last)):
        if not wide or segment.first > wide[-1].last:
            if wide and segment.first != wide[-1].last + 1:
                raise NotSound("missing", wide[-1].last + 1, segment.path, f"no segment has it; the next starts here")
            wide.append(segment)
        elif segment.last <= wide[-1].last:
            inner.append(segment)
        else:
            raise NotSound("added", segment.first, segment.path, f"{wide[-1].path} has it too")
    return wide, inner


class Verifier:
    def __init__(self, source, org: str, keys: list[Key], witnesses: list[Key]):
        self.source = source
        self.head, self.older = newest_head(source, org, keys, witnesses)
        self.origin = self.head.origin
        self.keys = keys
        self.segments, self.inner = cover(source)
        self.first = self.segments[0].first if self.segments else self.head.size
        self.tree = Tree(source, self.head.size)
        self.ends: set[int] = set()  # where removals that count end
        self.named: dict[str, str] = {}
        self.hold: int | None = None
        self.refused = ""
        self.rotated_at = 0
        self.emitters: dict[str, list[list[int]]] = {}
        self.entry_hashes: dict[int, str] = {}
        self.wanted = {bound for s in self.inner for bound in (s.first - 1, s.last)}
        self.root = self.tree.root() if self.head.size == 0 else None
        self.bad_head: Head | None = None
        self.good_size = 0

    def run(self) -> dict:
        heads = sorted(self.older, key=lambda head: head.size)
        self.pruned(heads)
        expected, end = None, self.first
        for segment in self.segments:
            expected, end = self.segment(segment, expected, heads)
        if end < self.head.size:
            raise NotSound("missing", end, "segments", f"the head has {self.head.size} entries")
        self.judge()
        self.parts()
        for head in self.older:
            if not any([head.signed_by(key) for key in self.keys]) and head.size > self.rotated_at:
                raise NotSound("wrong_key", None, head.path, "no key that was given has signed it")
        kept = max(self.ends, default=0)
        if self.first > kept:
            why = f"entries up to {self.first - 1} are gone and no ledger.prune says so{self.refused}"
            raise NotSound("missing", kept, "segments", why)
        for segment in self.segments + self.inner:
            wanted = self.named.get(segment.path)
            if wanted and sha256(self.source.read(segment.path)).hex() != wanted:
                raise NotSound("changed", segment.first, segment.path, "it is not what ledger.prune names")
        holes = {name: self.holes(ranges) for name, ranges in self.emitters.items()}
        return {
            "sound": True,
            "size": self.head.size,
            "first_kept": self.first,
            "root": self.root.hex(),
            "not_signed": end - self.head.size,
            "heads": len(self.source.list("checkpoints")),
            "holes": {name: {"count": len(found), "first": found[0]} for name, found in holes.items() if found},
        }

    def pruned(self, heads: list[Head]) -> None:
        """The leaf hashes of the entries that are gone, from the kept tiles."""
        for number in range(-(-min(self.first, self.head.size) // TILE)):
            width = min(TILE, self.head.size - number * TILE)
            path, data = self.tree.tile("0", number, width)
            for place in range(min(TILE, self.first - number * TILE)):
                found = (data or b"")[32 * place : 32 * place + 32]
                if len(found) != 32:
                    raise NotSound("damaged_tile", number * TILE + place, path, "it lacks a leaf of a removed entry")
                self.grow(found, None, heads)

    def grow(self, hash_: bytes, leaf: bytes | None, heads: list[Head]) -> None:
        self.tree.append(hash_, leaf)
        while heads and heads[0].size <= self.tree.count:
            head = heads.pop(0)
            if head.root == (self.tree.root() if head.size else sha256(b"")):
                self.good_size = max(self.good_size, head.size)
            elif self.bad_head is None:
                self.bad_head = head
        if self.tree.count == self.head.size:
            self.tree.compare_edge()
            self.root = self.tree.root()

    def segment(self, segment: Segment, expected: str | None, heads: list[Head]) -> tuple[str, int]:
        seq = segment.first
        if seq == 0:
            expected = ZEROS
        for row in segment.rows(self.source, self.origin):
            if row["seq"] != seq or seq > segment.last:
                self.out_of_order(segment, row["seq"], seq)
            if sha256(canonical(row, self.origin)).hex() != row["entry_hash"]:
                raise NotSound("changed", seq, segment.path, "its entry_hash is not the hash of its columns")
            if expected is not None and row["prev_hash"] != expected:
                if self.tree.differs:
                    raise NotSound("changed", self.tree.differs[0], segment.path, "its leaf is another")
                raise NotSound("changed", seq, segment.path, "its prev_hash is not the entry_hash of the entry before")
            expected = row["entry_hash"]
            leaf = b"\x01" + seq.to_bytes(8, "big") + bytes.fromhex(row["prev_hash"]) + bytes.fromhex(expected)
            self.grow(sha256(b"\x00" + leaf), leaf, heads)
            self.note(row)
            seq += 1
        if seq != segment.last + 1:
            raise NotSound("missing", seq, segment.path, "it ends before its name says")
        return expected, seq

    def out_of_order(self, segment: Segment, found: int, wanted: int) -> None:
        rows = segment.open(self.source, self.origin).metadata.num_rows
        named = segment.last - segment.first + 1
        if rows > named:
            raise NotSound("added", found, segment.path, f"it has {rows} entries, its name says {named}")
        if wanted <= segment.last and segment.holds_elsewhere(self.source, self.origin, wanted):
            raise NotSound("reordered", wanted, segment.path, f"entry {found} is in its place")
        raise NotSound("missing", wanted, segment.path, f"entry {found} is in its place")

    def note(self, row: dict) -> None:
        if row["seq"] - 1 in self.wanted:
            self.entry_hashes[row["seq"] - 1] = row["prev_hash"]
        if row["seq"] in self.wanted:
            self.entry_hashes[row["seq"]] = row["entry_hash"]
        if row["seq"] < self.head.size:
            self.removal(row)
        if row["action"] == "ledger.key":
            self.rotated_at = max(self.rotated_at, row["seq"])
        if row["emitter_seq"] is not None:
            ranges = self.emitters.setdefault(row["instance"] or "", [])
            if ranges and ranges[-1][1] + 1 == row["emitter_seq"]:
                ranges[-1][1] += 1
            else:
                ranges.append([row["emitter_seq"]] * 2)

    def removal(self, row: dict) -> None:
        """Takes what an entry says of holds and removals; a removal that does not count excuses nothing."""
        asked = row["actor"] == "anonymous" or row["actor"].startswith("service:")
        stamped = row["detail"] is not None and "submitted_by" in json.loads(row["detail"])
        emitted = stamped or any(row[name] is not None for name in EMITTERS)
        own = row["actor"].startswith("system:control-plane@") or (asked and not emitted)
        if row["action"] == "ledger.hold" and self.hold is None:
            self.hold = row["seq"]
        if row["action"] == "ledger.release" and own:
            self.hold = None
        if row["action"] != "ledger.prune":
            return
        try:
            detail = json.loads(row["detail"] or "null")
            first_kept = plain_number(detail["first_kept"])
            named = [(Segment(f"segments/{one['name']}"), one["sha256"]) for one in detail["segments"]]
            start = named[0][0].first
            follow = [start, *(segment.last + 1 for segment, _ in named)]
            after = detail.get("after")
            gone = after is not None and start <= int(after) < self.first
            begins = start == 0 or start in self.ends or self.first >= start or gone
            digests = all(re.fullmatch(r"[0-9a-f]{64}", digest) for _, digest in named)
            fits = [segment.first for segment, _ in named] == follow[:-1] and follow[-1] == first_kept <= row["seq"]
            counts = own and self.hold is None and begins and digests and fits
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            counts = False
        if counts:
            self.ends.add(first_kept)
            self.named |= {segment.path: digest for segment, digest in named}
        else:
            self.refused = f"; the ledger.prune in entry {row['seq']} does not count"

    @staticmethod
    def holes(ranges: list[list[int]]) -> list[list[int]]:
        found, end = [], None
        for first, last in sorted(ranges):
            if end is not None and first > end + 1:
                found.append([end + 1, first - 1])
            end = last if end is None else max(end, last)
        return found

    def judge(self) -> None:
        """The signed root says who is right where entries and tiles differ."""
        differs = self.tree.differs
        if self.root != self.head.root:
            if differs:
                raise NotSound("changed", differs[0], differs[1], "the signed root is not that of the entries")
            why = f"the signed root is not that of the entries; they are the signed ones up to {self.good_size}"
            raise NotSound("changed", None, "checkpoint", why)
        if self.bad_head:
            raise NotSound("forged_head", None, self.bad_head.path, "its root is not that of the entries")
        if differs:
            raise NotSound("damaged_tile", *differs)

    def parts(self) -> None:
        for part in self.inner:
            seq, expected = part.first, self.entry_hashes.get(part.first - 1, ZEROS)
            for row in part.rows(self.source, self.origin):
                if row["seq"] != seq or row["prev_hash"] != expected:
                    raise NotSound("changed", seq, part.path, "it is not what the wider segment has")
                expected = sha256(canonical(row, self.origin)).hex()
                if expected != row["entry_hash"]:
                    raise NotSound("changed", seq, part.path, "its entry_hash is not the hash of its columns")
                seq += 1
            if seq != part.last + 1 or expected != self.entry_hashes[part.last]:
                raise NotSound("changed", seq, part.path, "it is not what the wider segment has")


def main() -> int:
    arguments, witnesses = sys.argv[1:], []
    if "--witness" in arguments:
        at = arguments.index("--witness")
        arguments, witnesses = arguments[:at], arguments[at + 1 :]
    try:
        ledger, org, *vkeys = arguments
        source = Folder(ledger) if os.path.isdir(ledger) else Tar(ledger)
        report = Verifier(source, org, [Key(vkey) for vkey in vkeys], [Key(vkey) for vkey in witnesses]).run()
        code = 0
    except NotSound as found:
        kind, seq, path, why = found.args
        report, code = {"sound": False, "kind": kind, "seq": seq, "file": path, "why": why}, 1
    except (OSError, ValueError, tarfile.TarError) as error:
        report, code = {"sound": None, "why": str(error)}, 2
    print(json.dumps(report))
    return code


sys.exit(main())
