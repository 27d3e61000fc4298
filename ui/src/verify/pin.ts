/**
 * The verifier key that this browser trusts, by org. It is kept once the person says that it is the right one; what the server says meanwhile is compared
 * with it. A key in the URL's fragment (`#vkey=…`) is compared and shown, and never kept: whoever makes a link chooses what stands in it.
 */
import { NotSound, parseVkey } from "./ledger";

const place = (org: string): string => `mcpg-vkey ${org}`;

export const pinned = (org: string): string | null => {
  try {
    return localStorage.getItem(place(org));
  } catch {
    return null;
  }
};

export function pin(org: string, vkey: string): void {
  parseVkey(vkey);
  localStorage.setItem(place(org), vkey.trim());
}

export const unpin = (org: string): void => localStorage.removeItem(place(org));

export function fragmentKey(): string | null {
  const text = new URLSearchParams(location.hash.slice(1)).get("vkey");
  // In a query a plus is a blank; in a key it is a plus.
  return text ? text.replaceAll(" ", "+") : null;
}

export interface Trust {
  vkey: string;
  /** `pinned`: the person said so. `seen`: the server said so, and nobody has confirmed it. `changed`: it is not the one that was pinned. */
  state: "pinned" | "seen" | "changed";
  /** What the link says, and whether it is the same. */
  link: "none" | "same" | "other";
}

export function trust(org: string, served: string): Trust {
  const mine = pinned(org);
  const linked = fragmentKey();
  const vkey = served.trim();
  return {
    vkey: mine ?? vkey,
    state: mine === null ? "seen" : mine === vkey ? "pinned" : "changed",
    link: linked === null ? "none" : linked.trim() === vkey ? "same" : "other",
  };
}

export { NotSound };
