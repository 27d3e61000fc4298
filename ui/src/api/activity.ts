/** The queries of Tool activity. One scan gives the strip, the lines and the heat map; one gives all facets; one what is different in a box. */
import { stepOf, type Span } from "../lib/time";
import type { Attribute, Condition } from "../state/attributes";
import { attribute } from "../state/attributes";
import type { Box } from "../state/url";
import { joined, raw, sql, time, value, type Answer, type Sql } from "./sql";

/** Columns of a chart at most. */
export const COLUMNS = 300;
/** Buckets of a doubling of latency on the heat map. */
const PER_OCTAVE = 4;

const DENIED = "outcome IN ('policy_denied', 'quota_exceeded')";
const FAILED = "outcome IN ('client_error', 'server_error', 'timeout')";
const RAN = "outcome NOT IN ('policy_denied', 'quota_exceeded')";
/** From the request's arrival to the sample's, less the call itself, in ms; clocks that disagree make it no less than nothing. */
const LAG = "greatest((CAST(ingested_at AS BIGINT) - CAST(arrived_at AS BIGINT)) / 1000.0 - duration_ms, 0.0)";

export const column = (name: string): Sql => raw(/^[a-z_]+$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`);

/** One attribute's conditions. */
function condition(of: Attribute, conditions: Condition[]): Sql {
  const name = column(of.column);
  const [kept, left] = [true, false].map((keep) => conditions.filter((c) => c.keep === keep).map((c) => c.value));
  const parts: Sql[] = [];
  const values = (texts: string[]): Sql => joined(texts.filter((text) => text !== "").map(value), ", ");
  if (kept!.length) {
    const some = kept!.some((text) => text !== "") ? sql`${name} IN (${values(kept!)})` : null;
    const none = kept!.includes("") ? sql`${name} IS NULL` : null;
    parts.push(some && none ? sql`(${some} OR ${none})` : (some ?? none!));
  }
  if (left!.length) {
    const some = left!.some((text) => text !== "");
    const none = left!.includes("");
    if (some && none) parts.push(sql`${name} NOT IN (${values(left!)})`);
    else parts.push(some ? sql`(${name} IS NULL OR ${name} NOT IN (${values(left!)}))` : sql`${name} IS NOT NULL`);
  }
  return joined(parts, " AND ");
}

/** All conditions, but for those on `without`; TRUE where there are none. */
export function conditionsSql(conditions: Condition[], without?: string): Sql {
  const keys = [...new Set(conditions.map((c) => c.key))].filter((key) => key !== without);
  const parts = keys.flatMap((key) => {
    const of = attribute(key);
    return of ? [condition(of, conditions.filter((c) => c.key === key))] : [];
  });
  return parts.length ? joined(parts, " AND ") : raw("TRUE");
}

export const within = ({ from, to }: Span): Sql => sql`started_at >= ${time(from)} AND started_at < ${time(to)}`;

/** Calls of a box: those that ran, within its times and latencies. */
export const inBox = (box: Box): Sql =>
  sql`started_at >= ${time(box.from)} AND started_at < ${time(box.to)} AND duration_ms > ${raw(String(box.low))} AND duration_ms <= ${raw(String(box.high))} AND ${raw(RAN)}`;

export function selected(stretch: Span, conditions: Condition[], box: Box | null): Sql {
  const base = sql`${within(stretch)}
    AND ${conditionsSql(conditions)}`;
  return box
    ? sql`${base}
    AND ${inBox(box)}`
    : base;
}

/**
 * Whether the hourly rollups answer: the columns are hours or longer, and nothing is asked that rollups do not tell apart. They cost the same whatever the
 * number of calls, and know neither single outcomes nor the lag.
 */
export const isCoarse = (stretch: Span, conditions: Condition[]): boolean => stepOf(stretch, COLUMNS) >= HOUR && conditions.every(({ key }) => key === "workspace" || key === "plugin" || key === "tool");

const HOUR = 3_600_000;

/** Hours that the stretch touches. */
const hours = ({ from, to }: Span): Sql => sql`window_start >= ${time(Math.floor(from / HOUR) * HOUR)} AND window_start < ${time(to)}`;

export interface Series {
  /** Of the rollups: errors and denials as sums, no lag. */
  coarse: boolean;
  step: number;
  /** The begin of each column that there could be, ms. */
  times: number[];
  outcomes: Record<string, number[]>;
  calls: number[];
  errors: number[];
  denials: number[];
  p50: (number | null)[];
  p95: (number | null)[];
  p99: (number | null)[];
  lag: (number | null)[];
  /** Cells of the heat map. */
  cells: { at: number; low: number; high: number; calls: number }[];
  total: { calls: number; errors: number; denials: number; p50: number | null; p95: number | null; p99: number | null; lag: number | null };
}

const OUTCOME_COLUMNS = ["ok", "client_error", "server_error", "timeout", "policy_denied", "quota_exceeded"];

export function seriesQuery(stretch: Span, conditions: Condition[]): Sql {
  const step = stepOf(stretch, COLUMNS) / 1000;
  if (isCoarse(stretch, conditions)) {
    return sql`
    SELECT t, calls, errors, denials,
      latency_quantile(latency, 0.5) AS p50, latency_quantile(latency, 0.95) AS p95, latency_quantile(latency, 0.99) AS p99,
      CASE WHEN t IS NOT NULL THEN latency_buckets(latency, ${raw(String(PER_OCTAVE))}) END AS buckets
    FROM (
      SELECT t, sum(calls) AS calls, sum(errors) AS errors, sum(denials) AS denials, latency_merge(latency) AS latency
      FROM (
        SELECT date_bin(INTERVAL '${raw(String(step))} seconds', window_start) AS t, calls, errors, denials, latency
        FROM tool_usage_hourly
        WHERE ${hours(stretch)}
          AND ${conditionsSql(conditions)}
      )
      GROUP BY GROUPING SETS ((t), ())
    )
    ORDER BY t`;
  }
  const counts = OUTCOME_COLUMNS.map((outcome) => raw(`count(*) FILTER (WHERE outcome = '${outcome}') AS ${outcome}`));
  return sql`
    SELECT t, calls, ${raw(OUTCOME_COLUMNS.join(", "))},
      latency_quantile(latency, 0.5) AS p50, latency_quantile(latency, 0.95) AS p95, latency_quantile(latency, 0.99) AS p99,
      latency_quantile(lag, 0.99) AS lag, CASE WHEN t IS NOT NULL THEN latency_buckets(latency, ${raw(String(PER_OCTAVE))}) END AS buckets
    FROM (
      SELECT t, count(*) AS calls,
        ${joined(counts, ",\n        ")},
        latency_hist(duration_ms) FILTER (WHERE ${raw(RAN)}) AS latency,
        latency_hist(lag_ms) AS lag
      FROM (
        SELECT date_bin(INTERVAL '${raw(String(step))} seconds', started_at) AS t, outcome, duration_ms,
          ${raw(LAG)} AS lag_ms
        FROM tool_invocations
        WHERE ${within(stretch)}
          AND ${conditionsSql(conditions)}
      )
      GROUP BY GROUPING SETS ((t), ())
    )
    ORDER BY t`;
}

type Bucket = { lower_ms: number; upper_ms: number; calls: number };

export function seriesOf(answer: Answer, stretch: Span): Series {
  const step = stepOf(stretch, COLUMNS);
  const first = Math.floor(stretch.from / step) * step;
  const times: number[] = [];
  for (let at = first; at < stretch.to; at += step) times.push(at);
  const zeros = (): number[] => new Array<number>(times.length).fill(0);
  const nulls = (): (number | null)[] => new Array<number | null>(times.length).fill(null);
  const at = Object.fromEntries(answer.columns.map(({ name }, place) => [name, place]));
  const coarse = "errors" in at;
  const series: Series = {
    coarse,
    step,
    times,
    outcomes: Object.fromEntries(OUTCOME_COLUMNS.map((outcome) => [outcome, zeros()])),
    calls: zeros(),
    errors: zeros(),
    denials: zeros(),
    p50: nulls(),
    p95: nulls(),
    p99: nulls(),
    lag: nulls(),
    cells: [],
    total: { calls: 0, errors: 0, denials: 0, p50: null, p95: null, p99: null, lag: null },
  };
  for (const row of answer.rows) {
    const get = (name: string): unknown => (at[name] === undefined ? undefined : row[at[name]]);
    const number = (name: string): number => Number(get(name) ?? 0);
    const optional = (name: string): number | null => (typeof get(name) === "number" ? (get(name) as number) : null);
    const errors = coarse ? number("errors") : number("client_error") + number("server_error") + number("timeout");
    const denials = coarse ? number("denials") : number("policy_denied") + number("quota_exceeded");
    const t = get("t");
    if (t === null) {
      series.total = { calls: number("calls"), errors, denials, p50: optional("p50"), p95: optional("p95"), p99: optional("p99"), lag: optional("lag") };
      continue;
    }
    const begin = Date.parse(String(t));
    const place = Math.round((begin - first) / step);
    if (place < 0 || place >= times.length) continue;
    for (const outcome of OUTCOME_COLUMNS) series.outcomes[outcome]![place] = number(outcome);
    series.calls[place] = number("calls");
    series.errors[place] = errors;
    series.denials[place] = denials;
    series.p50[place] = optional("p50");
    series.p95[place] = optional("p95");
    series.p99[place] = optional("p99");
    series.lag[place] = optional("lag");
    for (const bucket of (get("buckets") as Bucket[] | null) ?? []) series.cells.push({ at: begin, low: bucket.lower_ms, high: bucket.upper_ms, calls: bucket.calls });
  }
  return series;
}

/** Values of each facet with their counts, each facet as if it had no condition of its own. */
export function facetsQuery(stretch: Span, conditions: Condition[], attributes: Attribute[]): Sql {
  const facets = attributes.filter((a) => a.facet);
  const conditioned = facets.filter((a) => conditions.some((c) => c.key === a.key));
  const kinds = conditioned.map((a) => sql`
      WHEN ${grouped(a)} THEN count(*) FILTER (WHERE ${conditionsSql(conditions, a.key)})`);
  const all = conditionsSql(conditions);
  const counted = kinds.length ? sql`CASE ${joined(kinds, "")} ELSE count(*) FILTER (WHERE ${all}) END` : sql`count(*) FILTER (WHERE ${all})`;
  return sql`
    SELECT facet, value, calls FROM (
      SELECT facet, value, calls, row_number() OVER (PARTITION BY facet ORDER BY calls DESC, value) AS place FROM (
        SELECT ${named(facets)}, ${counted} AS calls
        FROM tool_invocations
        WHERE ${within(stretch)}
        GROUP BY GROUPING SETS (${raw(facets.map((a) => `(${a.column})`).join(", "))})
      ) WHERE calls > 0
    ) WHERE place <= 50
    ORDER BY facet, place`;
}

const grouped = (a: Attribute): Sql => raw(`grouping(${a.column}) = 0`);

/** Which attribute a row of grouping sets is of, and the value. */
function named(attributes: Attribute[]): Sql {
  const facet = attributes.map((a) => `WHEN grouping(${a.column}) = 0 THEN '${a.key}'`).join(" ");
  const of = attributes.map((a) => `WHEN grouping(${a.column}) = 0 THEN ${a.column}`).join(" ");
  return raw(`CASE ${facet} END AS facet, CASE ${of} END AS value`);
}

export interface Value {
  value: string | null;
  calls: number;
}

export function facetsOf(answer: Answer): Record<string, Value[]> {
  const facets: Record<string, Value[]> = {};
  for (const [facet, text, calls] of answer.rows) (facets[String(facet)] ??= []).push({ value: text === null ? null : String(text), calls: Number(calls) });
  return facets;
}

/** How often each value is in the box and elsewhere. */
/** Attributes that one query compares: with more of them the server finds it too wide. */
const COMPARED_AT_ONCE = 6;

export function differenceQueries(stretch: Span, conditions: Condition[], box: Box, attributes: Attribute[]): Sql[] {
  const compared = attributes.filter((a) => a.compared);
  const shares = Array.from({ length: Math.ceil(compared.length / COMPARED_AT_ONCE) }, (_, at) => compared.slice(at * COMPARED_AT_ONCE, (at + 1) * COMPARED_AT_ONCE));
  return shares.map((share) => differenceQuery(stretch, conditions, box, share));
}

function differenceQuery(stretch: Span, conditions: Condition[], box: Box, compared: Attribute[]): Sql {
  return sql`
    SELECT facet, value, here, elsewhere FROM (
      SELECT facet, value, here, elsewhere, row_number() OVER (PARTITION BY facet ORDER BY here DESC, value) AS place FROM (
        SELECT ${named(compared)},
          count(*) FILTER (WHERE boxed) AS here, count(*) FILTER (WHERE NOT boxed) AS elsewhere
        FROM (
          SELECT ${raw(compared.map((a) => a.column).join(", "))}, ${inBox(box)} AS boxed
          FROM tool_invocations
          WHERE ${within(stretch)}
            AND ${conditionsSql(conditions)}
        )
        GROUP BY GROUPING SETS (${raw(compared.map((a) => `(${a.column})`).join(", "))})
      )
    ) WHERE place <= 100`;
}

/** The same of the policies that decided, which the ledger knows. */
export function policyDifferenceQuery(stretch: Span, conditions: Condition[], box: Box): Sql {
  return sql`
    SELECT 'policy' AS facet, policy AS value, count(*) FILTER (WHERE boxed) AS here, count(*) FILTER (WHERE NOT boxed) AS elsewhere
    FROM (
      SELECT unnest(l.policy_ids) AS policy, c.boxed
      FROM (
        SELECT invocation_id, ${inBox(box)} AS boxed FROM tool_invocations
        WHERE ${within(stretch)}
          AND ${conditionsSql(conditions)}
      ) c
      JOIN audit_log l ON l.invocation_id = c.invocation_id
      WHERE l.occurred_at >= ${time(stretch.from - 60e3)} AND l.occurred_at < ${time(stretch.to + 60e3)} AND l.action LIKE 'tool.%'
    ) GROUP BY policy ORDER BY here DESC LIMIT 50`;
}

export interface Difference {
  key: string;
  value: string | null;
  /** Shares of the calls in the box and of those elsewhere. */
  here: number;
  elsewhere: number;
  score: number;
}

/**
 * Ranked by how much the shares differ. Of one attribute there are the two values that tell most; what is rarer in the box stands there only where
 * nothing of its attribute is more frequent, since the one follows from the other.
 */
export function differencesOf(answers: Answer[]): Difference[] {
  const rows = answers.flatMap((answer) => answer.rows.map(([facet, text, here, elsewhere]) => ({ key: String(facet), value: text === null ? null : String(text), here: Number(here), elsewhere: Number(elsewhere) })));
  const sums = new Map<string, { here: number; elsewhere: number }>();
  for (const row of rows) {
    const sum = sums.get(row.key) ?? { here: 0, elsewhere: 0 };
    sums.set(row.key, { here: sum.here + row.here, elsewhere: sum.elsewhere + row.elsewhere });
  }
  const scored = rows.flatMap(({ key, value, here, elsewhere }) => {
    const sum = sums.get(key)!;
    if (sum.here === 0 || sum.elsewhere === 0) return [];
    const [a, b] = [here / sum.here, elsewhere / sum.elsewhere];
    return [{ key, value, here: a, elsewhere: b, score: Math.abs(a - b) }];
  });
  scored.sort((a, b) => b.score - a.score);
  const telling = scored.filter(({ score }) => score >= 0.05);
  const raised = new Set(telling.filter(({ here, elsewhere }) => here > elsewhere).map(({ key }) => key));
  const seen = new Map<string, number>();
  return telling.filter(({ key, here, elsewhere }) => {
    if (here < elsewhere && raised.has(key)) return false;
    const times = seen.get(key) ?? 0;
    seen.set(key, times + 1);
    return times < 2;
  });
}

export interface ToolRow {
  plugin: string;
  tool: string;
  calls: number;
  errors: number;
  denials: number;
  p50: number | null;
  p95: number | null;
  p99: number | null;
  /** Calls and errors along the window. */
  trend: { calls: number[]; errors: number[] };
}

export const TREND = 24;

/** Tools that are listed at most, the first by the order that is chosen: an org may have ten thousand. */
export const MOST_TOOLS = 200;

/** What tools are ordered by, over the whole window. */
const SCORES: Record<string, string> = { calls: "calls", errors: "errors * 1.0 / calls", denied: "denials * 1.0 / calls", p50: "p50", p95: "p95", p99: "p99" };

export interface ToolOrder {
  by: string;
  down: boolean;
}

export function toolsQuery(stretch: Span, conditions: Condition[], box: Box | null, order: ToolOrder): Sql {
  const width = Math.max(1, Math.ceil((stretch.to - stretch.from) / TREND / 1000));
  const slot = (column: string): Sql => raw(`CAST((CAST(${column} AS BIGINT) / 1000 - ${stretch.from}) / ${width * 1000} AS BIGINT) AS slot`);
  const counted =
    !box && isCoarse(stretch, conditions)
      ? sql`sum(calls) AS calls, sum(errors) AS errors, sum(denials) AS denials, latency_merge(latency) AS latency
          FROM (
            SELECT plugin, tool, calls, errors, denials, latency, ${slot("window_start")}
            FROM tool_usage_hourly
            WHERE ${hours(stretch)}
              AND ${conditionsSql(conditions)}
          )`
      : sql`count(*) AS calls,
            count(*) FILTER (WHERE ${raw(FAILED)}) AS errors,
            count(*) FILTER (WHERE ${raw(DENIED)}) AS denials,
            latency_hist(duration_ms) FILTER (WHERE ${raw(RAN)}) AS latency
          FROM (
            SELECT plugin, tool, outcome, duration_ms, ${slot("started_at")}
            FROM tool_invocations
            WHERE ${selected(stretch, conditions, box)}
          )`;
  const score = SCORES[order.by];
  const ranked = score ? `score ${order.down ? "DESC NULLS LAST" : "ASC NULLS LAST"}, plugin, tool` : `plugin ${order.down ? "DESC" : "ASC"}, tool ${order.down ? "DESC" : "ASC"}`;
  return sql`
    SELECT plugin, tool, slot, calls, errors, denials, p50, p95, p99 FROM (
      SELECT plugin, tool, slot, calls, errors, denials, p50, p95, p99, dense_rank() OVER (ORDER BY ${raw(ranked)}) AS place FROM (
        SELECT plugin, tool, slot, calls, errors, denials, p50, p95, p99,
          max(CASE WHEN slot IS NULL THEN ${raw(score ?? "calls")} END) OVER (PARTITION BY plugin, tool) AS score FROM (
          SELECT plugin, tool, slot, calls, errors, denials,
            latency_quantile(latency, 0.5) AS p50, latency_quantile(latency, 0.95) AS p95, latency_quantile(latency, 0.99) AS p99
          FROM (
          SELECT plugin, tool, slot, ${counted}
          GROUP BY GROUPING SETS ((plugin, tool), (plugin, tool, slot))
          )
        )
      )
    ) WHERE place <= ${raw(String(MOST_TOOLS))}`;
}

/** The same tools in the window before this one. The hour that this one begins in is this one's alone. */
export function beforeQuery(stretch: Span, conditions: Condition[]): Sql {
  const before = { from: stretch.from - (stretch.to - stretch.from), to: stretch.from };
  if (isCoarse(stretch, conditions)) {
    return sql`
    SELECT plugin, tool, sum(calls) AS calls, sum(errors) AS errors, latency_quantile(latency_merge(latency), 0.95) AS p95
    FROM tool_usage_hourly
    WHERE ${hours({ from: before.from, to: Math.floor(before.to / HOUR) * HOUR })}
      AND ${conditionsSql(conditions)}
    GROUP BY plugin, tool`;
  }
  return sql`
    SELECT plugin, tool, count(*) AS calls,
      count(*) FILTER (WHERE ${raw(FAILED)}) AS errors,
      latency_quantile(latency_hist(duration_ms) FILTER (WHERE ${raw(RAN)}), 0.95) AS p95
    FROM tool_invocations
    WHERE ${selected(before, conditions, null)}
    GROUP BY plugin, tool`;
}

export function toolsOf(answer: Answer): ToolRow[] {
  const rows = new Map<string, ToolRow>();
  for (const [plugin, tool, slot, calls, errors, denials, p50, p95, p99] of answer.rows) {
    const name = JSON.stringify([plugin, tool]);
    let row = rows.get(name);
    if (!row) {
      const zeros = (): number[] => new Array<number>(TREND).fill(0);
      row = { plugin: String(plugin), tool: String(tool), calls: 0, errors: 0, denials: 0, p50: null, p95: null, p99: null, trend: { calls: zeros(), errors: zeros() } };
      rows.set(name, row);
    }
    const number = (v: unknown): number | null => (typeof v === "number" ? v : null);
    if (slot === null) {
      Object.assign(row, { calls: Number(calls), errors: Number(errors), denials: Number(denials), p50: number(p50), p95: number(p95), p99: number(p99) });
    } else {
      const at = Math.min(TREND - 1, Math.max(0, Number(slot)));
      row.trend.calls[at]! += Number(calls);
      row.trend.errors[at]! += Number(errors);
    }
  }
  return [...rows.values()];
}

/** Errors and denials, grouped by what they are. */
export function errorsQuery(stretch: Span, conditions: Condition[], box: Box | null): Sql {
  return sql`
    SELECT outcome, error_code, error_hash, count(*) AS calls, count(DISTINCT plugin || '/' || tool) AS tools, count(DISTINCT caller) AS callers,
      min(plugin || '/' || tool) AS one_tool, min(caller) AS one_caller, min(started_at) AS first_at, max(started_at) AS last_at
    FROM tool_invocations
    WHERE ${selected(stretch, conditions, box)}
      AND outcome <> 'ok'
    GROUP BY outcome, error_code, error_hash
    ORDER BY calls DESC, outcome, error_code, error_hash
    LIMIT 200`;
}

export const CALL_COLUMNS = "invocation_id, started_at, plugin, tool, caller, outcome, error_code, duration_ms, instance";
export const PAGE = 100;

export type Order = "newest" | "slowest";

/** A time as the server wrote it, with all its digits. */
function instant(text: string): Sql {
  if (!/^[\d:TZ.+-]+$/.test(text)) throw new Error("the server's answer has a time that is none");
  return raw(`'${text}'`);
}

/** A page of calls after the last one of the page before. */
export function callsQuery(stretch: Span, conditions: Condition[], box: Box | null, order: Order, after: { at: string; ms: number; id: string } | null): Sql {
  const by = order === "newest" ? "started_at" : "duration_ms";
  const mark = after && (order === "newest" ? instant(after.at) : value(after.ms));
  const past = after
    ? sql`
      AND (${raw(by)} < ${mark!} OR (${raw(by)} = ${mark!} AND invocation_id < ${value(after.id)}))`
    : raw("");
  return sql`
    SELECT ${raw(CALL_COLUMNS)}
    FROM tool_invocations
    WHERE ${selected(stretch, conditions, box)}${past}
    ORDER BY ${raw(by)} DESC, invocation_id DESC
    LIMIT ${raw(String(PAGE))}`;
}

/** What happened around the calls: policies loaded, plugins started and failed, programs started. */
export function eventsQuery(stretch: Span): Sql {
  return sql`
    SELECT occurred_at, action, target, instance, seq FROM audit_log
    WHERE occurred_at >= ${time(stretch.from)} AND occurred_at < ${time(stretch.to)}
      AND (action LIKE 'plugin.%' OR action LIKE 'operator.%') AND action NOT IN ('operator.query', 'plugin.started')
    ORDER BY occurred_at DESC LIMIT 200`;
}
