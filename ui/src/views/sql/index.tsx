/** SQL: a query, its answer as a table and a chart, as files; the query is in the URL, the last ones in this browser. */
import { Button, Menu } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { parseAsString, useQueryState } from "nuqs";
import { lazy, Suspense, useEffect, useMemo, useRef, useState } from "react";
import { Problem, send } from "../../api/http";
import { run as runSql, sql as piece, type Answer } from "../../api/sql";
import { Lines, type Line } from "../../components/chart";
import { useColors } from "../../components/colors";
import { Grid, type Column } from "../../components/grid";
import { Failure, Panel } from "../../components/panel";
import { bytes, duration, significant, whole } from "../../lib/format";
import { useColumns } from "../../state/columns";
import { useView } from "../../state/url";

const Editor = lazy(() => import("./editor"));

const KEPT = "mcpg-sql-history";
const MOST = 30;
/** Rows that are kept to be looked at; files have all of them. */
const SHOWN = 10_000;

const EXAMPLE = `SELECT plugin, tool, count(*) AS calls,
  latency_quantile(latency_hist(duration_ms), 0.99) AS p99_ms
FROM tool_invocations
WHERE started_at >= now() - INTERVAL '1 hour'
GROUP BY plugin, tool
ORDER BY calls DESC`;

interface Ran {
  answer: Answer;
  ms: number;
  bytes: number;
  text: string;
}

const kept = (): string[] => {
  try {
    const found: unknown = JSON.parse(localStorage.getItem(KEPT) ?? "[]");
    return Array.isArray(found) ? found.filter((each) => typeof each === "string") : [];
  } catch {
    return [];
  }
};

export default function SqlView() {
  const [{ org }] = useView();
  const [q, setQ] = useQueryState("q", parseAsString.withDefault("").withOptions({ history: "push" }));
  const [text, setText] = useState(q || EXAMPLE);
  const [ran, setRan] = useState<Ran | null>(null);
  const [failed, setFailed] = useState<unknown>(null);
  const [since, setSince] = useState<number | null>(null);
  const [past, setPast] = useState(kept);
  const under = useRef<AbortController | null>(null);
  const columns = useColumns(org);
  const functions = useQuery({ queryKey: ["functions", org], staleTime: Infinity, queryFn: async ({ signal }) => (await runSql(org, piece`SELECT DISTINCT routine_name FROM information_schema.routines ORDER BY routine_name`, signal)).rows.map(([name]) => String(name)) });
  const tables = useMemo(() => Object.fromEntries(Object.entries(columns.data ?? {}).map(([table, names]) => [table, names.map(({ name }) => name)])), [columns.data]);

  useEffect(() => setText((now) => q || now), [q]);
  useEffect(() => () => under.current?.abort(), []);

  const path = `/v1/orgs/${encodeURIComponent(org)}/sql`;
  const ask = (accept: string, signal: AbortSignal, query: string): Promise<Response> => send(path, { method: "POST", headers: { "content-type": "application/json", accept }, body: JSON.stringify({ query }), signal });

  const start = async (): Promise<void> => {
    under.current?.abort();
    const mine = new AbortController();
    under.current = mine;
    setFailed(null);
    setSince(performance.now());
    const query = text.trim().replace(/;\s*$/, "");
    void setQ(query);
    const began = performance.now();
    try {
      const body = await (await ask("application/json", mine.signal, query)).text();
      setRan({ answer: JSON.parse(body) as Answer, ms: performance.now() - began, bytes: body.length, text: query });
      const list = [query, ...kept().filter((each) => each !== query)].slice(0, MOST);
      setPast(list);
      try {
        localStorage.setItem(KEPT, JSON.stringify(list));
      } catch {
        // A browser that keeps nothing has no history.
      }
    } catch (error) {
      if (!(error instanceof DOMException)) {
        setRan(null);
        setFailed(error);
      }
    } finally {
      if (under.current === mine) {
        under.current = null;
        setSince(null);
      }
    }
  };
  const stop = (): void => {
    under.current?.abort();
    under.current = null;
    setSince(null);
  };
  // A link with a query shows its answer.
  const first = useRef(true);
  useEffect(() => {
    if (first.current && q) void start();
    first.current = false;
  });

  const save = async (accept: string, name: string): Promise<void> => {
    setFailed(null);
    try {
      const blob = await (await ask(accept, new AbortController().signal, ran?.text ?? text)).blob();
      const url = URL.createObjectURL(blob);
      Object.assign(document.createElement("a"), { href: url, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
    } catch (error) {
      setFailed(error);
    }
  };

  const position = failed instanceof Problem ? (failed.members.position as { line?: number; column?: number } | undefined) : undefined;
  return (
    <div className="page">
      <h1>SQL</h1>
      <section aria-label="query">
        <Suspense fallback={<div className="skeleton" style={{ height: 134 }} role="status" aria-label="loading" />}>
          <Editor value={text} onChange={setText} onRun={() => void start()} tables={tables} functions={functions.data ?? []} />
        </Suspense>
        <div className="form-row" style={{ marginTop: 8, alignItems: "center" }}>
          {since === null ? (
            <Button size="compact-sm" onClick={() => void start()} id="run" disabled={text.trim() === ""}>
              Run
            </Button>
          ) : (
            <Button size="compact-sm" variant="default" onClick={stop} id="stop">
              Stop
            </Button>
          )}
          <span className="muted" role="status" data-sql-status>
            {since !== null ? <Elapsed since={since} /> : ran ? `${whole(ran.answer.rows.length)} ${ran.answer.rows.length === 1 ? "row" : "rows"} in ${duration(ran.ms)}, ${bytes(ran.bytes)}` : "⌘⏎ or Ctrl-⏎ runs it"}
          </span>
          <span className="panel-actions">
            {ran && (
              <>
                <button type="button" className="quiet-button" onClick={() => void save("text/csv", "query.csv")}>
                  save CSV
                </button>
                <button type="button" className="quiet-button" onClick={() => void save("application/vnd.apache.parquet", "query.parquet")}>
                  save Parquet
                </button>
              </>
            )}
            <Menu position="bottom-end" width={480} transitionProps={{ duration: 0 }} shadow="none">
              <Menu.Target>
                <button type="button" className="quiet-button" disabled={past.length === 0}>
                  history ▾
                </button>
              </Menu.Target>
              <Menu.Dropdown mah={360} style={{ overflowY: "auto" }}>
                {past.map((each) => (
                  <Menu.Item key={each} onClick={() => setText(each)}>
                    <span className="mono">{each.replace(/\s+/g, " ").slice(0, 120)}</span>
                  </Menu.Item>
                ))}
              </Menu.Dropdown>
            </Menu>
          </span>
        </div>
      </section>
      {failed !== null && (
        <div>
          <Failure error={failed} />
          {position?.line !== undefined && (
            <p className="muted">
              at line {position.line}, column {position.column}
            </p>
          )}
        </div>
      )}
      {ran && <Answered ran={ran} />}
      <Tables tables={columns.data ?? {}} />
    </div>
  );
}

function Elapsed({ since }: { since: number }) {
  const [now, setNow] = useState(() => performance.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(performance.now()), 100);
    return () => clearInterval(timer);
  }, []);
  return <>running, {((now - since) / 1000).toFixed(1)} s</>;
}

