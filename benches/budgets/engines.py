"""Times queries in DuckDB or ClickHouse over the live files of a Delta table, which they see as `tool_invocations`.

Reads {"engine", "table", "queries", "runs"} as JSON from standard input; prints {"version", "files", "bytes", "answers": [{"ms", "rows"}]}.
Each query runs once untimed, then `runs` times timed. The files come from the table's log, read by `deltalake`.
"""

import json
import os
import sys
import time
from urllib.parse import unquote, urlparse

from deltalake import DeltaTable


def duckdb_engine(files):
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    names = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
    connection.execute(f"CREATE VIEW tool_invocations AS SELECT * FROM read_parquet([{names}], hive_partitioning = true)")
    return duckdb.__version__, lambda query: connection.execute(query).fetchall()


def clickhouse_engine(files):
    from chdb.session import Session

    session = Session()
    # Names in braces may hold no folder, so the folder is a pattern; names are unique.
    folder = os.path.dirname(os.path.dirname(files[0]))
    names = ",".join(os.path.basename(file) for file in files)
    session.query("CREATE DATABASE bench ENGINE = Atomic")
    session.query("USE bench")
    session.query(f"CREATE VIEW tool_invocations AS SELECT * FROM file('{folder}/date=*/{{{names}}}', 'Parquet')")
    session.query("SET output_format_json_quote_64bit_integers = 0")
    version = str(session.query("SELECT version()", "TSV")).strip()
    return version, lambda query: json.loads(str(session.query(query, "JSONCompact")))["data"]


def main():
    task = json.load(sys.stdin)
    files = [unquote(urlparse(uri).path) for uri in DeltaTable(task["table"]).file_uris()]
    version, run = {"duckdb": duckdb_engine, "clickhouse": clickhouse_engine}[task["engine"]](files)
    answers = []
    for query in task["queries"]:
        rows = run(query)
        times = []
        for _ in range(task["runs"]):
            began = time.perf_counter()
            rows = run(query)
            times.append((time.perf_counter() - began) * 1e3)
        answers.append({"ms": times, "rows": [list(row) for row in rows]})
    size = sum(os.path.getsize(file) for file in files)
    print(json.dumps({"version": version, "files": len(files), "bytes": size, "answers": answers}, default=str))


main()
