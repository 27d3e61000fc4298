/** Lag: how long samples are on their way, by instance, and who is silent. */
import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { useMemo } from "react";
import { conditionsSql, within } from "../api/activity";
import { raw, records, run, sql, time as at, type Sql } from "../api/sql";
import { Lines, type Line } from "../components/chart";
import { useColors } from "../components/colors";
import { Loaded, Panel } from "../components/panel";
import { Name } from "../components/text";
import { ago, count, duration } from "../lib/format";
import { stepOf, type Span } from "../lib/time";
import type { Condition } from "../state/attributes";
import { follow, link } from "../state/route";
import { fingerprint, useConditions, useView } from "../state/url";
import { useTime } from "../state/window";
import { TimeControl } from "./activity/filters";

const MICROS = (name: string): string => `CAST(${name} AS BIGINT)`;
/** Arrival to the call's begin; the call's end to the store; all of it without the call. */
const PARTS = `greatest((${MICROS("started_at")} - ${MICROS("arrived_at")}) / 1000.0, 0.0) AS arrival,
        greatest((${MICROS("ingested_at")} - ${MICROS("started_at")}) / 1000.0 - duration_ms, 0.0) AS ingest`;

/** How far back an instance is looked for that says nothing now. */
const REMEMBERED_MS = 86_400e3;
/** After how long without a sample an instance is silent. */
const SILENT_MS = 5 * 60e3;

function instancesQuery(stretch: Span, conditions: Condition[]): Sql {
  return sql`
    SELECT instance, count(*) AS calls, max(started_at) AS last_call, max(ingested_at) AS last_ingest,
      latency_quantile(latency_hist(arrival), 0.5) AS arrival_p50, latency_quantile(latency_hist(arrival), 0.99) AS arrival_p99,
      latency_quantile(latency_hist(ingest), 0.5) AS ingest_p50, latency_quantile(latency_hist(ingest), 0.99) AS ingest_p99
    FROM (
      SELECT instance, started_at, ingested_at, ${raw(PARTS)}
      FROM tool_invocations
      WHERE ${within(stretch)} AND ${conditionsSql(conditions)}
    ) GROUP BY instance ORDER BY ingest_p99 DESC LIMIT 500`;
}

/** The last sample of each instance of the past day, whatever the time that is shown. */
const lastQuery = (now: number, conditions: Condition[]): Sql =>
  sql`SELECT instance, max(started_at) AS last_call FROM tool_invocations
    WHERE started_at >= ${at(now - REMEMBERED_MS)} AND ${conditionsSql(conditions)} GROUP BY instance ORDER BY last_call LIMIT 500`;

function courseQuery(stretch: Span, conditions: Condition[]): Sql {
  return sql`
    SELECT t, latency_quantile(latency_hist(arrival), 0.99) AS arrival, latency_quantile(latency_hist(ingest), 0.99) AS ingest
    FROM (
      SELECT date_bin(INTERVAL '${raw(String(stepOf(stretch, 200) / 1000))} seconds', started_at) AS t, ${raw(PARTS)}
      FROM tool_invocations
      WHERE ${within(stretch)} AND ${conditionsSql(conditions)}
    ) GROUP BY t ORDER BY t`;
}