const isNumber = (type: string): boolean => /int|double|float|decimal|real|numeric/i.test(type) && !/list|struct/i.test(type);
const isTime = (type: string): boolean => /timestamp|date/i.test(type);

function Answered({ ran }: { ran: Ran }) {
  const [chart, setChart] = useState(false);
  const { answer } = ran;
  const at = answer.columns.findIndex(({ type }) => isTime(type));
  const charted = at >= 0 && answer.columns.some(({ type }) => isNumber(type)) && answer.rows.length > 1;
  const columns = useMemo<Column<{ row: Answer["rows"][number]; at: number }>[]>(
    () =>
      answer.columns.map(({ name, type }, place) => ({
        name,
        width: isNumber(type) ? "minmax(96px, 1fr)" : "minmax(140px, 2fr)",
        right: isNumber(type),
        cell: ({ row }) => <Cell value={row[place] ?? null} />,
      })),
    [answer],
  );
  const rows = useMemo(() => answer.rows.slice(0, SHOWN).map((row, place) => ({ row, at: place })), [answer]);
  return (
    <Panel
      title="Answer"
      actions={
        charted && (
          <button type="button" className="quiet-button" aria-pressed={chart} onClick={() => setChart(!chart)}>
            {chart ? "as a table" : "as a chart"}
          </button>
        )
      }
    >
      {answer.rows.length === 0 ? (
        <div className="empty">The query has no rows.</div>
      ) : chart && charted ? (
        <Chart answer={answer} at={at} />
      ) : (
        <>
          <div className="answer">
            <Grid label="answer" rows={rows} columns={columns} id={(row) => String(row.at)} height={520} total={answer.rows.length + 1} />
          </div>
          {answer.rows.length > SHOWN && <p className="hint muted">The first {whole(SHOWN)} of {whole(answer.rows.length)} rows; a file has all of them.</p>}
        </>
      )}
    </Panel>
  );
}

function Cell({ value }: { value: unknown }) {
  if (value === null) return <span className="muted">null</span>;
  if (typeof value === "number") return <span title={String(value)}>{Number.isInteger(value) ? whole(value) : Math.abs(value) >= 1e6 ? String(value) : significant(value)}</span>;
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  return (
    <bdi className="name" title={text}>
      {text}
    </bdi>
  );
}

function Chart({ answer, at }: { answer: Answer; at: number }) {
  const colors = useColors();
  const { times, lines } = useMemo(() => {
    const sorted = [...answer.rows].sort((a, b) => Date.parse(String(a[at])) - Date.parse(String(b[at])));
    const palette = [colors.accent, colors.outcome.client_error!, colors.outcome.quota_exceeded!, colors.outcome.timeout!, colors.outcome.server_error!, colors.muted];
    const lines = answer.columns.flatMap(({ name, type }, place): Line[] => (isNumber(type) ? [{ label: name, values: sorted.map((row) => (typeof row[place] === "number" ? row[place] : null)), color: "" }] : [])).slice(0, palette.length);
    return { times: sorted.map((row) => Date.parse(String(row[at]))), lines: lines.map((line, place) => ({ ...line, color: palette[place]! })) };
  }, [answer, at, colors]);
  return <Lines times={times} step={1000} from={times[0]!} to={Math.max(times.at(-1)!, times[0]! + 1000)} height={320} lines={lines} format={significant} label="the answer as a chart" />;
}

function Tables({ tables }: { tables: Record<string, { name: string; type: string }[]> }) {
  const names = Object.keys(tables).filter((name) => !/^(columns|tables|schemata|views|routines|parameters|df_settings)$/.test(name));
  return (
    <Panel title="Tables">
      <div className="columns">
        {names.map((table) => (
          <details key={table}>
            <summary>
              {table} <span className="muted">{tables[table]!.length} columns</span>
            </summary>
            <dl className="facts">
              {tables[table]!.map(({ name, type }) => (
                <div key={name} className="column-row">
                  <dt className="mono">{name}</dt>
                  <dd className="muted">{type}</dd>
                </div>
              ))}
            </dl>
          </details>
        ))}
      </div>
    </Panel>
  );
}
