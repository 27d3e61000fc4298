"""Three million real flights as samples: Arrow streams of 50,000 rows, and the exact figures of each tool on standard output.

A flight's sample: `tool` is the airport of origin, `workspace` the first letter of the destination, `duration_ms` one second for each
minute from an hour before the scheduled departure to the real one (so that early flights count too; never below 0), `outcome` is
`timeout` for those more than an hour late. All start within the minute before NOW.

usage: flights.py PARQUET FOLDER NOW
"""

import datetime
import json
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROWS = 50_000
QUANTILES = (0.5, 0.95, 0.99)


def main() -> None:
    source, folder, now = sys.argv[1:4]
    flights = pq.read_table(source, columns=["delay", "origin", "destination"])
    rows = flights.num_rows
    delay = flights["delay"].to_numpy()
    duration = np.maximum(delay + 60, 0) * 1000.0
    failed = delay > 60
    end = int(datetime.datetime.fromisoformat(now).timestamp() * 1e6)
    started = end - (np.arange(rows, dtype=np.int64) * 7919) % 60_000_000
    constant = lambda text: pa.repeat(pa.scalar(text), rows)
    table = pa.table(
        {
            "workspace": pc.utf8_slice_codeunits(flights["destination"].cast(pa.string()), 0, 1),
            "instance": constant("gw-1"),
            "plugin": constant("flights"),
            "tool": flights["origin"].cast(pa.string()),
            "started_at": pa.array(started, pa.timestamp("us", tz="UTC")),
            "duration_ms": duration,
            "outcome": pc.if_else(pa.array(failed), "timeout", "ok"),
        }
    )
    for number, batch in enumerate(table.combine_chunks().to_batches(max_chunksize=ROWS)):
        with pa.OSFile(os.path.join(folder, f"{number:04}.arrow"), "wb") as sink:
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)

    tools = flights["origin"].to_numpy()
    order = np.lexsort((duration, tools))
    tools, duration, failed = tools[order], duration[order], failed[order]
    names, starts = np.unique(tools, return_index=True)
    answer = []
    for name, start, stop in zip(names, starts, [*starts[1:], rows], strict=True):
        count = int(stop - start)
        # Nearest rank: the least value that at least q of all do not exceed.
        ranks = [max(int(np.ceil(q * count)), 1) - 1 for q in QUANTILES]
        quantiles = [float(duration[start + rank]) for rank in ranks]
        answer.append({"tool": str(name), "calls": count, "errors": int(failed[start:stop].sum()), "quantiles": quantiles})
    print(json.dumps(answer))


main()
