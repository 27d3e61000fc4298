"""SQL by DuckDB over one of our Delta tables, named `t`; the log is read by `deltalake`. Prints the rows as JSON.

usage: delta.py STORE ORG TABLE SQL
"""

import json
import os
import sys

import duckdb
from deltalake import DeltaTable


def main() -> None:
    store, org, table, sql = sys.argv[1:5]
    path = os.path.join(store, "orgs", org, table)
    if not os.path.isdir(os.path.join(path, "_delta_log")):
        print("[[0]]")
        return
    files = DeltaTable(path).file_uris()
    if not files:
        print("[[0]]")
        return
    connection = duckdb.connect()
    connection.execute(f"CREATE VIEW t AS SELECT * FROM read_parquet({files!r}, hive_partitioning = true)")
    rows = connection.execute(sql).fetchall()
    print(json.dumps(rows, default=str))


main()
