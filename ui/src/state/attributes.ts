/** What calls are told apart by: the URL's parameter, the word on the page, the column. */
export interface Attribute {
  /** The URL's parameter. */
  key: string;
  /** What the page calls it. */
  word: string;
  column: string;
  /** Whether it is listed at the side with counts. */
  facet: boolean;
  /** Whether a box is searched for what is different in it. */
  compared: boolean;
}

const of = (key: string, word: string, column: string, facet = true, compared = facet): Attribute => ({ key, word, column, facet, compared });

export const ATTRIBUTES = [
  of("outcome", "outcome", "outcome"),
  of("plugin", "plugin", "plugin"),
  of("tool", "tool", "tool"),
  of("caller", "caller", "caller"),
  of("client", "client", "client_name"),
  of("version", "client version", "client_version"),
  of("code", "error code", "error_code"),
  of("instance", "instance", "instance"),
  of("workspace", "workspace", "workspace"),
  of("protocol", "protocol", "protocol_version"),
  of("decision", "decision", "decision"),
  of("hash", "error hash", "error_hash", false),
  of("session", "session", "session_id", false),
  of("trace", "trace", "trace_id", false),
  of("request", "request", "request_id", false),
] as const satisfies readonly Attribute[];

export type Key = (typeof ATTRIBUTES)[number]["key"];

export const attribute = (key: string): Attribute | undefined => ATTRIBUTES.find((a) => a.key === key);

/** One condition on an attribute: a value that is kept or left out. The empty text stands for calls that have none. */
export interface Condition {
  key: string;
  value: string;
  keep: boolean;
}

/** In the URL `!` before a value leaves it out; a value that itself begins so is written after `=`. */
export const written = ({ value, keep }: { value: string; keep: boolean }): string => (keep ? (/^[!=]/.test(value) ? `=${value}` : value) : `!${value}`);

export function read(key: string, text: string): Condition {
  if (text.startsWith("!")) return { key, value: text.slice(1), keep: false };
  return { key, value: text.startsWith("=") ? text.slice(1) : text, keep: true };
}
