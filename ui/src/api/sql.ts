/** Queries: text with values apart, so that no name can be taken for SQL; and the same with its values in it, to be shown and copied. */
import { json, pause, Places, Problem } from "./http";

export type Value = string | number | boolean | null;

/** A piece of SQL with the values that belong into it. */
export class Sql {
  constructor(
    readonly strings: readonly string[],
    readonly values: readonly Value[],
  ) {}

  /** With `$1`, `$2` … in place of the values. */
  get text(): string {
    return this.strings.reduce((text, part, at) => (at === 0 ? part : `${text}$${at}${part}`), "");
  }

  /** With the values in their places, as literals. */
  get shown(): string {
    return tidy(this.strings.reduce((text, part, at) => (at === 0 ? part : text + literal(this.values[at - 1] ?? null) + part), ""));
  }
}

function literal(value: Value): string {
  if (value === null) return "NULL";
  return typeof value === "string" ? `'${value.replaceAll("'", "''")}'` : String(value);
}

/** Without the indentation that the source has. */
function tidy(text: string): string {
  const lines = text.split("\n").filter((line) => line.trim() !== "");
  const indents = lines.slice(1).map((line) => line.length - line.trimStart().length);
  const least = Math.min(...indents, 80);
  return lines.map((line, at) => (at === 0 ? line.trimStart() : line.slice(Math.min(least, line.length - line.trimStart().length)))).join("\n");
}

/** Composes pieces and values: `sql\`… WHERE tool = ${value(name)}\``. What is interpolated is a piece; values go through `value`. */
export function sql(strings: TemplateStringsArray, ...parts: Sql[]): Sql {
  const texts = [strings[0] ?? ""];
  const values: Value[] = [];
  parts.forEach((part, at) => {
    part.strings.forEach((text, place) => {
      if (place === 0) texts[texts.length - 1] += text;
      else texts.push(text);
    });
    values.push(...part.values);
    texts[texts.length - 1] += strings[at + 1] ?? "";
  });
  return new Sql(texts, values);
}

/** Text that the program itself writes: names of columns, numbers, times. Never what somebody typed. */
export const raw = (text: string): Sql => new Sql([text], []);
export const value = (v: Value): Sql => new Sql(["", ""], [v]);

export function joined(parts: Sql[], between: string): Sql {
  return parts.slice(1).reduce((all, part) => sql`${all}${raw(between)}${part}`, parts[0] ?? raw(""));
}

/** Whole numbers of microseconds as a literal of time. */
export const time = (ms: number): Sql => raw(`'${new Date(ms).toISOString()}'`);

export interface Answer {
  columns: { name: string; type: string }[];
  rows: Value[][];
}

const places = new Places(3);

/** Runs a query. */
export function run(org: string, query: Sql, signal?: AbortSignal): Promise<Answer> {
  return places.hold(() => attempt(org, query, signal, 0), signal);
}

async function attempt(org: string, query: Sql, signal: AbortSignal | undefined, tries: number): Promise<Answer> {
  try {
    return await json<Answer>(`/v1/orgs/${encodeURIComponent(org)}/sql`, {
      method: "POST",
      headers: { "content-type": "application/json", accept: "application/json" },
      body: JSON.stringify({ query: query.text, params: query.values }),
      signal,
    });
  } catch (error) {
    if (!(error instanceof Problem) || error.code !== "too_many_queries" || tries >= 4) throw error;
    const seconds = typeof error.members.retry_after === "number" ? error.members.retry_after : 1;
    await pause(Math.min(seconds, 5) * 1000 * (0.5 + Math.random()), signal);
    return attempt(org, query, signal, tries + 1);
  }
}

/** The rows as objects. */
export function records(answer: Answer): Record<string, Value>[] {
  return answer.rows.map((row) => Object.fromEntries(answer.columns.map((column, at) => [column.name, row[at] ?? null])));
}
