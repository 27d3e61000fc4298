/**
 * Verifies a whole ledger over HTTP, as `mcpg audit verify` does, but for what only Parquet files say of themselves: signature and form of the newest
 * checkpoint and of all that are kept, every entry's canonical bytes, hash, number and predecessor, the Merkle tree, every hash tile and entry bundle,
 * removed entries and by whose word. Holes of emitters' counters are reported; they make nothing unsound.
 */
import { sha256 } from "./sha256";
import { canVerify, hex, leafHash, leafOf, NotSound, parseCheckpoint, parseEntry, parseVkey, same, tilePath, Tree, unhex, utf8, verifySignature, type Checkpoint, type Entry, type VKey } from "./ledger";

export interface Progress {
  step: string;
  done: number;
  total: number;
}

export interface Hole {
  instance: string;
  missing: number;
  first: number;
}

export interface Verdict {
  sound: boolean;
  /** Where it could not be found out. */
  unchecked?: string;
  /** The first thing that is not sound. */
  fault?: string;
  origin?: string;
  size?: number;
  firstKept?: number;
  root?: string;
  checkpoints?: number;
  tiles?: number;
  prunes?: number;
  holes?: Hole[];
}

/** Reads a path under `/v1/orgs/{org}/audit/`; null where there is nothing. */
export type Fetcher = (path: string) => Promise<Response | null>;

const ZERO = "0".repeat(64);
const BATCH = 5_000;

export async function verifyLedger(org: string, vkeyText: string, get: Fetcher, report: (progress: Progress) => void): Promise<Verdict> {
  if (!canVerify()) return { sound: false, unchecked: "this page was not loaded over https or from this machine, so the browser checks no signatures" };
  const verdict: Verdict = { sound: false };
  try {
    const vkey = parseVkey(vkeyText);
    const newest = await get("checkpoint");
    if (!newest) return { sound: false, unchecked: "the ledger has no checkpoint yet" };
    const head = await signed(parseCheckpoint(await newest.text()), vkey, org);
    Object.assign(verdict, { origin: head.origin, size: head.size, root: hex(head.root) });
    const { tree, firstKept, prunes, holes, keyed } = await entries(head, get, report);
    Object.assign(verdict, { firstKept, prunes, holes });
    if (!same(tree.root(), head.root)) throw new NotSound(`the entries do not give the root of the checkpoint of ${head.size} entries`);
    verdict.checkpoints = await checkpoints(head, tree, vkey, keyed, get, report);
    verdict.tiles = await tiles(head, tree, firstKept, get, report);
    verdict.sound = true;
  } catch (error) {
    if (error instanceof NotSound) verdict.fault = error.message;
    else verdict.unchecked = error instanceof Error ? error.message : String(error);
  }
  return verdict;
}

async function signed(checkpoint: Checkpoint, vkey: VKey, org: string): Promise<Checkpoint> {
  if (!checkpoint.origin.includes(`/orgs/${org}/audit/`)) throw new NotSound(`the newest checkpoint is of ${checkpoint.origin}, not of a ledger of ${org}`);
  if (checkpoint.origin !== vkey.name) throw new NotSound(`the newest checkpoint is of ${checkpoint.origin}, and the key is of ${vkey.name}`);
  if (!(await verifySignature(checkpoint, vkey))) throw new NotSound("the key has not signed the newest checkpoint");
  return checkpoint;
}

interface Read {
  tree: Tree;
  firstKept: number;
  prunes: number;
  holes: Hole[];
  /** The last entry that tells of a change of key; checkpoints before it may be signed by the former one. */
  keyed: number;
}

