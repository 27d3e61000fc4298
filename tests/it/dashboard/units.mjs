// What people type as times, and how numbers are written: the page's own functions, on the Node that the tests bring,
// which reads TypeScript as it stands.
import assert from "node:assert/strict";
import { bytes, change, count, duration, percent, rate, significant } from "../../../ui/src/lib/format.ts";
import { instant, parseWords, span, stepOf } from "../../../ui/src/lib/time.ts";

process.env.TZ = "UTC";
// A Friday.
const now = Date.parse("2026-11-27T15:30:00Z");
const words = (text) => {
  const found = parseWords(text, now);
  return found && `${found.from} ${found.to}`;
};

assert.equal(words("last 6 h"), "now-6h now");
assert.equal(words("15 minutes"), "now-15m now");
assert.equal(words("past 2 days"), "now-2d now");
assert.equal(words("now-90s"), "now-90s now");
assert.equal(words("yesterday 9 to 11"), "2026-11-26T09:00:00Z 2026-11-26T11:00:00Z");
assert.equal(words("yesterday"), "2026-11-26T00:00:00Z 2026-11-27T00:00:00Z");
assert.equal(words("today 8:15 to 9am"), "2026-11-27T08:15:00Z 2026-11-27T09:00:00Z");
assert.equal(words("tuesday 14:00 to 15:30"), "2026-11-24T14:00:00Z 2026-11-24T15:30:00Z");
assert.equal(words("2026-11-20 14:00 to 15:30"), "2026-11-20T14:00:00Z 2026-11-20T15:30:00Z");
assert.equal(words("2026-11-20T14:00:00Z to 2026-11-20T15:30:00Z"), "2026-11-20T14:00:00Z 2026-11-20T15:30:00Z");
for (const nonsense of ["", "soon", "yesterday 11 to 9", "last x h", "25:00 to 26:00"]) assert.equal(words(nonsense), null, nonsense);

assert.equal(instant("now", now), now);
assert.equal(instant("now-1h", now), now - 3600e3);
assert.equal(instant("2026-11-27T06:45:00Z", now), Date.parse("2026-11-27T06:45:00Z"));
assert.equal(instant("now-1y", now), null);
assert.deepEqual(span("now-1h", "now", now), { from: now - 3600e3, to: now });
assert.deepEqual(span("now", "now-1h", now), { from: now - 2 * 3600e3, to: now - 3600e3 }, "a stretch that ends before it begins is the hour before its end");
assert.equal(stepOf({ from: now - 3600e3, to: now }, 300), 15e3);
assert.equal(stepOf({ from: now - 86_400e3, to: now }, 300), 300e3);

assert.deepEqual([0, 1.5, 12.34, 123.4, 1234.5, 0.01234].map(significant), ["0", "1.5", "12.3", "123", "1235", "0.012"]);
assert.deepEqual([999, 1204, 48_211, 1_300_000].map(count), ["999", "1,204", "48.2 k", "1.3 M"]);
assert.deepEqual([0, 0.0004, 0.25, 84.2, 891, 2000, 90_000, 7_200_000, NaN].map(duration), ["0 ms", "<1 µs", "250 µs", "84.2 ms", "891 ms", "2 s", "90 s", "2 h", "–"]);
assert.deepEqual([0, 0.00001, 0.018, 1].map(percent), ["0 %", "<0.01 %", "1.8 %", "100 %"]);
assert.deepEqual([change(150, 100), change(50, 100), change(100, 100), change(1, 0), change(3000, 100)], ["+50 %", "−50 %", "±0 %", "new", "+30 ×"]);
assert.deepEqual([rate(41), rate(0.5), rate(0.001)], [{ value: "41", unit: "/s" }, { value: "30", unit: "/min" }, { value: "3.6", unit: "/h" }]);
assert.equal(bytes(48_128), "47 KiB");
