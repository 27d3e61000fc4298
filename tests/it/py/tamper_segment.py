"""Changes one column of a segment's first row that has it, and nothing else: FILE COLUMN VALUE. Prints the row's seq."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq

path, column, value = sys.argv[1:]
table = pq.read_table(path)
values = table.column(column).to_pylist()
row = next(at for at, old in enumerate(values) if old is not None and old != value)
values[row] = value
place = table.schema.get_field_index(column)
changed = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
metadata = {key: text for key, text in pq.read_metadata(path).metadata.items() if key != b"ARROW:schema"}
pq.write_table(changed.replace_schema_metadata(metadata), path)
print(json.dumps(table.column("seq")[row].as_py()))
