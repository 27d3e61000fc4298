/**
 * The ledger's format, as schemas/ledger.md has it: signed notes, checkpoints, leaves, the Merkle tree of RFC 6962, canonical entries.
 * Hashes are computed here; signatures are checked by Web Crypto, which browsers offer in secure contexts alone.
 */
import { sha256 } from "./sha256";

/** Why something is not sound. */
export class NotSound extends Error {}

const encoder = new TextEncoder();
export const utf8 = (text: string): Uint8Array => encoder.encode(text);
export const hex = (bytes: Uint8Array): string => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
export const same = (a: Uint8Array, b: Uint8Array): boolean => a.length === b.length && a.every((byte, at) => byte === b[at]);

export function unhex(text: string): Uint8Array {
  if (!/^(?:[0-9a-f]{2})*$/.test(text)) throw new NotSound("a hash is not lower-case hex");
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

export function unbase64(text: string): Uint8Array {
  try {
    return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  } catch {
    throw new NotSound("what should be base64 is not");
  }
}

export const base64 = (bytes: Uint8Array): string => btoa(String.fromCharCode(...bytes));

export interface VKey {
  text: string;
  name: string;
  id: Uint8Array;
  key: Uint8Array;
}

/** `<name>+<8 hex>+<base64 of 0x01 and the public key>` */
export function parseVkey(text: string): VKey {
  const parts = /^([^\s+]+)\+([0-9a-f]{8})\+(\S+)$/.exec(text.trim());
  const material = parts ? unbase64(parts[3]!) : new Uint8Array();
  if (!parts || material.length !== 33 || material[0] !== 1) throw new NotSound("this is not the verifier key of a ledger");
  const id = sha256(utf8(`${parts[1]}\n`), material).slice(0, 4);
  if (hex(id) !== parts[2]) throw new NotSound("the verifier key does not fit its own id; it was copied wrongly");
  return { text: text.trim(), name: parts[1]!, id, key: material.slice(1) };
}

export interface Checkpoint {
  origin: string;
  size: number;
  root: Uint8Array;
  /** What is signed. */
  text: string;
  signatures: { name: string; id: Uint8Array; signature: Uint8Array }[];
  note: string;
}

export function parseCheckpoint(note: string): Checkpoint {
  const end = note.lastIndexOf("\n\n");
  const text = note.slice(0, end + 1);
  const lines = text.split("\n");
  const size = Number(lines[1]);
  if (end < 0 || lines.length !== 4 || lines[3] !== "" || !/^(0|[1-9]\d*)$/.test(lines[1] ?? "") || !Number.isSafeInteger(size)) throw new NotSound("the checkpoint is not in the form of one");
  const root = unbase64(lines[2]!);
  if (root.length !== 32) throw new NotSound("the checkpoint's root is not a SHA-256");
  const signatures = note
    .slice(end + 2)
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => {
      const parts = /^— (\S+) (\S+)$/.exec(line);
      const bytes = parts ? unbase64(parts[2]!) : new Uint8Array();
      if (!parts || bytes.length < 5) throw new NotSound("a line of the checkpoint's signatures is not in the form of one");
      return { name: parts[1]!, id: bytes.slice(0, 4), signature: bytes.slice(4) };
    });
  return { origin: lines[0]!, size, root, text, signatures, note };
}

/** Whether this context can check signatures at all. */
export const canVerify = (): boolean => Boolean(globalThis.crypto?.subtle) && globalThis.isSecureContext;

export async function verifySignature(checkpoint: Checkpoint, vkey: VKey): Promise<boolean> {
  const signed = checkpoint.signatures.filter((s) => s.name === vkey.name && same(s.id, vkey.id));
  if (checkpoint.origin !== vkey.name || signed.length === 0) return false;
  const key = await crypto.subtle.importKey("raw", vkey.key as BufferSource, { name: "Ed25519" }, false, ["verify"]);
  for (const { signature } of signed) {
    if (await crypto.subtle.verify({ name: "Ed25519" }, key, signature as BufferSource, utf8(checkpoint.text) as BufferSource)) return true;
  }
  return false;
}

const LEAF = Uint8Array.of(0);
const NODE = Uint8Array.of(1);
export const leafHash = (leaf: Uint8Array): Uint8Array => sha256(LEAF, leaf);
export const nodeHash = (left: Uint8Array, right: Uint8Array): Uint8Array => sha256(NODE, left, right);

/** The 73 bytes of an entry's leaf. */
export function leafOf(seq: number, prev: Uint8Array, entry: Uint8Array): Uint8Array {
  const leaf = new Uint8Array(73);
  leaf[0] = 1;
  new DataView(leaf.buffer).setBigUint64(1, BigInt(seq));
  leaf.set(prev, 9);
  leaf.set(entry, 41);
  return leaf;
}

/** The root that an inclusion proof leads to (RFC 9162, 2.1.3.2). */
export function rootOfProof(seq: number, size: number, leaf: Uint8Array, hashes: Uint8Array[]): Uint8Array {
  if (seq >= size) throw new NotSound("the proof's entry is past its checkpoint");
  let [index, last] = [seq, size - 1];
  let hash = leafHash(leaf);
  for (const other of hashes) {
    if (last === 0) throw new NotSound("the proof has more hashes than the tree has levels");
    if (index % 2 === 1 || index === last) {
      hash = nodeHash(other, hash);
      while (index % 2 === 0 && index !== 0) {
        index = Math.floor(index / 2);
        last = Math.floor(last / 2);
      }
    } else {
      hash = nodeHash(hash, other);
    }
    index = Math.floor(index / 2);
    last = Math.floor(last / 2);
  }
  if (last !== 0) throw new NotSound("the proof has fewer hashes than the tree has levels");
  return hash;
}

