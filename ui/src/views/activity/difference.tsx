/** What is different in the box: which values its calls have far more, or far less, often than the others. */
import { useQuery } from "@tanstack/react-query";
import { differenceQueries, differencesOf, policyDifferenceQuery, type Difference } from "../../api/activity";
import { run } from "../../api/sql";
import { Loaded, Panel } from "../../components/panel";
import { Share } from "../../components/spark";
import { Name, Outcome } from "../../components/text";
import { clock, duration, percent, whole } from "../../lib/format";
import type { Attribute, Condition } from "../../state/attributes";
import { attribute } from "../../state/attributes";
import { fingerprint, useConditions, useView, type Box } from "../../state/url";
import type { Window } from "../../state/window";

export function DifferencePanel({ time, box, conditions, attributes }: { time: Window; box: Box; conditions: Condition[]; attributes: Attribute[] }) {
  const [{ org }, set] = useView();
  const { add } = useConditions();
  const key = [org, time.from, time.to, fingerprint(conditions), box];
  const queries = differenceQueries(time, conditions, box, attributes);
  const policies = policyDifferenceQuery(time, conditions, box);
  const values = useQuery({ queryKey: ["difference", ...key], queryFn: ({ signal }) => Promise.all(queries.map((query) => run(org, query, signal))), placeholderData: (previous) => previous });
  // The ledger may hold nothing of it, or be out of reach: then the rest stands by itself.
  const decided = useQuery({ queryKey: ["difference-policy", ...key], retry: false, queryFn: ({ signal }) => run(org, policies, signal), placeholderData: (previous) => previous });
  const differences = values.data ? differencesOf([...values.data, ...(decided.data ? [decided.data] : [])]).slice(0, 8) : [];
  const here = values.data?.flatMap((answer) => answer.rows).filter(([facet]) => facet === "plugin").reduce((sum, row) => sum + Number(row[2]), 0) ?? 0;
  const bounds = box.high >= 1e12 ? "any latency" : `${duration(box.low)} – ${duration(box.high)}`;
  return (
    <Panel
      title="What is different in the box"
      query={[...queries.map((sql) => ({ sql })), { sql: policies }]}
      actions={
        <>
          <span className="muted difference-box">
            {clock(box.from)} – {clock(box.to)} · {bounds}
          </span>
          <button type="button" className="quiet-button" onClick={() => void set({ from: new Date(box.from).toISOString(), to: new Date(box.to).toISOString(), box: null, live: null })}>
            zoom in
          </button>
          <button type="button" className="quiet-button leads-on" onClick={() => void set({ tab: "calls" })}>
            its calls{here > 0 && ` (${whole(here)})`} →
          </button>
          <button type="button" className="quiet-button" onClick={() => void set({ box: null })}>
            drop the box
          </button>
        </>
      }
    >
      <Loaded
        of={values}
        height={120}
        empty={
          values.data && here === 0
            ? "No calls lie in the box. Drag over cells of the map, or draw it with b."
            : values.data && differences.length === 0
              ? `Nothing tells the ${whole(here)} calls in the box from the rest: no attribute differs by 5 % or more.`
              : undefined
        }
      >
        {() => (
          <ol className="differences" data-differences>
            {differences.map((difference) => (
              <Row key={`${difference.key} ${difference.value}`} of={difference} onTake={(keep) => add({ key: difference.key, value: difference.value ?? "", keep })} />
            ))}
          </ol>
        )}
      </Loaded>
    </Panel>
  );
}

function Row({ of, onTake }: { of: Difference; onTake: (keep: boolean) => void }) {
  const known = attribute(of.key);
  const content = (
    <>
      <span className="difference-word">{known?.word ?? of.key}</span>
      <span className="difference-value">{of.key === "outcome" ? <Outcome>{of.value ?? ""}</Outcome> : <Name>{of.value}</Name>}</span>
      <span className="difference-bars">
        <Share of={of.here} className="share here" />
        <Share of={of.elsewhere} className="share" />
      </span>
      <span className="difference-text">
        <b>{percent(of.here)}</b> here, {percent(of.elsewhere)} elsewhere
      </span>
    </>
  );
  return (
    <li data-difference={of.key}>
      {known ? (
        <button type="button" onClick={() => onTake(of.here >= of.elsewhere)} title={of.here >= of.elsewhere ? "keep only these" : "leave these out"}>
          {content}
        </button>
      ) : (
        <div className="difference-plain">{content}</div>
      )}
    </li>
  );
}
