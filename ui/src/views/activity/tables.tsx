/** Below the panel: tools, errors by what they are, and the calls themselves. */
import { keepPreviousData, useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { useCallback, useMemo } from "react";
import { beforeQuery, callsQuery, errorsQuery, MOST_TOOLS, PAGE, toolsOf, toolsQuery, type Order, type ToolOrder, type ToolRow } from "../../api/activity";
import { records, run, sql, raw } from "../../api/sql";
import { Grid, type Column } from "../../components/grid";
import { Loaded } from "../../components/panel";
import { Spark } from "../../components/spark";
import { Name, Outcome, Time, ToolName } from "../../components/text";
import { change, count, duration, percent, rate, shortened, whole } from "../../lib/format";
import { attribute, type Condition } from "../../state/attributes";
import { fingerprint, useConditions, useView, type Box } from "../../state/url";
import type { Window } from "../../state/window";
import { conditionsSql, inBox, within } from "../../api/activity";

interface Given {
  time: Window;
  conditions: Condition[];
  box: Box | null;
}

const keyOf = (org: string, { time, conditions, box }: Given): unknown[] => [org, time.from, time.to, fingerprint(conditions), box];

/** What is said when no calls match: how many would without each condition. */
export function NoCalls({ time, conditions, box }: Given) {
  const [{ org }, set] = useView();
  const { remove, clear } = useConditions();
  const keys = [...new Set(conditions.map((c) => c.key))];
  const query = useQuery({
    queryKey: ["without", ...keyOf(org, { time, conditions, box })],
    enabled: keys.length > 0 || box !== null,
    queryFn: async ({ signal }) => {
      const columns = keys.map((key, at) => sql`count(*) FILTER (WHERE ${conditionsSql(conditions, key)}${box ? sql` AND ${inBox(box)}` : raw("")}) AS ${raw(`c${at}`)}`);
      const all = [...columns, sql`count(*) FILTER (WHERE ${conditionsSql(conditions)}) AS unboxed`];
      const list = all.slice(1).reduce((text, part) => sql`${text}, ${part}`, all[0]!);
      return run(org, sql`SELECT ${list} FROM tool_invocations WHERE ${within(time)}`, signal);
    },
  });
  const row = query.data?.rows[0];
  if (keys.length === 0 && !box) {
    return (
      <p>
        No calls in this time. Calls are here as soon as a gateway or another emitter sends samples.{" "}
        <button type="button" className="link" onClick={() => void set({ from: "now-7d", to: null })}>
          Look at 7 days
        </button>
      </p>
    );
  }
  return (
    <p>
      No calls match.{" "}
      {row &&
        keys.map((key, at) => (
          <span key={key}>
            {whole(Number(row[at]))} match without{" "}
            <button type="button" className="link" onClick={() => conditions.filter((c) => c.key === key).forEach(remove)}>
              {attribute(key)?.word ?? key}
            </button>
            .{" "}
          </span>
        ))}
      {box && row && (
        <>
          {whole(Number(row.at(-1)))} match without{" "}
          <button type="button" className="link" onClick={() => void set({ box: null })}>
            the box
          </button>
          .{" "}
        </>
      )}
      {keys.length > 1 && (
        <button type="button" className="link" onClick={clear}>
          Drop all filters
        </button>
      )}
    </p>
  );
}

/** Without a box the panel above has said it already. */
const Nothing = (given: Given) => (given.box ? <NoCalls {...given} /> : <p>No calls.</p>);

type ToolColumn = { key: string; word: string; right?: boolean; wide?: boolean; of: (row: ToolRow, before: Before | undefined) => number | string | null };
interface Before {
  calls: number;
  errors: number;
  p95: number | null;
}

const TOOL_COLUMNS: ToolColumn[] = [
  { key: "tool", word: "tool", of: (row) => `${row.plugin}/${row.tool}` },
  { key: "calls", word: "calls", right: true, of: (row) => row.calls },
  { key: "errors", word: "errors", right: true, of: (row) => (row.calls ? row.errors / row.calls : 0) },
  { key: "denied", word: "denied", right: true, wide: true, of: (row) => (row.calls ? row.denials / row.calls : 0) },
  { key: "p50", word: "p50", right: true, wide: true, of: (row) => row.p50 },
  { key: "p95", word: "p95", right: true, of: (row) => row.p95 },
  { key: "p99", word: "p99", right: true, wide: true, of: (row) => row.p99 },
];

/** `calls`, or another column; with `-` before it the other way round. */
function toolOrder(sort: string): ToolOrder {
  const by = sort.replace(/^-/, "") || "calls";
  return { by: TOOL_COLUMNS.some((c) => c.key === by) ? by : "calls", down: (by !== "tool") !== sort.startsWith("-") };
}

export const toolQueries = ({ time, conditions, box }: Given, sort: string) => [{ sql: toolsQuery(time, conditions, box, toolOrder(sort)) }, ...(box ? [] : [{ sql: beforeQuery(time, conditions) }])];

export function ToolsTable(given: Given) {
  const { time, conditions, box } = given;
  const [{ org, sort }, set] = useView();
  const { add } = useConditions();
  const key = keyOf(org, given);
  const { by, down } = toolOrder(sort);
  const tools = useQuery({ queryKey: ["tools", ...key, by, down], queryFn: async ({ signal }) => toolsOf(await run(org, toolsQuery(time, conditions, box, { by, down }), signal)), placeholderData: keepPreviousData });
  const before = useQuery({
    queryKey: ["tools-before", ...key],
    enabled: box === null,
    queryFn: async ({ signal }) => {
      const answer = await run(org, beforeQuery(time, conditions), signal);
      return new Map(answer.rows.map(([plugin, tool, calls, errors, p95]) => [JSON.stringify([plugin, tool]), { calls: Number(calls), errors: Number(errors), p95: p95 === null ? null : Number(p95) }]));
    },
    placeholderData: keepPreviousData,
  });
  const rows = useMemo(() => {
    const column = TOOL_COLUMNS.find((c) => c.key === by) ?? TOOL_COLUMNS[1]!;
    return [...(tools.data ?? [])].sort((a, b) => {
      const [x, y] = [column.of(a, undefined), column.of(b, undefined)];
      const order = typeof x === "string" && typeof y === "string" ? x.localeCompare(y) : Number(x ?? -1) - Number(y ?? -1);
      return (down ? -order : order) || b.calls - a.calls;
    });
  }, [tools.data, by, down]);
  const seconds = (time.to - time.from) / 1000;
  const resort = (column: string): void => void set({ sort: column === by ? (sort.startsWith("-") ? column : `-${column}`) : column === "calls" ? null : column });
  return (
    <Loaded of={tools} height={320} empty={tools.data?.length === 0 ? <Nothing {...given} /> : undefined}>
      {() => (
        <div className="table-scroll" tabIndex={0} role="region" aria-label="tools">
          <table className="table" data-rows data-tools>
            <thead>
              <tr>
                {TOOL_COLUMNS.map((column) => (
                  <th key={column.key} className={classes(column)} scope="col" aria-sort={column.key === by ? (down ? "descending" : "ascending") : undefined}>
                    <button type="button" onClick={() => resort(column.key)}>
                      {column.word}
                      <span aria-hidden="true">{column.key === by ? (down ? " ↓" : " ↑") : ""}</span>
                    </button>
                  </th>
                ))}
                <th scope="col" className="wide">
                  trend
                </th>
                {!box && (
                  <>
                    <th scope="col" className="right wide" title="calls, against the window before this one">
                      Δ calls
                    </th>
                    <th scope="col" className="right wide" title="p95, against the window before this one">
                      Δ p95
                    </th>
                  </>
                )}
              </tr>
            </thead>
            <tbody>
              {rows.map((row) => {
                const was = before.data?.get(JSON.stringify([row.plugin, row.tool]));
                return (
                  <tr key={JSON.stringify([row.plugin, row.tool])} tabIndex={-1} data-row={`${row.plugin}/${row.tool}`}>
                    <th scope="row">
                      <button
                        type="button"
                        className="link"
                        onClick={() => {
                          add({ key: "plugin", value: row.plugin, keep: true });
                          add({ key: "tool", value: row.tool, keep: true });
                        }}
                      >
                        <ToolName plugin={row.plugin} tool={row.tool} />
                      </button>
                    </th>
                    <td className="right" title={`${whole(row.calls)} calls, ${rate(row.calls / seconds).value}${rate(row.calls / seconds).unit}`}>
                      {count(row.calls)}
                    </td>
                    <td className={row.errors ? "right bad" : "right muted"} title={`${whole(row.errors)} calls`}>
                      {row.errors ? percent(row.errors / row.calls) : "0"}
                    </td>
                    <td className={row.denials ? "right wide" : "right wide muted"} title={`${whole(row.denials)} calls`}>
                      {row.denials ? percent(row.denials / row.calls) : "0"}
                    </td>
                    <td className="right wide">{duration(row.p50)}</td>
                    <td className="right">{duration(row.p95)}</td>
                    <td className="right wide">{duration(row.p99)}</td>
                    <td className="wide">
                      <Spark values={row.trend.calls} marks={row.trend.errors} width={96} />
                    </td>
                    {!box && (
                      <>
                        <td className="right wide muted">{before.data && <Delta now={row.calls} was={was?.calls} />}</td>
                        <td className="right wide muted">{was?.p95 && row.p95 ? <span title={`${duration(was.p95)} before`}>{change(row.p95, was.p95)}</span> : ""}</td>
                      </>
                    )}
                  </tr>
                );
              })}
            </tbody>
          </table>
          {rows.length === MOST_TOOLS && <p className="hint muted">The first {whole(MOST_TOOLS)} by {by}. A filter on plugin or tool, or another order, shows others.</p>}
        </div>
      )}
    </Loaded>
  );
}

const classes = ({ right, wide }: { right?: boolean; wide?: boolean }): string => [right && "right", wide && "wide"].filter(Boolean).join(" ");

function Delta({ now, was }: { now: number; was: number | undefined }) {
  if (was === undefined) return <span title="no calls in the window before">new</span>;
  return <span title={`${whole(was)} calls before`}>{change(now, was)}</span>;
}

export function ErrorsTable(given: Given) {
  const { time, conditions, box } = given;
  const [{ org }, set] = useView();
  const { add } = useConditions();
  const errors = useQuery({ queryKey: ["errors", ...keyOf(org, given)], queryFn: async ({ signal }) => records(await run(org, errorsQuery(time, conditions, box), signal)), placeholderData: keepPreviousData });
  return (
    <Loaded of={errors} height={320} empty={errors.data?.length === 0 ? <p>No call failed or was denied here. Errors are grouped by code and by the hash of their message; messages are never stored.</p> : undefined}>
      {() => (
        <div className="table-scroll" tabIndex={0} role="region" aria-label="errors">
          <table className="table" data-rows data-errors>
            <thead>
              <tr>
                <th scope="col">outcome</th>
                <th scope="col">error code</th>
                <th scope="col" className="wide">message hash</th>
                <th scope="col" className="right">calls</th>
                <th scope="col">tools</th>
                <th scope="col" className="wide">callers</th>
                <th scope="col" className="right wide">first</th>
                <th scope="col" className="right">last</th>
              </tr>
            </thead>
            <tbody>
              {errors.data!.map((row) => {
                const key = `${row.outcome} ${row.error_code} ${row.error_hash}`;
                return (
                  <tr key={key} tabIndex={-1} data-row={key}>
                    <td>
                      <Outcome>{String(row.outcome)}</Outcome>
                    </td>
                    <th scope="row">
                      <button
                        type="button"
                        className="link"
                        onClick={() => {
                          add({ key: "outcome", value: String(row.outcome), keep: true });
                          add({ key: "code", value: row.error_code === null ? "" : String(row.error_code), keep: true });
                          if (row.error_hash !== null) add({ key: "hash", value: String(row.error_hash), keep: true });
                          void set({ tab: "calls" });
                        }}
                      >
                        <Name>{row.error_code as string | null}</Name>
                      </button>
                    </th>
                    <td className="wide mono muted" title={String(row.error_hash ?? "")}>
                      {row.error_hash ? shortened(String(row.error_hash)) : "–"}
                    </td>
                    <td className="right">{count(Number(row.calls))}</td>
                    <td>{Number(row.tools) === 1 ? <Name>{String(row.one_tool)}</Name> : `${whole(Number(row.tools))} tools`}</td>
                    <td className="wide">{Number(row.callers) === 1 ? <Name>{row.one_caller as string | null}</Name> : `${whole(Number(row.callers))} callers`}</td>
                    <td className="right wide muted">
                      <Time at={String(row.first_at)} />
                    </td>
                    <td className="right">
                      <Time at={String(row.last_at)} />
                    </td>
                  </tr>
                );
              })}
            </tbody>
          </table>
        </div>
      )}
    </Loaded>
  );
}

interface CallRow {
  id: string;
  startedAt: string;
  plugin: string;
  tool: string;
  caller: string | null;
  outcome: string;
  code: string | null;
  ms: number;
  instance: string;
}

const CALL_COLUMNS: Column<CallRow>[] = [
  { name: "started", width: "88px", narrow: "60px", cell: (row) => <Time at={row.startedAt} exact /> },
  { name: "tool", width: "minmax(96px, 2fr)", cell: (row) => <ToolName plugin={row.plugin} tool={row.tool} /> },
  { name: "caller", width: "minmax(80px, 1.2fr)", wide: true, cell: (row) => <Name>{row.caller}</Name> },
  { name: "outcome", width: "minmax(64px, 0.8fr)", narrow: "108px", cell: (row) => <Outcome>{row.outcome}</Outcome> },
  { name: "error code", width: "minmax(80px, 1fr)", wide: true, cell: (row) => (row.code ? <Name>{row.code}</Name> : null) },
  { name: "instance", width: "minmax(56px, 0.6fr)", wide: true, cell: (row) => <Name>{row.instance}</Name> },
  { name: "latency", width: "60px", right: true, cell: (row) => duration(row.ms) },
];

const orderOf = (sort: string): Order => (sort === "slowest" ? "slowest" : "newest");

export function CallsTable(given: Given) {
  const { time, conditions, box } = given;
  const [{ org, sort, call, live }, set] = useView();
  const order = orderOf(sort);
  const calls = useInfiniteQuery({
    queryKey: ["calls", ...keyOf(org, given), order],
    initialPageParam: null as { at: string; ms: number; id: string } | null,
    queryFn: async ({ signal, pageParam }) => {
      const answer = await run(org, callsQuery(time, conditions, box, order, pageParam), signal);
      return answer.rows.map(([id, startedAt, plugin, tool, caller, outcome, code, ms, instance]): CallRow => ({ id: String(id), startedAt: String(startedAt), plugin: String(plugin), tool: String(tool), caller: caller as string | null, outcome: String(outcome), code: code as string | null, ms: Number(ms), instance: String(instance) }));
    },
    getNextPageParam: (page) => {
      const last = page.at(-1);
      return page.length === PAGE && last ? { at: last.startedAt, ms: last.ms, id: last.id } : undefined;
    },
    placeholderData: keepPreviousData,
  });
  const rows = useMemo(() => calls.data?.pages.flat() ?? [], [calls.data]);
  const { hasNextPage, isFetchingNextPage, fetchNextPage } = calls;
  const more = useCallback(() => {
    if (hasNextPage && !isFetchingNextPage) void fetchNextPage();
  }, [hasNextPage, isFetchingNextPage, fetchNextPage]);
  return (
    <>
      <div className="sub-bar" role="radiogroup" aria-label="order">
        {(["newest", "slowest"] as const).map((each) => (
          <button key={each} type="button" role="radio" aria-checked={order === each} className={order === each ? "switch on" : "switch"} onClick={() => void set({ sort: each === "newest" ? null : each })}>
            {each} first
          </button>
        ))}
        {live && order === "newest" && <span className="muted">new calls come in on top</span>}
      </div>
      <Loaded of={calls} height={320} empty={calls.data && rows.length === 0 ? <Nothing {...given} /> : undefined}>
        {() => <Grid label="calls" rows={rows} columns={CALL_COLUMNS} id={(row) => row.id} selected={call} onOpen={(row) => void set({ call: row.id })} onEnd={more} height={560} />}
      </Loaded>
    </>
  );
}