/** A Merkle tree that only grows, of which each level is kept, so that the root of any beginning can be had. */
export class Tree {
  /** Hashes by level: complete subtrees of 2^level leaves. */
  readonly levels: Uint8Array[][] = [[]];

  get size(): number {
    return this.levels[0]!.length;
  }

  push(leaf: Uint8Array): void {
    let hash = leaf;
    for (let level = 0; ; level += 1) {
      const row = (this.levels[level] ??= []);
      row.push(hash);
      if (row.length % 2 === 1) return;
      hash = nodeHash(row[row.length - 2]!, hash);
    }
  }

  /** The root of the first `size` leaves. */
  root(size = this.size): Uint8Array {
    if (size === 0) return sha256();
    let hash: Uint8Array | null = null;
    for (let level = 0, rest = size; rest > 0; level += 1, rest = Math.floor(rest / 2)) {
      if (rest % 2 === 0) continue;
      const complete = this.levels[level]![rest - 1]!;
      hash = hash === null ? complete : nodeHash(complete, hash);
    }
    return hash!;
  }
}

/** Members of an entry: all are strings or lists of strings. */
export type Entry = Record<string, string | string[]>;

/** Reads canonical bytes, and refuses what is not exactly canonical. */
export function parseEntry(line: string): Entry {
  let entry: unknown;
  try {
    entry = JSON.parse(line);
  } catch {
    throw new NotSound("an entry is not JSON");
  }
  if (typeof entry !== "object" || entry === null || Array.isArray(entry)) throw new NotSound("an entry is not an object");
  const keys = Object.keys(entry).sort();
  const members = entry as Record<string, unknown>;
  for (const key of keys) {
    const member = members[key];
    const texts = Array.isArray(member) ? member : [member];
    if (!texts.every((text) => typeof text === "string") || (Array.isArray(member) && member.length === 0)) throw new NotSound(`the member ${key} of an entry is neither a text nor texts`);
  }
  const canonical = `{${keys.map((key) => `${JSON.stringify(key)}:${JSON.stringify(members[key])}`).join(",")}}`;
  if (canonical !== line) throw new NotSound("an entry is not in its canonical form");
  return members as Entry;
}

export interface Proof {
  seq: number;
  size: number;
  entry_hash: string;
  prev_hash: string;
  leaf: string;
  hashes: string[];
  checkpoint: string;
  entry?: string;
}

export interface Proved {
  checkpoint: Checkpoint;
  entry: Entry | null;
  /** What was checked, in words, in order. */
  checks: string[];
}

/** Checks an inclusion proof as `mcpg audit proof` does. */
export async function checkProof(proof: Proof, vkey: VKey, org: string, seq: number): Promise<Proved> {
  const checkpoint = parseCheckpoint(proof.checkpoint);
  const checks: string[] = [];
  if (proof.seq !== seq) throw new NotSound(`the proof is of entry ${proof.seq}, not of ${seq}`);
  if (checkpoint.size !== proof.size) throw new NotSound("the proof names another size than its checkpoint");
  if (!checkpoint.origin.includes(`/orgs/${org}/audit/`)) throw new NotSound(`the checkpoint is of ${checkpoint.origin}, not of a ledger of ${org}`);
  if (!(await verifySignature(checkpoint, vkey))) throw new NotSound("the key has not signed the checkpoint");
  checks.push(`the checkpoint of ${checkpoint.size.toLocaleString("en")} entries is signed by the key ${vkey.name}+${hex(vkey.id)}`);
  const [prev, hash] = [unhex(proof.prev_hash), unhex(proof.entry_hash)];
  let entry: Entry | null = null;
  if (proof.entry !== undefined) {
    if (!same(sha256(utf8(proof.entry)), hash)) throw new NotSound("the entry's bytes do not give its hash");
    entry = parseEntry(proof.entry);
    if (entry.v !== "mcpg.audit/1" || entry.origin !== checkpoint.origin || entry.seq !== String(seq) || entry.prev_hash !== proof.prev_hash) throw new NotSound("the entry does not say what its leaf says");
    checks.push("the entry's bytes give its hash, and say the same number and predecessor as its leaf");
  }
  const leaf = leafOf(seq, prev, hash);
  if (!same(leaf, unbase64(proof.leaf))) throw new NotSound("the leaf is not the entry's");
  if (!same(rootOfProof(seq, proof.size, leaf, proof.hashes.map(unbase64)), checkpoint.root)) throw new NotSound("the proof does not lead to the checkpoint's root");
  checks.push(`${proof.hashes.length} hashes lead from the leaf to the checkpoint's root`);
  return { checkpoint, entry, checks };
}

/** A tile's path by C2SP tlog-tiles. */
export function tilePath(level: number | "entries", index: number, width: number): string {
  const groups: string[] = [];
  let rest = index;
  do {
    groups.unshift(String(rest % 1000).padStart(3, "0"));
    rest = Math.floor(rest / 1000);
  } while (rest > 0);
  const path = groups.map((group, at) => (at < groups.length - 1 ? `x${group}` : group)).join("/");
  return `${level}/${path}${width < 256 ? `.p/${width}` : ""}`;
}
