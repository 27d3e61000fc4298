/** What is known of one call: the sentence, the timeline, the facts, the ledger's entry and its proof, the neighbours. */
import { useMemo } from "react";
import { traceLink, useSession } from "../../api/session";
import { Code, Failure, Loaded } from "../../components/panel";
import { Name, Outcome, Time, ToolName } from "../../components/text";
import { bytes, clock, duration, shortened, whole } from "../../lib/format";
import { DENIALS, ending } from "../../lib/outcome";
import { paramsOf } from "../../state/url";
import { follow, link } from "../../state/route";
import { useView } from "../../state/url";
import { callQuery, useCall, useEntries, useNeighbours, usePolicies, type Row } from "./data";
import { Payload } from "./payload";
import { Seal } from "./seal";

const list = (value: unknown): string[] => (Array.isArray(value) ? (value as unknown[]).map(String) : []);
const text = (value: unknown): string | null => (typeof value === "string" && value !== "" ? value : null);
const number = (value: unknown): number | null => (typeof value === "number" ? value : null);

export function CallBody({ id, onCall }: { id: string; onCall: (id: string) => void }) {
  const [{ org }] = useView();
  const call = useCall(org, id);
  const entries = useEntries(org, call.data);
  const neighbours = useNeighbours(org, call.data);
  const policies = usePolicies(org, call.data);
  if (call.isError) return <Failure error={call.error} retry={call.refetch} />;
  if (call.isPending) return <div className="skeleton" style={{ height: 320 }} role="status" aria-label="loading" />;
  const row = call.data;
  if (!row) {
    return (
      <div className="empty">
        <p>
          No call has the id <bdi className="mono">{id}</bdi>. It may be older than samples are kept, or of another org.
        </p>
      </div>
    );
  }
  const decision = entries.data?.find((entry) => String(entry.action).startsWith("tool."));
  return (
    <div className="call-body">
      <Sentence row={row} entry={decision} />
      <Timeline row={row} />
      <section aria-label="identity, policy, dispatch">
        <h2>Identity → policy → dispatch</h2>
        <ol className="trail" data-trail>
          <TrailStep word="identity" took={number(row.identity_us)}>
            <p>
              <Name>{text(row.caller) ?? "somebody without a name"}</Name>
              <Identified row={row} />
            </p>
          </TrailStep>
          <TrailStep word="policy" took={number(row.policy_us)}>
            <Loaded of={entries} height={64} empty={entries.data?.length === 0 ? <p>The ledger has no entry of this call: its emitter sends samples alone, or the entry was removed when its time was over.</p> : undefined}>
              {() => entries.data!.map((entry) => <Decision key={String(entry.seq)} entry={entry} policies={policies.data ?? null} />)}
            </Loaded>
          </TrailStep>
          <Dispatch row={row} />
        </ol>
      </section>
      <Facts row={row} />
      <Payload id={id} row={row} />
      {text(row.session_id) && (
        <section aria-label="neighbours">
          <h2>In the same session</h2>
          <Loaded of={neighbours} height={96}>
            {() => (
              <ol className="neighbours">
                {neighbours.data!.map((each) => (
                  <li key={String(each.invocation_id)}>
                    {each.invocation_id === id ? (
                      <span className="neighbour here" aria-current="true">
                        <Neighbour row={each} />
                      </span>
                    ) : (
                      <button type="button" className="neighbour" onClick={() => onCall(String(each.invocation_id))}>
                        <Neighbour row={each} />
                      </button>
                    )}
                  </li>
                ))}
              </ol>
            )}
          </Loaded>
        </section>
      )}
      <section aria-label="query">
        <h2>Query</h2>
        <Code text={callQuery(id, false).shown} run />
      </section>
    </div>
  );
}

function Neighbour({ row }: { row: Row }) {
  return (
    <>
      <Time at={String(row.started_at)} exact />
      <ToolName plugin={String(row.plugin)} tool={String(row.tool)} />
      <Outcome>{String(row.outcome)}</Outcome>
      <span className="right">{duration(number(row.duration_ms))}</span>
    </>
  );
}

/** The sentence a person would say. */
function Sentence({ row, entry }: { row: Row; entry: Row | undefined }) {
  const at = Date.parse(String(row.started_at));
  const policies = list(entry?.policy_ids);
  const obligations = list(entry?.obligations);
  const denied = DENIALS.includes(String(row.outcome));
  return (
    <p className="sentence" aria-live="polite" data-sentence>
      <Name>{text(row.caller) ?? "somebody without a name"}</Name> called{" "}
      <b>
        <Name>{String(row.plugin)}</Name>/<Name>{String(row.tool)}</Name>
      </b>{" "}
      on <Name>{String(row.instance)}</Name> at <Time at={at} />
      {policies.length > 0 && (
        <>
          ; {denied ? "denied" : "permitted"} by{" "}
          {policies.map((policy, place) => (
            <span key={policy}>
              {place > 0 && ", "}
              <Name>{policy}</Name>
            </span>
          ))}
          {obligations.length > 0 && (
            <>
              {" "}
              with{" "}
              {obligations.map((obligation, place) => (
                <span key={obligation}>
                  {place > 0 && ", "}
                  <Name>{obligation}</Name>
                </span>
              ))}
            </>
          )}
        </>
      )}
      ; {ending(String(row.outcome), duration(number(row.duration_ms)))}
      {text(row.error_code) && (
        <>
          : <Name>{text(row.error_code)}</Name>
        </>
      )}
      .
    </p>
  );
}

