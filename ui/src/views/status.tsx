/** The home of an operator: whether it is ready, and what log, flush, ledger and tables owe. */
import { useQuery } from "@tanstack/react-query";
import { useMemo } from "react";
import { json, Problem, send } from "../api/http";
import { records, run, sql } from "../api/sql";
import { Loaded, Panel } from "../components/panel";
import { Name } from "../components/text";
import { whileAttended } from "../lib/attended";
import { ago, bytes, count, duration, whole } from "../lib/format";
import { useView } from "../state/url";

interface Metric {
  name: string;
  labels: Record<string, string>;
  value: number;
}

/** The text format of Prometheus, as far as it is used here. */
export function parseMetrics(text: string): Metric[] {
  return text.split("\n").flatMap((line) => {
    const parts = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!parts) return [];
    const labels: Record<string, string> = {};
    for (const [, name, quoted] of (parts[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name!] = quoted!.replace(/\\(.)/g, (_, c: string) => (c === "n" ? "\n" : c));
    return [{ name: parts[1]!, labels, value: Number(parts[3]!.replace("+Inf", "Infinity")) }];
  });
}

interface TableStatus {
  files?: number;
  bytes?: number;
  small_files?: number;
  oldest?: string | null;
  newest?: string | null;
  compaction_debt_bytes?: number;
  last_compaction?: string | null;
  last_retention?: string | null;
}

export default function Status() {
  const [{ org }] = useView();
  const ready = useQuery({
    queryKey: ["ready"],
    refetchInterval: whileAttended(5_000),
    queryFn: async ({ signal }) => {
      try {
        await send("/readyz", { signal });
        return { ready: true, detail: "it serves requests" };
      } catch (error) {
        if (error instanceof Problem && error.status === 503) return { ready: false, detail: error.detail };
        throw error;
      }
    },
  });
  const metrics = useQuery({ queryKey: ["own-metrics"], refetchInterval: whileAttended(10_000), queryFn: async ({ signal }) => parseMetrics(await (await send("/metrics", { signal })).text()) });
  const storage = useQuery({ queryKey: ["storage", org], refetchInterval: whileAttended(30_000), retry: false, queryFn: ({ signal }) => json<{ tables?: Record<string, TableStatus>; log?: { objects?: number; bytes?: number; oldest_at?: string } } & Record<string, unknown>>(`/v1/orgs/${encodeURIComponent(org)}/storage`, { signal }) });
  const series = useQuery({ queryKey: ["series-used", org], queryFn: async ({ signal }) => Number((await run(org, SERIES, signal)).rows[0]?.[0] ?? 0) });
  const tables = useMemo(() => tablesOf(storage.data), [storage.data]);
  return (
    <div className="page">
      <h1>Status</h1>
      <div className="columns">
        <Panel title="This node">
          <Loaded of={ready} height={64}>
            {() => (
              <>
                <p className={ready.data!.ready ? "big-number good" : "big-number bad"} data-ready={ready.data!.ready}>
                  {ready.data!.ready ? "Ready" : "Not ready"}
                </p>
                <p className="muted">{ready.data!.detail}</p>
              </>
            )}
          </Loaded>
          {metrics.data && <Facts facts={nodeFacts(metrics.data)} />}
        </Panel>
        <Panel title="Log and tables" query={[{ path: "/metrics" }]}>
          <Loaded of={metrics} height={160}>
            {() => <Facts facts={flushFacts(metrics.data!)} />}
          </Loaded>
        </Panel>
        <Panel title="Ledger" query={[{ path: "/metrics" }]}>
          <Loaded of={metrics} height={160}>
            {() => <Facts facts={ledgerFacts(metrics.data!)} />}
          </Loaded>
        </Panel>
        <Panel title="Series" query={[{ sql: SERIES }]}>
          <Loaded of={series} height={64}>
            {() => (
              <>
                <p className="big-number">{whole(series.data!)}</p>
                <p className="muted">of workspace, plugin and tool in 7 days. At most 10,000 an org unless it is set; past that, new ones count under __other__.</p>
              </>
            )}
          </Loaded>
        </Panel>
      </div>
      <Panel title={`Storage of ${org}`} query={[{ path: `/v1/orgs/${org}/storage` }]}>
        <Loaded of={storage} height={160} empty={storage.data && tables.length === 0 ? "Nothing has been written to the tables yet: the first flush is a few seconds after the first sample." : undefined}>
          {() => (
            <div className="table-scroll" tabIndex={0} role="region" aria-label="storage">
              <table className="table" data-storage>
                <thead>
                  <tr>
                    <th scope="col">table</th>
                    <th scope="col" className="right">files</th>
                    <th scope="col" className="right">bytes</th>
                    <th scope="col" className="right wide">small files</th>
                    <th scope="col" className="right">owed to compaction</th>
                    <th scope="col" className="right wide">last compaction</th>
                    <th scope="col" className="right wide">last retention</th>
                    <th scope="col" className="right wide">oldest</th>
                  </tr>
                </thead>
                <tbody>
                  {tables.map(([name, table]) => (
                    <tr key={name}>
                      <th scope="row">{name}</th>
                      <td className="right">{count(Number(table.files ?? NaN))}</td>
                      <td className="right">{bytes(Number(table.bytes ?? NaN))}</td>
                      <td className="right wide">{count(Number(table.small_files ?? NaN))}</td>
                      <td className="right">{table.compaction_debt_bytes ? bytes(table.compaction_debt_bytes) : "nothing"}</td>
                      <td className="right wide muted">{table.last_compaction ? ago(Date.parse(table.last_compaction)) : "–"}</td>
                      <td className="right wide muted">{table.last_retention ? ago(Date.parse(table.last_retention)) : "–"}</td>
                      <td className="right wide muted">{table.oldest ? String(table.oldest).slice(0, 10) : "–"}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          )}
        </Loaded>
      </Panel>
      <TokensPanel metrics={metrics.data} />
      <StopsPanel org={org} />
    </div>
  );
}

const SERIES = sql`SELECT count(*) AS series FROM (SELECT DISTINCT workspace, plugin, tool FROM tool_usage_hourly WHERE window_start >= now() - INTERVAL '7 days')`;

function tablesOf(storage: Record<string, unknown> | undefined): [string, TableStatus][] {
  const tables = (storage?.tables ?? storage ?? {}) as Record<string, unknown>;
  return Object.entries(tables).filter((entry): entry is [string, TableStatus] => typeof entry[1] === "object" && entry[1] !== null && "files" in entry[1] && "small_files" in entry[1]);
}

type Facts = [string, string, string?][];

const sum = (metrics: Metric[], name: string): number | null => {
  const found = metrics.filter((m) => m.name === name);
  return found.length ? found.reduce((total, m) => total + m.value, 0) : null;
};

/** The facts whose metric there is. */
function known(metrics: Metric[], rows: [string, string, (v: number) => string, ((v: number) => boolean)?][]): Facts {
  return rows.flatMap(([word, name, form, bad]): Facts => {
    const v = sum(metrics, name);
    return v === null ? [] : [[word, form(v), bad?.(v) ? "bad" : undefined]];
  });
}

const more = (v: number): boolean => v > 0;
const seconds = (v: number): string => duration(v * 1000);

const nodeFacts = (metrics: Metric[]): Facts =>
  known(metrics, [
    ["up since", "process_start_time_seconds", (v) => ago(v * 1000)],
    ["memory", "process_resident_memory_bytes", bytes],
    ["orgs stopped", "mcpg_cp_orgs_stopped", whole, more],
    ["queries running", "mcpg_cp_queries_running", whole],
  ]);

const flushFacts = (metrics: Metric[]): Facts =>
  known(metrics, [
    ["position of the log", "mcpg_cp_wal_position", whole],
    ["objects above the floor", "mcpg_cp_log_objects", whole],
    ["writes that failed", "mcpg_cp_wal_failures_total", whole, more],
    ["reads tried again", "mcpg_cp_log_hiccups_total", whole],
    ["behind: samples wait for the tables", "mcpg_cp_flush_lag_seconds", seconds, (v) => v > 120],
    ["flushes that failed", "mcpg_cp_flush_failures_total", whole, more],
    ["in memory", "mcpg_cp_buffer_bytes", bytes],
    ["refused, buffer full", "mcpg_cp_buffer_refusals_total", whole, more],
    ["owed to compaction", "mcpg_cp_compaction_debt_bytes", bytes],
    ["maintenance that failed", "mcpg_cp_maintenance_failures_total", whole, more],
  ]);

const ledgerFacts = (metrics: Metric[]): Facts =>
  known(metrics, [
    ["events", "mcpg_cp_audit_events_total", whole],
    ["behind: entries wait for a checkpoint", "mcpg_cp_audit_lag_seconds", seconds, (v) => v > 60],
    ["checkpoints signed", "mcpg_cp_audit_heads_total", whole],
    ["cosigned by witnesses", "mcpg_cp_audit_cosignatures_total", whole],
    ["publishing that failed", "mcpg_cp_audit_failures_total", whole, more],
    ["handing to witness or mirror that failed", "mcpg_cp_audit_handing_failures_total", whole, more],
  ]);

function Facts({ facts }: { facts: Facts }) {
  return (
    <dl className="facts wide-words">
      {facts.map(([word, text, tone]) => (
        <div key={word}>
          <dt>{word}</dt>
          <dd className={tone}>{text}</dd>
        </div>
      ))}
    </dl>
  );
}

function TokensPanel({ metrics }: { metrics: Metric[] | undefined }) {
  const used = metrics?.filter(({ name }) => name === "mcpg_cp_token_last_used_timestamp_seconds") ?? [];
  return (
    <Panel title="Tokens by last use" query={[{ path: "/metrics" }]}>
      {used.length === 0 ? (
        <div className="empty">No token has been used since this node started.</div>
      ) : (
        <ul>
          {used
            .sort((a, b) => b.value - a.value)
            .map(({ labels, value }) => (
              <li key={JSON.stringify(labels)}>
                <Name>{labels.token ?? labels.name ?? Object.values(labels)[0]}</Name> <span className="muted">{ago(value * 1000)}</span>
              </li>
            ))}
        </ul>
      )}
    </Panel>
  );
}

const NEWS = sql`SELECT seq, occurred_at, action, actor, target FROM audit_log WHERE action LIKE 'operator.%' AND action <> 'operator.query' ORDER BY seq DESC LIMIT 10`;

/** What the operators' programs have said last. */
function StopsPanel({ org }: { org: string }) {
  const news = useQuery({ queryKey: ["operator-news", org], queryFn: async ({ signal }) => records(await run(org, NEWS, signal)) });
  return (
    <Panel title="What operators and programs did" query={[{ sql: NEWS }]}>
      <Loaded of={news} height={96} empty={news.data?.length === 0 ? "The ledger has no entry of an operator yet." : undefined}>
        {() => (
          <div className="table-scroll" tabIndex={0} role="region" aria-label="operators">
          <table className="table">
            <thead>
              <tr>
                <th scope="col">when</th>
                <th scope="col">action</th>
                <th scope="col">actor</th>
                <th scope="col" className="wide">target</th>
              </tr>
            </thead>
            <tbody>
              {news.data!.map((row) => (
                <tr key={String(row.seq)}>
                  <td className="muted">{ago(Date.parse(String(row.occurred_at)))}</td>
                  <th scope="row">
                    <Name>{String(row.action)}</Name>
                  </th>
                  <td>
                    <Name>{String(row.actor)}</Name>
                  </td>
                  <td className="wide">{row.target ? <Name>{String(row.target)}</Name> : ""}</td>
                </tr>
              ))}
            </tbody>
          </table>
          </div>
        )}
      </Loaded>
    </Panel>
  );
}
