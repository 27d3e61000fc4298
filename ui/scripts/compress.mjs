// Compresses what was built, once, so that no server does it again and again; and holds the first load to its budget.
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const BUDGET_KIB = 250;
const dist = new URL("../dist/", import.meta.url);
const sizes = new Map();
for (const name of readdirSync(new URL("assets/", dist)).map((file) => `assets/${file}`).concat("favicon.svg")) {
  const plain = readFileSync(new URL(name, dist));
  const packed = gzipSync(plain, { level: 9 });
  if (packed.length < plain.length * 0.9) writeFileSync(new URL(`${name}.gz`, dist), packed);
  sizes.set(name, Math.min(packed.length, plain.length));
}

// What `index.html` names is fetched before anything is seen.
const html = readFileSync(new URL("index.html", dist), "utf8");
let first = gzipSync(html).length;
for (const [, name] of html.matchAll(/(?:src|href)="\/([^"]+)"/g)) first += sizes.get(name) ?? 0;
const kib = (first / 1024).toFixed(1);
console.log(`first load: ${kib} KiB compressed of ${BUDGET_KIB}`);
if (first > BUDGET_KIB * 1024) {
  console.error("the first load is over its budget; load what a view needs with the view");
  process.exit(1);
}
