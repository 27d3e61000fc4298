"""Swaps the sealed bytes of two rows of a payloads' table, as a party that can write to the store can. The file keeps its name; Delta's log says its size
anew. Prints how many files were changed.

    tamper_payload.py FOLDER
"""

import glob
import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq

folder, swapped = sys.argv[1], 0
for path in glob.glob(f"{folder}/date=*/*.parquet"):
    table = pq.read_table(path, partitioning=None)
    if table.num_rows != 2:
        continue
    record = table.column("record").to_pylist()
    index = table.schema.get_field_index("record")
    table = table.set_column(index, table.schema.field("record"), pa.array([record[1], record[0]], pa.binary()))
    pq.write_table(table, path)
    name, size = os.path.basename(path), os.path.getsize(path)
    for log in glob.glob(f"{folder}/_delta_log/*.json"):
        with open(log, encoding="utf-8") as lines:
            actions = [json.loads(line) for line in lines]
        for action in actions:
            if action.get("add", {}).get("path", "").endswith(name):
                action["add"]["size"] = size
        with open(log, "w", encoding="utf-8") as out:
            out.write("\n".join(json.dumps(action) for action in actions) + "\n")
    swapped += 1
print(json.dumps({"swapped": swapped}))
