/** Tool activity: which calls, how many, how slow, what is wrong with them, and each of them. */
import { Drawer } from "@mantine/core";
import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { lazy, Suspense, useEffect, useMemo, useState } from "react";
import { errorsQuery, callsQuery, eventsQuery, facetsOf, facetsQuery, seriesOf, seriesQuery, type Series } from "../../api/activity";
import { run } from "../../api/sql";
import { HeatMap, Lines, type Line, type Tick } from "../../components/chart";
import { useColors } from "../../components/colors";
import { Failure, Loaded, Panel, ShowQuery, type Shown } from "../../components/panel";
import { clock, count, duration, percent, whole } from "../../lib/format";
import { OUTCOMES } from "../../lib/outcome";
import { useColumns } from "../../state/columns";
import type { Condition } from "../../state/attributes";
import { fingerprint, TABS, useConditions, useView } from "../../state/url";
import { useTime, type Window } from "../../state/window";
import { DifferencePanel } from "./difference";
import { Facets } from "./facets";
import { FilterBar } from "./filters";
import { Strip } from "./strip";
import { CallsTable, ErrorsTable, NoCalls, toolQueries, ToolsTable } from "./tables";

const CallPanel = lazy(() => import("../call/panel"));

const TAB_WORDS = { tools: "Tools", errors: "Errors", calls: "Calls" };

export default function Activity() {
  const [{ org, box, tab, call }, set] = useView();
  const { all: conditions } = useConditions();
  const time = useTime();
  const columns = useColumns(org);
  const { attributes } = columns;
  const [drawer, setDrawer] = useState(false);
  const known = Boolean(time) && columns.isSuccess;
  const key = [org, time?.from, time?.to, fingerprint(conditions)];
  const series = useQuery({ queryKey: ["series", ...key], enabled: Boolean(time), placeholderData: keepPreviousData, queryFn: async ({ signal }) => seriesOf(await run(org, seriesQuery(time!, conditions), signal), time!) });
  const facets = useQuery({ queryKey: ["facets", ...key], enabled: known, placeholderData: keepPreviousData, queryFn: async ({ signal }) => facetsOf(await run(org, facetsQuery(time!, conditions, attributes), signal)) });

  const side = facets.data ? <Facets attributes={attributes} facets={facets.data} /> : facets.isError ? <Failure error={facets.error} retry={facets.refetch} /> : <div className="skeleton" style={{ height: 320 }} role="status" aria-label="loading" />;
  return (
    <div className="activity">
      <h1 className="sr-only">Tool activity</h1>
      <FilterBar attributes={attributes} facets={facets.data} onFacets={() => setDrawer(true)} />
      <aside className="facets" aria-label="facets">
        {side}
      </aside>
      <Drawer opened={drawer} onClose={() => setDrawer(false)} title="Facets" size={280} transitionProps={{ duration: 0 }}>
        {side}
      </Drawer>
      <div className="activity-main">
        {columns.isError && <Failure error={columns.error} retry={columns.refetch} />}
        <div className={series.isPlaceholderData ? "stale" : undefined}>
          <Strip series={series.data} seconds={time ? (time.to - time.from) / 1000 : NaN} />
        </div>
        {time ? <MainPanel time={time} conditions={conditions} series={series} /> : <div className="skeleton" style={{ height: 300 }} role="status" aria-label="loading" />}
        {time && box && columns.isSuccess && <DifferencePanel time={time} box={box} conditions={conditions} attributes={attributes} />}
        {time && (
          <section className="panel" aria-label="tables">
            <header className="panel-head">
              <div role="tablist" className="tabs" aria-label="tables">
                {TABS.map((each) => (
                  <button key={each} type="button" role="tab" id={`tab-${each}`} aria-selected={tab === each} aria-controls="tab-panel" className={tab === each ? "tab on" : "tab"} onClick={() => void set({ tab: each, sort: null })}>
                    {TAB_WORDS[each]}
                  </button>
                ))}
              </div>
              <div className="panel-actions">
                {box && (
                  <span className="chip">
                    <span className="muted">in the box</span>
                    <button type="button" aria-label="drop the box" onClick={() => void set({ box: null })}>
                      ×
                    </button>
                  </span>
                )}
                <TableQuery time={time} conditions={conditions} />
              </div>
            </header>
            <div role="tabpanel" id="tab-panel" aria-labelledby={`tab-${tab}`}>
              {tab === "tools" && <ToolsTable time={time} conditions={conditions} box={box} />}
              {tab === "errors" && <ErrorsTable time={time} conditions={conditions} box={box} />}
              {tab === "calls" && <CallsTable time={time} conditions={conditions} box={box} />}
            </div>
          </section>
        )}
      </div>
      {call && (
        <Suspense fallback={null}>
          <CallPanel id={call} />
        </Suspense>
      )}
    </div>
  );
}

