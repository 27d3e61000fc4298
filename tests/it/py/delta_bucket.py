"""SQL by DuckDB over one of our Delta tables in a bucket, named `t`; log and files are read by `deltalake`. Prints the
rows as JSON. The bucket's endpoint and keys are taken from the environment.

usage: delta_bucket.py URL ORG TABLE SQL
"""

import json
import os
import sys

import duckdb
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError


def main() -> None:
    url, org, table, sql = sys.argv[1:5]
    options = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    try:
        delta = DeltaTable(f"{url}/orgs/{org}/{table}", storage_options=options)
    except TableNotFoundError:
        print("[[0]]")
        return
    connection = duckdb.connect()
    connection.register("t", delta.to_pyarrow_table())
    print(json.dumps(connection.execute(sql).fetchall(), default=str))


main()
