/** A panel: a heading, what it shows, its query behind a button; and what it says while it loads, when it fails, when there is nothing. */
import { Button, Modal, Tabs } from "@mantine/core";
import { useState, type ReactNode } from "react";
import { Problem } from "../api/http";
import type { Sql } from "../api/sql";
import { follow, link } from "../state/route";
import { useView } from "../state/url";

export interface Shown {
  sql?: Sql | string;
  /** A request of the API, as curl makes it. */
  path?: string;
  promql?: string;
}

export function Panel(props: { title: string; query?: Shown[]; actions?: ReactNode; children: ReactNode }) {
  return (
    <section className="panel" aria-label={props.title}>
      <header className="panel-head">
        <h2>{props.title}</h2>
        <div className="panel-actions">
          {props.actions}
          {props.query && props.query.length > 0 && <ShowQuery queries={props.query} />}
        </div>
      </header>
      {props.children}
    </section>
  );
}

const shell = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;

/** How to have the same without this page. */
export function ShowQuery({ queries }: { queries: Shown[] }) {
  const [open, setOpen] = useState(false);
  const [{ org }] = useView();
  const text = (s: Sql | string): string => (typeof s === "string" ? s : s.shown);
  const sqls = queries.flatMap((q) => (q.sql ? [text(q.sql)] : []));
  const base = `${location.origin}/v1/orgs/${org}`;
  const curls = queries.flatMap((q) =>
    q.sql
      ? [`curl -sS ${shell(`${base}/sql`)} -H 'content-type: application/json' \\\n  -H "authorization: Bearer $MCPG_TOKEN" \\\n  -d ${shell(JSON.stringify({ query: text(q.sql) }))}`]
      : q.path
        ? [`curl -sS -H "authorization: Bearer $MCPG_TOKEN" ${shell(location.origin + q.path)}`]
        : [],
  );
  const promqls = queries.flatMap((q) => (q.promql ? [q.promql] : []));
  const tabs = (
    [
      ["SQL", sqls],
      ["curl", curls],
      ["PromQL", promqls],
    ] as [string, string[]][]
  ).filter(([, texts]) => texts.length > 0);
  return (
    <>
      <button type="button" className="quiet-button" onClick={() => setOpen(true)}>
        show query
      </button>
      <Modal opened={open} onClose={() => setOpen(false)} title="The query behind this panel" size="xl" transitionProps={{ duration: 0 }}>
        <Tabs defaultValue={tabs[0]?.[0]} keepMounted={false}>
          <Tabs.List>
            {tabs.map(([name]) => (
              <Tabs.Tab key={name} value={name}>
                {name}
              </Tabs.Tab>
            ))}
          </Tabs.List>
          {tabs.map(([name, texts]) => (
            <Tabs.Panel key={name} value={name}>
              {texts.map((each) => (
                <Code key={each} text={each} run={name === "SQL"} />
              ))}
            </Tabs.Panel>
          ))}
        </Tabs>
      </Modal>
    </>
  );
}

export function Code({ text, run = false }: { text: string; run?: boolean }) {
  return (
    <div className="code">
      <pre tabIndex={0}>
        <code>{text}</code>
      </pre>
      <div className="code-actions">
        <Copy text={text} />
        {run && (
          <a href={link("/sql", { q: text })} onClick={follow}>
            open in SQL
          </a>
        )}
      </div>
    </div>
  );
}

export function Copy({ text, word = "copy" }: { text: string; word?: string }) {
  const [done, setDone] = useState(false);
  const copy = async (): Promise<void> => {
    await navigator.clipboard?.writeText(text).then(
      () => setDone(true),
      () => setDone(false),
    );
    setTimeout(() => setDone(false), 1500);
  };
  return (
    <button type="button" className="quiet-button" onClick={() => void copy()}>
      {done ? "copied" : word}
    </button>
  );
}

interface Asked {
  isPending: boolean;
  isError: boolean;
  error: unknown;
  isPlaceholderData?: boolean;
  refetch?: () => unknown;
}

/** What is asked for once it is there; before that a shape of it, and what went wrong in its place. */
export function Loaded({ of, height, empty, children }: { of: Asked | Asked[]; height?: number; empty?: ReactNode; children: () => ReactNode }) {
  const all = Array.isArray(of) ? of : [of];
  const failed = all.find((one) => one.isError);
  if (failed) return <Failure error={failed.error} retry={failed.refetch} />;
  if (all.some((one) => one.isPending)) return <div className="skeleton" style={{ height: height ?? 64 }} role="status" aria-label="loading" />;
  if (empty) return <div className="empty">{empty}</div>;
  return <div className={all.some((one) => one.isPlaceholderData) ? "stale" : undefined}>{children()}</div>;
}

/** What failed, and what to do. */
export function Failure({ error, retry }: { error: unknown; retry?: () => unknown }) {
  const problem = error instanceof Problem ? error : null;
  const denied = problem?.status === 403;
  const title = denied ? "You have no right to see this" : problem?.status === 401 ? "You are not logged in" : problem?.code === "org_not_found" ? "No such org" : "This could not be loaded";
  return (
    <div className="failure" role="alert">
      <strong>{title}</strong>
      <p>{problem?.detail ?? (error instanceof Error ? error.message : "an unknown error")}</p>
      <p className="muted">
        {problem && <code>{problem.code}</code>}
        {problem?.requestId && <> · request {problem.requestId}; the server's log has more under it</>}
      </p>
      {problem?.status === 401 && (
        <p>
          <a href={`/login?${new URLSearchParams({ return_to: location.pathname + location.search })}`}>Log in again</a>
        </p>
      )}
      {retry && !denied && (
        <Button size="compact-sm" variant="default" onClick={() => void retry()}>
          Try again
        </Button>
      )}
    </div>
  );
}
