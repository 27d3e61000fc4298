"""Reads a query's result with pyarrow or the standard library, and prints it as one JSON shape.

usage: read_result.py FORMAT FILE
"""

import csv
import datetime
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq

# What these columns hold, for formats that have no types or few.
TYPED = {"duration_ms": float, "request_bytes": int}


def plain(value):
    if isinstance(value, datetime.datetime):
        assert value.utcoffset() == datetime.timedelta(0), "a timestamp is in UTC"
        return value.strftime("%Y-%m-%dT%H:%M:%S")
    if isinstance(value, datetime.date):
        return value.isoformat()
    return value


def typed(name, value):
    """A value out of a format that does not say whether 0 is a float, nor that a text is a timestamp."""
    if value is None:
        return None
    if name == "started_at":
        return plain(datetime.datetime.fromisoformat(value))
    return TYPED[name](value) if name in TYPED else value


def from_table(table):
    rows = [[plain(value) for value in row.values()] for row in table.to_pylist()]
    return table.column_names, rows


def from_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    convert = lambda name, text: None if text == "" else typed(name, text)
    return header, [[convert(name, text) for name, text in zip(header, line, strict=True)] for line in lines]


def from_ndjson(path):
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    columns = list(lines[0]) if lines else []
    return columns, [[typed(name, line[name]) for name in columns] for line in lines]


def from_json(path):
    with open(path, encoding="utf-8") as file:
        answer = json.load(file)
    columns = [column["name"] for column in answer["columns"]]
    return columns, [[typed(n, v) for n, v in zip(columns, row, strict=True)] for row in answer["rows"]]


def main() -> None:
    form, path = sys.argv[1:3]
    if form == "arrow":
        with pa.OSFile(path) as source:
            columns, rows = from_table(pa.ipc.open_stream(source).read_all())
    elif form == "parquet":
        columns, rows = from_table(pq.read_table(path))
    else:
        columns, rows = {"csv": from_csv, "ndjson": from_ndjson, "json": from_json}[form](path)
    print(json.dumps({"columns": columns, "rows": rows}))


main()
