/** The ledger: what it says of itself, whether it is sound, and its entries. */
import { keepPreviousData, useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { parseAsInteger, parseAsString, useQueryState, useQueryStates } from "nuqs";
import { useCallback, useMemo, useState } from "react";
import { json, Problem, send } from "../../api/http";
import { records, run, sql } from "../../api/sql";
import { Grid, type Column } from "../../components/grid";
import { Copy, Loaded, Panel } from "../../components/panel";
import { Name, Time } from "../../components/text";
import { whileAttended } from "../../lib/attended";
import { ago, whole } from "../../lib/format";
import { instant } from "../../lib/time";
import { useView } from "../../state/url";
import { parseCheckpoint } from "../../verify/ledger";
import { trust } from "../../verify/pin";
import { KeyTrust, useKey } from "../call/seal";
import { EntryPanel } from "./entry";
import { Verify } from "./verify";

const FILTERS = ["action", "action_prefix", "actor", "decision", "workspace", "instance", "request_id", "since", "until"] as const;
type Filter = (typeof FILTERS)[number];

const WORDS: Record<Filter, string> = { action: "action", action_prefix: "action begins with", actor: "actor", decision: "decision", workspace: "workspace", instance: "instance", request_id: "request", since: "since", until: "until" };
const HINTS: Partial<Record<Filter, string>> = { action: "tool.deny", action_prefix: "tool.", actor: "user:alice@acme", since: "now-1d", until: "now" };

export interface AuditEntry {
  seq: number;
  occurred_at: string;
  actor: string;
  action: string;
  target?: string;
  decision?: string;
  policy_ids?: string[];
  reason?: string;
  instance?: string;
}

export default function Ledger() {
  const [seq, setSeq] = useQueryState("seq", parseAsInteger.withOptions({ history: "push" }));
  return (
    <div className="page">
      <h1>Ledger</h1>
      <div className="columns">
        <CheckpointPanel />
        <KeyPanel />
        <KeepingPanel />
        <HolesPanel />
      </div>
      <Verify />
      <Entries selected={seq} onOpen={(entry) => void setSeq(entry)} />
      {seq !== null && <EntryPanel seq={seq} onClose={() => void setSeq(null)} />}
    </div>
  );
}

const base = (org: string): string => `/v1/orgs/${encodeURIComponent(org)}/audit`;

function CheckpointPanel() {
  const [{ org }] = useView();
  const head = useQuery({ queryKey: ["checkpoint", org], refetchInterval: whileAttended(10_000), queryFn: async ({ signal }) => parseCheckpoint(await (await send(`${base(org)}/checkpoint`, { signal })).text()) });
  const absent = head.error instanceof Problem && head.error.code === "not_in_ledger";
  const witnesses = head.data?.signatures.filter(({ name }) => name !== head.data.origin) ?? [];
  return (
    <Panel title="Newest checkpoint" query={[{ path: `${base(org)}/checkpoint` }]}>
      {absent ? (
        <div className="empty">The ledger has no checkpoint yet: the first is signed about a second after the first entry.</div>
      ) : (
        <Loaded of={head} height={96}>
          {() => (
            <>
              <p className="big-number" data-size={head.data!.size}>
                {whole(head.data!.size)} <small className="muted">entries</small>
              </p>
              <p className="muted">
                of <Name>{head.data!.origin}</Name>
              </p>
              <p>
                {witnesses.length === 0 ? (
                  <span className="muted">No witness has cosigned it.</span>
                ) : (
                  <>
                    cosigned by{" "}
                    {witnesses.map(({ name }) => (
                      <Name key={name}>{name}</Name>
                    ))}
                  </>
                )}
              </p>
              <Copy text={head.data!.note} word="copy the checkpoint" />
            </>
          )}
        </Loaded>
      )}
    </Panel>
  );
}

function KeyPanel() {
  const [{ org }] = useView();
  const key = useKey(org);
  const [, again] = useState(0);
  return (
    <Panel title="Key" query={[{ path: `${base(org)}/vkey` }]}>
      <Loaded of={key} height={96}>
        {() => (
          <>
            <KeyTrust org={org} known={trust(org, key.data!)} onPin={() => again((n) => n + 1)} />
            <Copy text={key.data!.trim()} word="copy the key" />
          </>
        )}
      </Loaded>
    </Panel>
  );
}

interface Keeping {
  rule: string;
  hold: number | null;
  first_kept: number;
  size: number;
}

const OWN = sql`SELECT seq, occurred_at, action, actor FROM audit_log WHERE action LIKE 'ledger.%' ORDER BY seq DESC LIMIT 5`;

function KeepingPanel() {
  const [{ org }] = useView();
  const [, setSeq] = useQueryState("seq", parseAsInteger.withOptions({ history: "push" }));
  const keeping = useQuery({ queryKey: ["keeping", org], queryFn: ({ signal }) => json<Keeping>(`${base(org)}/retention`, { signal }) });
  const own = useQuery({ queryKey: ["ledger-own", org], queryFn: async ({ signal }) => records(await run(org, OWN, signal)) });
  return (
    <Panel title="Kept and removed" query={[{ path: `${base(org)}/retention` }, { sql: OWN }]}>
      <Loaded of={keeping} height={96}>
        {() => (
          <>
            <p>
              Kept for <Name>{keeping.data!.rule}</Name>.{" "}
              {keeping.data!.first_kept === 0 ? "Nothing was ever removed." : `Entries before ${whole(keeping.data!.first_kept)} were removed; their hashes stay.`}
            </p>
            <p>{keeping.data!.hold === null || keeping.data!.hold === undefined ? <span className="muted">No hold is in force.</span> : <b>On hold since entry {whole(keeping.data!.hold)}: nothing is removed.</b>}</p>
          </>
        )}
      </Loaded>
      {own.data && own.data.length > 0 && (
        <ul>
          {own.data.map((entry) => (
            <li key={String(entry.seq)}>
              <button type="button" className="link" onClick={() => void setSeq(Number(entry.seq))}>
                {whole(Number(entry.seq))}
              </button>{" "}
              <Name>{String(entry.action)}</Name> <span className="muted">{ago(Date.parse(String(entry.occurred_at)))}</span>
            </li>
          ))}
        </ul>
      )}
    </Panel>
  );
}

const HOLES = sql`SELECT instance, count(DISTINCT emitter_seq) AS numbers, max(emitter_seq) - min(emitter_seq) + 1 - count(DISTINCT emitter_seq) AS missing, max(occurred_at) AS last
    FROM audit_log WHERE emitter_seq IS NOT NULL AND occurred_at >= now() - INTERVAL '1 day' GROUP BY instance ORDER BY missing DESC, instance LIMIT 50`;

function HolesPanel() {
  const [{ org }] = useView();
  const holes = useQuery({ queryKey: ["holes", org], queryFn: async ({ signal }) => records(await run(org, HOLES, signal)) });
  return (
    <Panel title="Event numbers, 24 h" query={[{ sql: HOLES }]}>
      <Loaded of={holes} height={96} empty={holes.data?.length === 0 ? "No gateway has sent an event in 24 hours. Each numbers its events; a hole in the numbers is an event that never reached the ledger." : undefined}>
        {() => (
          <table className="table">
            <thead>
              <tr>
                <th scope="col">instance</th>
                <th scope="col" className="right">events</th>
                <th scope="col" className="right">missing</th>
              </tr>
            </thead>
            <tbody>
              {holes.data!.map((row) => (
                <tr key={String(row.instance)}>
                  <th scope="row">
                    <Name>{row.instance as string | null}</Name>
                  </th>
                  <td className="right">{whole(Number(row.numbers))}</td>
                  <td className={Number(row.missing) > 0 ? "right bad" : "right muted"}>{Number(row.missing) > 0 ? whole(Number(row.missing)) : "none"}</td>
                </tr>
              ))}
            </tbody>
          </table>
        )}
      </Loaded>
    </Panel>
  );
}

const COLUMNS: Column<AuditEntry>[] = [
  { name: "entry", width: "56px", cell: (entry) => whole(entry.seq) },
  { name: "occurred", width: "88px", cell: (entry) => <Time at={entry.occurred_at} exact /> },
  { name: "actor", width: "minmax(56px, 1fr)", cell: (entry) => <Name>{entry.actor}</Name> },
  { name: "action", width: "minmax(56px, 1fr)", cell: (entry) => <Name>{entry.action}</Name> },
  { name: "target", width: "minmax(100px, 1.4fr)", wide: true, cell: (entry) => (entry.target ? <Name>{entry.target}</Name> : null) },
  { name: "policies", width: "minmax(100px, 1.4fr)", wide: true, cell: (entry) => (entry.policy_ids?.length ? <Name>{entry.policy_ids.join(", ")}</Name> : null) },
  { name: "instance", width: "minmax(56px, 0.5fr)", wide: true, cell: (entry) => (entry.instance ? <Name>{entry.instance}</Name> : null) },
];

const parsers = Object.fromEntries(FILTERS.map((name) => [name, parseAsString.withDefault("")])) as Record<Filter, ReturnType<typeof parseAsString.withDefault>>;

function Entries({ selected, onOpen }: { selected: number | null; onOpen: (seq: number) => void }) {
  const [{ org }] = useView();
  const [filters, setFilters] = useQueryStates(parsers, { history: "push" });
  const [typed, setTyped] = useState<Partial<Record<Filter, string>>>({});
  const params = useMemo(() => {
    const given = new URLSearchParams();
    for (const name of FILTERS) {
      const text = filters[name];
      if (!text) continue;
      const at = name === "since" || name === "until" ? instant(text, Date.now()) : null;
      given.set(name, at === null ? text : new Date(at).toISOString());
    }
    return given;
  }, [filters]);
  const path = `${base(org)}?${params}`;
  const pages = useInfiniteQuery({
    queryKey: ["audit", org, filters],
    initialPageParam: null as string | null,
    queryFn: ({ signal, pageParam }) => {
      const page = new URLSearchParams(params);
      page.set("limit", "200");
      if (pageParam) page.set("cursor", pageParam);
      return json<{ entries: AuditEntry[]; next_cursor: string | null }>(`${base(org)}?${page}`, { signal });
    },
    getNextPageParam: (page) => page.next_cursor ?? undefined,
    placeholderData: keepPreviousData,
  });
  const rows = useMemo(() => pages.data?.pages.flatMap((page) => page.entries) ?? [], [pages.data]);
  const { hasNextPage, isFetchingNextPage, fetchNextPage } = pages;
  const more = useCallback(() => {
    if (hasNextPage && !isFetchingNextPage) void fetchNextPage();
  }, [hasNextPage, isFetchingNextPage, fetchNextPage]);
  const take = (name: Filter, text: string): void => void setFilters({ [name]: text.trim() || null });
  return (
    <Panel title="Entries" query={[{ path }]}>
      <form className="form-row" onSubmit={(event) => event.preventDefault()} data-ledger-filters>
        {FILTERS.map((name) => (
          <label key={name}>
            {WORDS[name]}
            {name === "decision" ? (
              <select value={filters[name]} onChange={(event) => take(name, event.currentTarget.value)}>
                <option value="">any</option>
                <option>permit</option>
                <option>deny</option>
                <option>permit_with_obligations</option>
              </select>
            ) : (
              <input
                value={typed[name] ?? filters[name]}
                placeholder={HINTS[name] ?? ""}
                size={11}
                onChange={(event) => setTyped({ ...typed, [name]: event.currentTarget.value })}
                onBlur={(event) => {
                  take(name, event.currentTarget.value);
                  setTyped({ ...typed, [name]: undefined });
                }}
                onKeyDown={(event) => {
                  if (event.key === "Enter") take(name, event.currentTarget.value);
                }}
              />
            )}
          </label>
        ))}
        {params.size > 0 && (
          <button type="button" className="quiet-button" onClick={() => void setFilters(null)}>
            clear
          </button>
        )}
      </form>
      <Loaded of={pages} height={320} empty={pages.data && rows.length === 0 ? (params.size > 0 ? "No entry matches. Times are RFC 3339 or like now-1d; an action is written as tool.deny." : "The ledger is empty. Entries come from gateways and from the control plane itself.") : undefined}>
        {() => <Grid label="entries" rows={rows} columns={COLUMNS} id={(entry) => String(entry.seq)} selected={selected === null ? "" : String(selected)} onOpen={(entry) => onOpen(entry.seq)} onEnd={more} height={560} />}
      </Loaded>
    </Panel>
  );
}

