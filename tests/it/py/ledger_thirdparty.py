"""Has implementations that are not ours check a ledger: `tlog-scales` (tiles, checkpoints, signed notes, cosignatures, RFC 9162
proofs) and `rfc8785` (canonical JSON). Nothing of the formats that they know is written here again.

usage: ledger_thirdparty.py LEDGER VKEY [--witness VKEY]… [--proof PROOF]… [--entry ENTRY]…

LEDGER is the folder with `checkpoint` and `tile/`. The newest head's signature, its root out of the tiles, an inclusion proof of
some hundred entries and of the first and the last of each tile, and a consistency proof of each older head are checked. PROOF is a
file of inclusion proofs, one JSON object a line: `leaf_index`, `tree_size`, `leaf` and `hashes` and `root` in base64. ENTRY is a
file of entries, one a line: `<entry_hash> <JSON of the entry's members>`. Prints one line of JSON; a fault is an exception.
"""

import argparse
import base64
import hashlib
import json
from pathlib import Path

import rfc8785
from tlog_scales.backend import LocalBackend
from tlog_scales.reader import TilesReader
from tlog_scales.signing import Vkey
from tlog_scales.tiles import leaf_hash
from tlog_scales.tlog import Checkpoint, InclusionProof


def places(size: int) -> list[int]:
    some = {*range(0, size, max(1, size // 300)), *range(0, size, 256), *range(255, size, 256), size - 1}
    return sorted(place for place in some if 0 <= place < size)[:2000]


def check_proofs(path: str) -> int:
    lines = Path(path).read_text().splitlines()
    for line in lines:
        proof = json.loads(line)
        hashes = [base64.b64decode(one) for one in proof["hashes"]]
        leaf, root = base64.b64decode(proof["leaf"]), base64.b64decode(proof["root"])
        InclusionProof(proof["leaf_index"], proof["tree_size"], hashes).check(leaf_hash(leaf), root)
    return len(lines)


def check_entries(path: str) -> int:
    lines = Path(path).read_text().splitlines()
    for line in lines:
        wanted, _, entry = line.partition(" ")
        assert hashlib.sha256(rfc8785.dumps(json.loads(entry))).hexdigest() == wanted, f"another hash: {line}"
    return len(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ledger", type=Path)
    parser.add_argument("vkey")
    for name in ("witness", "proof", "entry"):
        parser.add_argument(f"--{name}", action="append", default=[])
    args = parser.parse_args()

    reader = TilesReader(LocalBackend(args.ledger))
    head = reader.get_checkpoint()
    for vkey in (args.vkey, *args.witness):
        head.verify(Vkey.from_string(vkey))
    assert reader.calculate_root_hash() == head.root_hash, "the tiles give another root"

    inclusion = places(head.size)
    for place in inclusion:
        leaf = reader.get_entry(place)
        assert int.from_bytes(leaf[1:9], "big") == place, f"the bundle has another entry at {place}"
        reader.get_inclusion_proof(place, head.size).check(leaf_hash(leaf), head.root_hash)

    older = sorted((args.ledger / "checkpoints").iterdir())
    for path in older:
        one = Checkpoint.from_text(path.read_text())
        one.verify(Vkey.from_string(args.vkey))
        reader.get_consistency_proof(one.size, head.size).check(one.root_hash, head.root_hash)

    checked = {"size": head.size, "inclusion": len(inclusion), "consistency": len(older)}
    checked["proofs"] = sum(map(check_proofs, args.proof))
    checked["entries"] = sum(map(check_entries, args.entry))
    print(json.dumps(checked))


main()