async function entries(head: Checkpoint, get: Fetcher, report: (progress: Progress) => void): Promise<Read> {
  const tree = new Tree();
  const emitted = new Map<string, number[]>();
  const pruned: number[] = [];
  let [next, firstKept, prunes, keyed] = [0, 0, 0, -1];
  let previous: string | null = ZERO;
  while (next < head.size) {
    const response = await get(`canonical?from=${next}&limit=${Math.min(BATCH, head.size - next)}`);
    const lines = (response ? await response.text() : "").split("\n").filter((line) => line !== "");
    if (lines.length === 0) throw new NotSound(`entry ${next} is missing`);
    for (const line of lines) {
      const entry = parseEntry(line);
      const seq = Number(entry.seq);
      if (seq !== next) {
        if (next !== 0 || !Number.isSafeInteger(seq) || seq <= 0) throw new NotSound(`entry ${next} is missing: ${String(entry.seq).slice(0, 20)} is in its place`);
        await removed(tree, seq, head.size, get);
        [next, firstKept, previous] = [seq, seq, null];
      }
      if (entry.v !== "mcpg.audit/1" || entry.origin !== head.origin) throw new NotSound(`entry ${seq} is not of this ledger`);
      if (previous !== null && entry.prev_hash !== previous) throw new NotSound(`entry ${seq} does not follow the one before it`);
      const hash = sha256(utf8(line));
      tree.push(leafHash(leafOf(seq, unhex(text(entry, "prev_hash")), hash)));
      previous = hex(hash);
      if (entry.action === "ledger.prune") {
        const kept = Number(detail(entry).first_kept);
        if (text(entry, "actor").startsWith("system:") || !("workspace" in entry || "instance" in entry)) pruned.push(kept);
        prunes += 1;
      }
      if (entry.action === "ledger.key") keyed = seq;
      if (typeof entry.instance === "string" && typeof entry.emitter_seq === "string") {
        const numbers = emitted.get(entry.instance) ?? [];
        numbers.push(Number(entry.emitter_seq));
        emitted.set(entry.instance, numbers);
      }
      next += 1;
      if (next >= head.size) break;
    }
    report({ step: "entries", done: next, total: head.size });
  }
  if (firstKept > 0 && !pruned.includes(firstKept)) throw new NotSound(`the entries before ${firstKept} are gone, and no entry ledger.prune that is there says so`);
  return { tree, firstKept, prunes, holes: holesOf(emitted), keyed };
}

const text = (entry: Entry, member: string): string => {
  const found = entry[member];
  if (typeof found !== "string") throw new NotSound(`an entry has no ${member}`);
  return found;
};

function detail(entry: Entry): Record<string, unknown> {
  try {
    return JSON.parse(text(entry, "detail")) as Record<string, unknown>;
  } catch {
    throw new NotSound(`the detail of entry ${String(entry.seq)} is not JSON`);
  }
}

/** The tree over entries that were removed, from the hash tiles that stay. */
async function removed(tree: Tree, until: number, size: number, get: Fetcher): Promise<void> {
  for (let tile = 0; tile * 256 < until; tile += 1) {
    const bytes = await tileBytes(0, tile, size, get);
    for (let at = 0; at < bytes.length / 32 && tile * 256 + at < until; at += 1) tree.push(bytes.slice(at * 32, at * 32 + 32));
  }
}

async function tileBytes(level: number | "entries", index: number, count: number, get: Fetcher): Promise<Uint8Array> {
  const width = Math.min(256, count - index * 256);
  const path = tilePath(level, index, width);
  const response = await get(`tile/${path}`);
  if (!response) throw new NotSound(`tile/${path} is missing`);
  return new Uint8Array(await response.arrayBuffer());
}

function holesOf(emitted: Map<string, number[]>): Hole[] {
  const holes: Hole[] = [];
  for (const [instance, numbers] of emitted) {
    numbers.sort((a, b) => a - b);
    let [missing, first] = [0, -1];
    for (let at = 1; at < numbers.length; at += 1) {
      const gap = numbers[at]! - numbers[at - 1]! - 1;
      if (gap > 0 && first < 0) first = numbers[at - 1]! + 1;
      missing += Math.max(0, gap);
    }
    if (missing > 0) holes.push({ instance, missing, first });
  }
  return holes.sort((a, b) => a.instance.localeCompare(b.instance));
}