export default function Lag() {
  const [{ org }, set] = useView();
  const { all } = useConditions();
  const conditions = useMemo(() => all.filter(({ key }) => key === "workspace" || key === "instance"), [all]);
  const time = useTime();
  const colors = useColors();
  const key = [org, time?.from, time?.to, fingerprint(conditions)];
  const options = { enabled: Boolean(time), placeholderData: keepPreviousData };
  const instances = useQuery({ queryKey: ["lag-instances", ...key], ...options, queryFn: async ({ signal }) => records(await run(org, instancesQuery(time!, conditions), signal)) });
  const last = useQuery({ queryKey: ["lag-last", org, Math.floor((time?.to ?? 0) / 30e3), fingerprint(conditions)], ...options, queryFn: async ({ signal }) => records(await run(org, lastQuery(Date.now(), conditions), signal)) });
  const course = useQuery({ queryKey: ["lag-course", ...key], ...options, queryFn: async ({ signal }) => (await run(org, courseQuery(time!, conditions), signal)).rows });

  const step = time ? stepOf(time, 200) : 1000;
  const times = useMemo(() => {
    const out: number[] = [];
    if (time) for (let t = Math.floor(time.from / step) * step; t < time.to; t += step) out.push(t);
    return out;
  }, [time, step]);
  const lines = useMemo<Line[]>(() => {
    const place = new Map(course.data?.map(([t, arrival, ingest]) => [Date.parse(String(t)), [arrival, ingest]]));
    const of = (which: number) => times.map((t) => (place.get(t)?.[which] as number | null | undefined) ?? null);
    return [
      { label: "processing to ingest", values: of(1), color: colors.accent },
      { label: "arrival to processing", values: of(0), color: colors.outcome.client_error! },
    ];
  }, [course.data, times, colors]);
  const silent = (last.data ?? []).filter((row) => Date.now() - Date.parse(String(row.last_call)) > SILENT_MS);

  return (
    <div className="page">
      <header className="panel-head">
        <h1>Lag</h1>
        {conditions.map((c) => (
          <span key={`${c.key}${c.value}`} className={c.keep ? "chip" : "chip not"}>
            <span className="muted">{c.key}</span> <Name>{c.value}</Name>
          </span>
        ))}
        <TimeControl />
      </header>
      <Panel title="p99 over time" query={time ? [{ sql: courseQuery(time, conditions) }] : []}>
        <Loaded of={course} height={240} empty={course.data?.length === 0 ? "No samples in this time. Lag is seen as soon as a gateway sends some." : undefined}>
          {() => (
            <Lines times={times} step={step} from={times[0] ?? 0} to={(times.at(-1) ?? 0) + step} height={240} lines={lines} format={duration} log label="p99 of the lag over time" onZoom={(from, to) => void set({ from: new Date(from).toISOString(), to: new Date(to).toISOString(), live: null })} />
          )}
        </Loaded>
      </Panel>
      <Panel title="By instance" query={time ? [{ sql: instancesQuery(time, conditions) }] : []}>
        <Loaded of={instances} height={160} empty={instances.data?.length === 0 ? "No instance has sent samples of this time." : undefined}>
          {() => (
            <div className="table-scroll" tabIndex={0} role="region" aria-label="instances">
              <table className="table" data-rows data-instances>
                <thead>
                  <tr>
                    <th scope="col">instance</th>
                    <th scope="col" className="right wide">calls</th>
                    <th scope="col" className="right wide">arrival to processing p50</th>
                    <th scope="col" className="right">arrival p99</th>
                    <th scope="col" className="right wide">processing to ingest p50</th>
                    <th scope="col" className="right">ingest p99</th>
                    <th scope="col" className="right">last call</th>
                  </tr>
                </thead>
                <tbody>
                  {instances.data!.map((row) => (
                    <tr key={String(row.instance)} tabIndex={-1} data-row={String(row.instance)}>
                      <th scope="row">
                        <a className="link" href={link("/", { instance: String(row.instance) })} onClick={follow}>
                          <Name>{String(row.instance)}</Name>
                        </a>
                      </th>
                      <td className="right wide">{count(Number(row.calls))}</td>
                      <td className="right wide">{duration(row.arrival_p50 as number | null)}</td>
                      <td className="right">{duration(row.arrival_p99 as number | null)}</td>
                      <td className="right wide">{duration(row.ingest_p50 as number | null)}</td>
                      <td className="right">{duration(row.ingest_p99 as number | null)}</td>
                      <td className="right muted">{ago(Date.parse(String(row.last_call)))}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          )}
        </Loaded>
        <p className="hint muted">Arrival to processing: identity, policy and queue. Processing to ingest: the spool and the way to the log; from there every query sees it. The files of the tables follow within seconds: Status says how far behind they are.</p>
      </Panel>
      <Panel title="Silent" query={[{ sql: lastQuery(Date.now(), conditions) }]}>
        <Loaded of={last} height={48} empty={last.data && silent.length === 0 ? "Every instance of the last 24 hours has sent a sample within 5 minutes." : undefined}>
          {() => (
            <ul data-silent>
              {silent.map((row) => (
                <li key={String(row.instance)}>
                  <b>
                    <Name>{String(row.instance)}</Name>
                  </b>{" "}
                  <span className="muted">last call {ago(Date.parse(String(row.last_call)))}: no calls came by it, or its samples wait in its spool</span>
                </li>
              ))}
            </ul>
          )}
        </Loaded>
      </Panel>
    </div>
  );
}