function TableQuery({ time, conditions }: { time: Window; conditions: Condition[] }) {
  const [{ tab, box, sort }] = useView();
  const given = { time, conditions, box };
  const queries: Shown[] = tab === "tools" ? toolQueries(given, sort) : tab === "errors" ? [{ sql: errorsQuery(time, conditions, box) }] : [{ sql: callsQuery(time, conditions, box, sort === "slowest" ? "slowest" : "newest", null) }];
  return <ShowQuery queries={queries} />;
}

/** The labels that metrics have of the conditions. */
function selector(org: string, conditions: Condition[]): string {
  const labels = conditions.filter(({ key }) => ["workspace", "plugin", "tool"].includes(key));
  const quoted = (text: string): string => `"${text.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
  return `{${[`org=${quoted(org)}`, ...labels.map(({ key, value, keep }) => `${key}${keep ? "=" : "!="}${quoted(value)}`)].join(",")}}`;
}

function MainPanel({ time, conditions, series }: { time: Window; conditions: Condition[]; series: { data: Series | undefined; isPending: boolean; isError: boolean; error: unknown; isPlaceholderData: boolean; refetch: () => unknown } }) {
  const [{ org, panel, box }, set] = useView();
  const colors = useColors();
  const [drawing, setDrawing] = useState(false);
  const [asTable, setAsTable] = useState(false);
  const events = useQuery({ queryKey: ["events", org, time.from, time.to], placeholderData: keepPreviousData, retry: false, queryFn: async ({ signal }) => (await run(org, eventsQuery(time), signal)).rows });
  const ticks = useMemo<Tick[]>(() => (events.data ?? []).map(([at, action, target, instance]) => ({ at: Date.parse(String(at)), label: [action, target ?? instance].filter(Boolean).join(" ") })), [events.data]);
  useEffect(() => {
    const draw = (): void => setDrawing(true);
    addEventListener("mcpg:box", draw);
    return () => removeEventListener("mcpg:box", draw);
  }, []);

  const data = series.data;
  const lines = useMemo<Line[]>(() => {
    if (!data) return [];
    const seconds = data.step / 1000;
    const outcome = (name: string): Line => ({ label: name, values: data.outcomes[name]!.map((n) => n / seconds), color: colors.outcome[name]!, stacked: true });
    const summed = (label: string, values: number[], color: string): Line => ({ label, values: values.map((n) => n / seconds), color: colors.outcome[color]!, stacked: true });
    const errors = summed("errors", data.errors, "server_error");
    const denials = summed("denials", data.denials, "policy_denied");
    if (data.coarse && panel === "errors") return [errors];
    if (data.coarse && panel === "denials") return [denials];
    if (data.coarse && panel === "calls") return [denials, errors, summed("ok", data.calls.map((n, at) => n - data.errors[at]! - data.denials[at]!), "ok")];
    switch (panel) {
      case "calls":
        return [...OUTCOMES].reverse().map(outcome);
      case "errors":
        return ["timeout", "server_error", "client_error"].map(outcome);
      case "denials":
        return ["quota_exceeded", "policy_denied"].map(outcome);
      case "lag":
        return [{ label: "p99", values: data.lag, color: colors.accent }];
      default:
        return [
          { label: "p99", values: data.p99, color: colors.accent },
          { label: "p95", values: data.p95, color: colors.muted },
          { label: "p50", values: data.p50, color: colors.muted, dash: [4, 3] },
        ];
    }
  }, [data, panel, colors]);
  const titles = { heat: "Latency, how many calls", latency: "Latency, quantiles", calls: "Calls a second, by outcome", errors: "Errors a second, by outcome", denials: "Denials a second, by outcome", lag: "Lag from arrival to the store, p99" };
  const isTime = panel === "latency" || panel === "lag" || panel === "heat";
  const perSecond = (v: number): string => (v === 0 ? "0" : `${v < 0.01 ? v.toExponential(0) : Number(v.toPrecision(3))}/s`);
  const labels = selector(org, conditions);
  const promql = {
    heat: `histogram_quantile(0.99, sum(rate(mcpg_tool_duration_seconds${labels}[5m])))`,
    latency: `histogram_quantile(0.99, sum(rate(mcpg_tool_duration_seconds${labels}[5m])))`,
    calls: `sum(rate(mcpg_tool_calls_total${labels}[5m]))`,
    errors: `sum(rate(mcpg_tool_errors_total${labels}[5m]))`,
    denials: `sum(rate(mcpg_tool_denials_total${labels}[5m]))`,
    lag: undefined,
  }[panel];
  const common = data && { times: data.times, step: data.step, from: data.times[0] ?? time.from, to: (data.times.at(-1) ?? time.to) + data.step, height: 280 };
  return (
    <Panel
      title={titles[panel]}
      query={[{ sql: seriesQuery(time, conditions), promql }, ...(panel === "heat" ? [{ sql: eventsQuery(time) }] : [])]}
      actions={
        <>
          {(panel === "heat" || panel === "latency") && (
            <div role="radiogroup" aria-label="form" className="switches">
              <button type="button" role="radio" aria-checked={panel === "heat"} className={panel === "heat" ? "switch on" : "switch"} onClick={() => void set({ panel: null })}>
                heat map
              </button>
              <button type="button" role="radio" aria-checked={panel === "latency"} className={panel === "latency" ? "switch on" : "switch"} onClick={() => void set({ panel: "latency" })}>
                quantiles
              </button>
            </div>
          )}
          {panel === "heat" && (
            <button type="button" className="quiet-button" aria-keyshortcuts="b" onClick={() => setDrawing(true)}>
              draw a box
            </button>
          )}
          <button type="button" className="quiet-button" aria-pressed={asTable} onClick={() => setAsTable(!asTable)}>
            {asTable ? "as a chart" : "as a table"}
          </button>
        </>
      }
    >
      <Loaded of={series} height={280} empty={
          data && data.total.calls === 0 ? (
            <NoCalls time={time} conditions={conditions} box={null} />
          ) : data?.coarse && panel === "lag" ? (
            <p>Of more than six days there are hours, and hours do not know the lag. Choose a shorter time, or look at Lag.</p>
          ) : undefined
        }
      >
        {() =>
          asTable ? (
            <SeriesTable series={data!} />
          ) : panel === "heat" ? (
            <HeatMap
              {...common!}
              cells={data!.cells}
              ticks={ticks}
              box={box}
              onBox={(found) => void set({ box: found })}
              drawing={drawing}
              onDrawn={() => setDrawing(false)}
              label={`Latency of ${whole(data!.total.calls)} calls over time: p50 ${duration(data!.total.p50)}, p99 ${duration(data!.total.p99)}`}
            />
          ) : (
            <Lines {...common!} lines={lines} format={isTime ? duration : perSecond} log={panel === "latency"} label={titles[panel]} onZoom={(from, to) => void set({ from: new Date(from).toISOString(), to: new Date(to).toISOString(), live: null })} />
          )
        }
      </Loaded>
      {panel === "heat" && !asTable && data && data.total.calls > 0 && (
        <p className="hint muted">
          {box ? "The box is what the panels below show." : "Drag a box over what stands out to see what is different in it."}
          {ticks.length > 0 && ` ▴ marks ${ticks.length} ${ticks.length === 1 ? "change" : "changes"} of policy, plugins or programs.`}
        </p>
      )}
    </Panel>
  );
}

function SeriesTable({ series }: { series: Series }) {
  return (
    <div className="table-scroll short" tabIndex={0} role="region" aria-label="the chart as a table">
      <table className="table">
        <thead>
          <tr>
            <th scope="col">from</th>
            <th scope="col" className="right">calls</th>
            <th scope="col" className="right">errors</th>
            <th scope="col" className="right">denials</th>
            <th scope="col" className="right">p50</th>
            <th scope="col" className="right">p95</th>
            <th scope="col" className="right">p99</th>
            <th scope="col" className="right">lag p99</th>
          </tr>
        </thead>
        <tbody>
          {series.times.map((at, place) =>
            series.calls[place] ? (
              <tr key={at}>
                <th scope="row">{clock(at)}</th>
                <td className="right">{count(series.calls[place]!)}</td>
                <td className="right">{percent(series.errors[place]! / series.calls[place]!)}</td>
                <td className="right">{percent(series.denials[place]! / series.calls[place]!)}</td>
                <td className="right">{duration(series.p50[place])}</td>
                <td className="right">{duration(series.p95[place])}</td>
                <td className="right">{duration(series.p99[place])}</td>
                <td className="right">{duration(series.lag[place])}</td>
              </tr>
            ) : null,
          )}
        </tbody>
      </table>
    </div>
  );
}