interface Step {
  word: string;
  ms: number;
  hint: string;
}

/** From arrival to the store as one bar, whose steps are as long as they took, but for a least width that can be seen. */
function Timeline({ row }: { row: Row }) {
  const steps = useMemo<Step[]>(() => {
    const arrived = Date.parse(String(row.arrived_at));
    const started = Date.parse(String(row.started_at));
    const ingested = Date.parse(String(row.ingested_at));
    const took = number(row.duration_ms) ?? 0;
    const out: Step[] = [];
    const measured = ([["identity", row.identity_us], ["policy", row.policy_us], ["queue", row.queue_us]] as const).flatMap(([word, us]) => {
      const micros = number(us);
      return micros === null ? [] : [{ word, ms: micros / 1000, hint: `${word}: ${duration(micros / 1000)}` }];
    });
    const before = Math.max(0, started - arrived);
    if (measured.length > 0) out.push(...measured);
    else if (before > 0) out.push({ word: "before", ms: before, hint: "before the call: identity, policy and queue, which this sample does not tell apart" });
    const ran = !DENIALS.includes(String(row.outcome));
    out.push({ word: ran ? "dispatch" : "refused", ms: took, hint: ran ? "dispatch to answer: at the plugin, until the answer was there" : "nothing was dispatched" });
    out.push({ word: "ingest", ms: Math.max(0, ingested - started - took), hint: "in the gateway's spool and on its way, until it was durable in the store" });
    return out;
  }, [row]);
  const sum = steps.reduce((total, { ms }) => total + ms, 0) || 1;
  return (
    <section aria-label="timeline">
      <h2>Timeline</h2>
      <ol className="timeline" data-timeline>
        {steps.map(({ word, ms, hint }) => (
          <li key={word} style={{ flexGrow: Math.max(0.04, ms / sum) }} data-step={word} title={hint}>
            <i aria-hidden="true" />
            <span className="timeline-word">{word}</span>
            <span className="timeline-time">{duration(ms)}</span>
          </li>
        ))}
      </ol>
      <dl className="instants">
        {(
          [
            ["arrived", row.arrived_at],
            ["started", row.started_at],
            ["in the table", row.ingested_at],
          ] as const
        ).map(([word, at]) => (
          <div key={word}>
            <dt>{word}</dt>
            <dd>
              <Time at={String(at)} exact />
            </dd>
          </div>
        ))}
      </dl>
    </section>
  );
}

function TrailStep({ word, took, children }: { word: string; took: number | null; children: React.ReactNode }) {
  return (
    <li data-trail-step={word}>
      <h3>
        {word} {took !== null && <span className="muted">{duration(took / 1000)}</span>}
      </h3>
      {children}
    </li>
  );
}

/** By what the caller was: client, protocol. */
function Identified({ row }: { row: Row }) {
  const client = [text(row.client_name), text(row.client_version)].filter((part) => part !== null).join(" ");
  return (
    <span className="muted">
      {client && (
        <>
          {" "}
          by <Name>{client}</Name>
        </>
      )}
      {text(row.protocol_version) && (
        <>
          , protocol <Name>{text(row.protocol_version)}</Name>
        </>
      )}
    </span>
  );
}

function Dispatch({ row }: { row: Row }) {
  if (DENIALS.includes(String(row.outcome))) {
    return (
      <TrailStep word="dispatch" took={null}>
        <p>
          <Outcome>{String(row.outcome)}</Outcome> <span className="muted">Nothing was dispatched: no server has seen the call.</span>
        </p>
      </TrailStep>
    );
  }
  const took = number(row.duration_ms);
  return (
    <TrailStep word="dispatch" took={took === null ? null : took * 1000}>
      <p>
        <Outcome>{String(row.outcome)}</Outcome>{" "}
        <span className="muted">
          from <Name>{String(row.plugin)}</Name>, through <Name>{String(row.instance)}</Name>
        </span>
        {text(row.error_code) && (
          <>
            {" "}
            <Name>{text(row.error_code)}</Name>
          </>
        )}
      </p>
    </TrailStep>
  );
}