/** Every checkpoint that is kept is the root of the tree's beginning. */
async function checkpoints(head: Checkpoint, tree: Tree, vkey: VKey, keyed: number, get: Fetcher, report: (progress: Progress) => void): Promise<number> {
  const listed = await get("files");
  const files = listed ? ((await listed.json()) as { files: { path: string }[] }).files : [];
  const sizes = files.flatMap(({ path }) => /checkpoints\/0*(\d+)$/.exec(path)?.[1] ?? []).map(Number).filter((size) => size <= head.size);
  let done = 0;
  await several(sizes, async (size) => {
    const response = await get(`checkpoints/${size}`);
    // It may have been thinned out since it was listed.
    if (response) {
      const checkpoint = parseCheckpoint(await response.text());
      if (checkpoint.size !== size || checkpoint.origin !== head.origin) throw new NotSound(`the checkpoint kept as ${size} is another`);
      if (!same(tree.root(size), checkpoint.root)) throw new NotSound(`the entries do not give the root of the kept checkpoint of ${size} entries`);
      if (!(await verifySignature(checkpoint, vkey)) && !(size <= keyed)) throw new NotSound(`the key has not signed the kept checkpoint of ${size} entries`);
    }
    done += 1;
    report({ step: "checkpoints", done, total: sizes.length });
  });
  return sizes.length;
}

/** Every hash tile and entry bundle of the checkpoint's tree is what the entries give. */
async function tiles(head: Checkpoint, tree: Tree, firstKept: number, get: Fetcher, report: (progress: Progress) => void): Promise<number> {
  const wanted: { level: number | "entries"; index: number; count: number; row: number }[] = [];
  for (let level = 0, count = head.size; count > 0; level += 1, count = Math.floor(count / 256)) {
    for (let index = 0; index * 256 < count; index += 1) wanted.push({ level, index, count, row: level * 8 });
  }
  for (let index = Math.floor(firstKept / 256); index * 256 < head.size; index += 1) wanted.push({ level: "entries", index, count: head.size, row: 0 });
  let done = 0;
  await several(wanted, async ({ level, index, count, row }) => {
    const bytes = await tileBytes(level, index, count, get);
    const width = Math.min(256, count - index * 256);
    const name = `tile/${tilePath(level, index, width)}`;
    if (level === "entries") bundle(bytes, index, width, tree, name);
    else {
      if (bytes.length !== width * 32) throw new NotSound(`${name} is of another length`);
      for (let at = 0; at < width; at += 1) {
        if (!same(bytes.subarray(at * 32, at * 32 + 32), tree.levels[row]![index * 256 + at]!)) throw new NotSound(`${name} is not what the entries give: its hash ${at} is another`);
      }
    }
    done += 1;
    report({ step: "tiles", done, total: wanted.length });
  });
  return wanted.length;
}

/** A bundle: leaves after their lengths. */
function bundle(bytes: Uint8Array, index: number, width: number, tree: Tree, name: string): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let at = 0;
  for (let place = 0; place < width; place += 1) {
    const length = at + 2 <= bytes.length ? view.getUint16(at) : -1;
    const leaf = bytes.subarray(at + 2, at + 2 + length);
    if (length < 0 || leaf.length !== length || !same(leafHash(leaf), tree.levels[0]![index * 256 + place]!)) throw new NotSound(`${name} is not what the entries give: its leaf ${place} is another`);
    at += 2 + length;
  }
  if (at !== bytes.length) throw new NotSound(`${name} has more than its leaves`);
}

/** A few at a time; the first failure ends it. */
async function several<T>(items: T[], work: (item: T) => Promise<void>): Promise<void> {
  let next = 0;
  const one = async (): Promise<void> => {
    while (next < items.length) {
      const item = items[next]!;
      next += 1;
      await work(item);
    }
  };
  await Promise.all(Array.from({ length: 4 }, one));
}
