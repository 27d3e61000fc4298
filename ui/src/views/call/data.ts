/** One call: its sample, the ledger's entry of its decision, its neighbours. */
import { useQuery } from "@tanstack/react-query";
import { raw, records, run, sql, time, value, type Sql, type Value } from "../../api/sql";

export type Row = Record<string, Value>;

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-([0-9a-f])[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** When an id of version 7 was made, ms; none for others. */
function madeAt(id: string): number | null {
  return UUID.exec(id)?.[1] === "7" ? parseInt(id.slice(0, 8) + id.slice(9, 13), 16) : null;
}

/** A day around the id's time keeps other days' files closed; a call that is not there is looked for everywhere. */
export function callQuery(id: string, wide: boolean): Sql {
  const at = wide ? null : madeAt(id);
  const near = at === null ? raw("") : sql` AND started_at >= ${time(at - 86_400e3)} AND started_at < ${time(at + 86_400e3)}`;
  return sql`SELECT * FROM tool_invocations WHERE invocation_id = ${value(id)}${near} LIMIT 1`;
}

export const entryQuery = (id: string, startedAt: number): Sql =>
  sql`SELECT seq, occurred_at, recorded_at, actor, action, target, decision, policy_ids, obligations, reason, detail, instance, entry_hash
    FROM audit_log WHERE invocation_id = ${value(id)} AND occurred_at >= ${time(startedAt - 3600e3)} AND occurred_at < ${time(startedAt + 3600e3)} ORDER BY seq LIMIT 10`;

/** Which policies were in force at an instance: what it last said of them, in the month before. */
export const policiesQuery = (instance: string, at: number): Sql =>
  sql`SELECT seq, occurred_at, detail ->> 'policy_digest' AS digest FROM audit_log
    WHERE instance = ${value(instance)} AND action IN ('operator.gateway_started', 'operator.policy_reloaded')
      AND occurred_at >= ${time(at - 30 * 86_400e3)} AND occurred_at <= ${time(at)} ORDER BY occurred_at DESC LIMIT 1`;

/** The calls of a session around an instant, nearest first on either side. */
export function neighboursQuery(session: string, startedAt: number): Sql {
  const of = sql`SELECT invocation_id, started_at, plugin, tool, outcome, duration_ms FROM tool_invocations WHERE session_id = ${value(session)}`;
  return sql`SELECT * FROM (${of} AND started_at >= ${time(startedAt - 3600e3)} AND started_at < ${time(startedAt)} ORDER BY started_at DESC LIMIT 4)
    UNION ALL
    SELECT * FROM (${of} AND started_at >= ${time(startedAt)} AND started_at < ${time(startedAt + 3600e3)} ORDER BY started_at LIMIT 5)
    ORDER BY started_at`;
}

export function useCall(org: string, id: string) {
  return useQuery({
    queryKey: ["call", org, id],
    staleTime: Infinity,
    queryFn: async ({ signal }) => {
      if (!UUID.test(id)) return null;
      const near = records(await run(org, callQuery(id, false), signal))[0];
      if (near) return near;
      return records(await run(org, callQuery(id, true), signal))[0] ?? null;
    },
  });
}

export function useEntries(org: string, call: Row | null | undefined) {
  return useQuery({
    queryKey: ["call-entries", org, call?.invocation_id],
    enabled: Boolean(call),
    retry: false,
    queryFn: async ({ signal }) => records(await run(org, entryQuery(String(call!.invocation_id), Date.parse(String(call!.started_at))), signal)),
  });
}

export function usePolicies(org: string, call: Row | null | undefined) {
  return useQuery({
    queryKey: ["call-policies", org, call?.instance, call?.started_at],
    enabled: Boolean(call),
    retry: false,
    queryFn: async ({ signal }) => records(await run(org, policiesQuery(String(call!.instance), Date.parse(String(call!.started_at))), signal))[0] ?? null,
  });
}

export function useNeighbours(org: string, call: Row | null | undefined) {
  return useQuery({
    queryKey: ["call-neighbours", org, call?.invocation_id],
    enabled: Boolean(call?.session_id),
    retry: false,
    queryFn: async ({ signal }) => records(await run(org, neighboursQuery(String(call!.session_id), Date.parse(String(call!.started_at))), signal)),
  });
}