function Decision({ entry, policies: inForce }: { entry: Row; policies: Row | null }) {
  const policies = list(entry.policy_ids);
  const obligations = list(entry.obligations);
  return (
    <div className="decision">
      <dl className="facts">
        <Fact word="action">
          <Name>{text(entry.action)}</Name>
        </Fact>
        <Fact word="policies">
          {policies.length ? (
            <ul className="inline-list" data-policies>
              {policies.map((policy) => (
                <li key={policy}>
                  <Name>{policy}</Name>
                </li>
              ))}
            </ul>
          ) : (
            <span className="muted">none named: {entry.decision === "deny" ? "nothing permits it" : "policy is allow_all"}</span>
          )}
        </Fact>
        {inForce && text(inForce.digest) && policies.length > 0 && (
          <Fact word="their text">
            <span className="mono" title={`the digest of all policies in force at the instance: ${text(inForce.digest)}`}>
              {shortened(text(inForce.digest)!, 16)}
            </span>{" "}
            <span className="muted">
              since entry{" "}
              <a href={link("/ledger", { seq: String(inForce.seq) })} onClick={follow}>
                {whole(Number(inForce.seq))}
              </a>
            </span>
          </Fact>
        )}
        {obligations.length > 0 && (
          <Fact word="obligations">
            <ul className="inline-list">
              {obligations.map((each) => (
                <li key={each}>
                  <Name>{each}</Name>
                </li>
              ))}
            </ul>
          </Fact>
        )}
        {text(entry.reason) && (
          <Fact word="reason">
            <Name>{text(entry.reason)}</Name>
          </Fact>
        )}
        <Fact word="entry">
          <a href={link("/ledger", { seq: String(entry.seq) })} onClick={follow}>
            {whole(Number(entry.seq))}
          </a>{" "}
          <span className="muted">
            by <Name>{text(entry.actor)}</Name>
          </span>
        </Fact>
      </dl>
      <Seal seq={Number(entry.seq)} />
    </div>
  );
}

function Fact({ word, children }: { word: string; children: React.ReactNode }) {
  return (
    <div>
      <dt>{word}</dt>
      <dd>{children}</dd>
    </div>
  );
}

const GROUPS: { title: string; facts: [string, string, "name" | "mono" | "bytes"][] }[] = [
  {
    title: "Who",
    facts: [
      ["caller", "caller", "name"],
      ["client", "client_name", "name"],
      ["client version", "client_version", "name"],
      ["protocol", "protocol_version", "name"],
      ["session", "session_id", "mono"],
    ],
  },
  {
    title: "What",
    facts: [
      ["plugin", "plugin", "name"],
      ["tool", "tool", "name"],
      ["outcome", "outcome", "name"],
      ["error code", "error_code", "name"],
      ["error hash", "error_hash", "mono"],
      ["request", "request_bytes", "bytes"],
      ["response", "response_bytes", "bytes"],
    ],
  },
  {
    title: "Where",
    facts: [
      ["instance", "instance", "name"],
      ["workspace", "workspace", "name"],
      ["call", "invocation_id", "mono"],
      ["request id", "request_id", "mono"],
      ["trace", "trace_id", "mono"],
      ["span", "span_id", "mono"],
    ],
  },
];

const FILTERS: Record<string, string> = { plugin: "plugin", tool: "tool", outcome: "outcome", caller: "caller", client_name: "client", client_version: "version", protocol_version: "protocol", error_code: "code", error_hash: "hash", instance: "instance", workspace: "workspace", session_id: "session", trace_id: "trace" };

function Facts({ row }: { row: Row }) {
  const session = useSession();
  const trace = traceLink(session.data?.traceUrl ?? null, String(row.trace_id ?? ""), text(row.span_id));
  const around = (key: string, value: string): string => {
    const at = Date.parse(String(row.started_at));
    const params = paramsOf([{ key, value, keep: true }]);
    params.set("from", new Date(at - 1800e3).toISOString());
    params.set("to", new Date(at + 1800e3).toISOString());
    return link("/", params);
  };
  return (
    <section aria-label="facts" className="fact-groups">
      {GROUPS.map(({ title, facts }) => {
        const known = facts.filter(([, column]) => row[column] !== undefined && row[column] !== null && row[column] !== "");
        if (known.length === 0) return null;
        return (
          <div key={title}>
            <h2>{title}</h2>
            <dl className="facts">
              {known.map(([word, column, form]) => (
                <Fact key={column} word={word}>
                  {form === "bytes" ? (
                    <span title={`${whole(Number(row[column]))} bytes`}>{bytes(Number(row[column]))}</span>
                  ) : (
                    <span className={form === "mono" ? "mono" : undefined}>
                      {FILTERS[column] ? (
                        <a href={around(FILTERS[column], String(row[column]))} onClick={follow} title={`calls of the same ${word}, half an hour before and after ${clock(Date.parse(String(row.started_at)))}`}>
                          {column === "outcome" ? <Outcome>{String(row[column])}</Outcome> : <Name>{String(row[column])}</Name>}
                        </a>
                      ) : (
                        <Name>{String(row[column])}</Name>
                      )}
                      {column === "trace_id" && trace && (
                        <>
                          {" "}
                          <a href={trace} target="_blank" rel="noopener noreferrer" data-trace>
                            open the trace
                          </a>
                        </>
                      )}
                    </span>
                  )}
                </Fact>
              ))}
            </dl>
          </div>
        );
      })}
    </section>
  );
}
