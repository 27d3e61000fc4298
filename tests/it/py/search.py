"""Searches every file under a folder for words: in its raw bytes, in every zstd, gzip or lz4 block that starts anywhere in it,
and in every value of every Parquet file. Prints the places as JSON.

usage: search.py FOLDER WORD…
"""

import io
import json
import os
import sys
import zlib

import pyarrow as pa
import pyarrow.parquet as pq

MAGIC = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}


def blocks(data: bytes):
    """What decompresses out of `data`, wherever a block starts in it; a block cut short gives what it can."""
    for magic, codec in MAGIC.items():
        start = data.find(magic)
        while start != -1:
            out = io.BytesIO()
            try:
                with pa.input_stream(pa.BufferReader(data[start:]), compression=codec) as stream:
                    while piece := stream.read(1 << 16):
                        out.write(piece)
            except (OSError, pa.ArrowException):
                pass
            yield f"{codec}@{start}", out.getvalue()
            start = data.find(magic, start + 1)
    start = data.find(b"\x1f\x8b\x08")
    while start != -1:
        try:
            yield f"gzip@{start}", zlib.decompressobj(wbits=31).decompress(data[start:])
        except zlib.error:
            pass
        start = data.find(b"\x1f\x8b\x08", start + 1)


def values(data: bytes):
    table = pq.ParquetFile(pa.BufferReader(data)).read()
    return "\n".join(str(row) for row in table.to_pylist()).encode()


def main() -> None:
    folder, *words = sys.argv[1:]
    wanted = [word.encode() for word in words]
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            try:
                with open(path, "rb") as file:
                    data = file.read()
            except FileNotFoundError:
                # The control plane that runs there has deleted it meanwhile.
                continue
            parts = [("raw", data), *blocks(data)]
            if name.endswith(".parquet"):
                parts.append(("rows", values(data)))
            found += [f"{path} {where}" for where, part in parts if any(word in part for word in wanted)]
    print(json.dumps(found))


main()
