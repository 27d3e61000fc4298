/** The strip: calls, errors, denials, latency, lag. Each is a number, its course, and the switch of the main panel. */
import type { Series } from "../../api/activity";
import { Spark, thinned } from "../../components/spark";
import { duration, percent, rate, whole } from "../../lib/format";
import { useView, type PanelName } from "../../state/url";

const BARS = 36;

export function Strip({ series, seconds }: { series: Series | undefined; seconds: number }) {
  const [{ panel }, set] = useView();
  const total = series?.total;
  const perSecond = rate((total?.calls ?? NaN) / seconds);
  const share = (n: number | undefined): string => (total && total.calls ? percent((n ?? 0) / total.calls) : "–");
  const tiles: { name: PanelName; word: string; value: React.ReactNode; hint: string; values: (number | null)[]; how: "sum" | "max"; tone?: string }[] = [
    {
      name: "calls",
      word: "calls",
      value: (
        <>
          {total ? perSecond.value : "–"}
          <small>{perSecond.unit}</small>
        </>
      ),
      hint: total ? `${whole(total.calls)} calls` : "",
      values: series?.calls ?? [],
      how: "sum",
    },
    { name: "errors", word: "errors", value: share(total?.errors), hint: total ? `${whole(total.errors)} of ${whole(total.calls)} calls` : "", values: series?.errors ?? [], how: "sum", tone: "server_error" },
    { name: "denials", word: "denials", value: share(total?.denials), hint: total ? `${whole(total.denials)} of ${whole(total.calls)} calls; a denied call is no error` : "", values: series?.denials ?? [], how: "sum", tone: "policy_denied" },
    {
      name: "heat",
      word: "latency",
      value: (
        <span className="quantiles">
          {(["p50", "p95", "p99"] as const).map((q) => (
            <span key={q}>
              <small>{q}</small> {duration(total?.[q])}
            </span>
          ))}
        </span>
      ),
      hint: "of calls that ran; within 1 %",
      values: series?.p99 ?? [],
      how: "max",
    },
    { name: "lag", word: "lag p99", value: duration(total?.lag), hint: "from arrival at the gateway to the store, without the call itself", values: series?.lag ?? [], how: "max" },
  ];
  return (
    <div className="strip" role="radiogroup" aria-label="main panel">
      {tiles.map((tile) => {
        const on = panel === tile.name || (tile.name === "heat" && panel === "latency");
        return (
          <button key={tile.name} type="button" role="radio" aria-checked={on} data-tile={tile.name} className={on ? "tile on" : "tile"} title={tile.hint} onClick={() => void set({ panel: tile.name })}>
            <span className="tile-word">{tile.word}</span>
            <span className="tile-value">{tile.value}</span>
            <span className="tile-spark" data-outcome={tile.tone}>
              <Spark values={thinned(tile.values, BARS, tile.how)} width={tile.name === "heat" ? 120 : 88} />
            </span>
          </button>
        );
      })}
    </div>
  );
}
