/** Who am I: what the server says of the session; a server that knows no sessions or asks for no token lets everyone in. */
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { attended, guard } from "../lib/attended";
import { Problem, send } from "./http";

export interface Grant {
  org: string;
  roles: string[];
}

export interface Session {
  /** Whether everyone here may do everything. */
  open: boolean;
  /** Who this is, as the ledger names it. */
  actor: string;
  /** Whether that is a person, and not a service's token. */
  person: boolean;
  grants: Grant[];
  /** Whether there is a provider to log in with afresh. */
  provider: boolean;
  /** Where a call's trace is seen. */
  traceUrl: string | null;
  /** In how many milliseconds it ends unless it is used; none where there is no session. */
  left: number | null;
}

interface Said {
  actor: string;
  person: boolean;
  way: string;
  orgs: Grant[];
  login: boolean;
  trace_url?: string;
  expires?: string;
}

/** A session that has ended is noticed this much after its end, which the server says in whole seconds. */
const AFTER_END_MS = 2_000;

/** When to ask again: soon while somebody reads, which is use; else after the end, since to ask before it would put it off. */
function next(left: number | null | undefined): number | false {
  if (left === null || left === undefined) return false;
  return attended() ? Math.min(left / 2, 5 * 60_000) : left + AFTER_END_MS;
}

const OPEN: Session = { open: true, actor: "anonymous", person: false, grants: [], provider: false, traceUrl: null, left: null };

export function useSession() {
  return useQuery<Session>({
    queryKey: ["session"],
    staleTime: 60_000,
    refetchInterval: (query) => next(query.state.data?.left),
    retry: (count, error) => error instanceof Problem && error.status === 0 && count < 3,
    queryFn: async ({ signal }): Promise<Session> => {
      try {
        const answer = await send("/v1/session", { signal, cache: "no-store" });
        const said = (await answer.json()) as Said;
        // By the server's clock alone: this machine's may be wrong.
        const span = Date.parse(said.expires ?? "") - Date.parse(answer.headers.get("date") ?? "");
        const left = Number.isFinite(span) ? Math.max(span, 0) : null;
        guard(left);
        return { open: said.way === "open", actor: said.actor, person: said.person, grants: said.orgs, provider: said.login, traceUrl: said.trace_url ?? null, left };
      } catch (error) {
        // A control plane that knows no sessions is one that everyone may ask, or that is asked with a token.
        if (error instanceof Problem && error.status === 404) return OPEN;
        throw error;
      }
    },
  });
}

/** Whether there is a provider to log in with, as the refusal says. */
export const hasProvider = (error: unknown): boolean => error instanceof Problem && error.members.login === true;

/** Where a login with the provider begins; it comes back to `to`. */
export const providerLogin = (to: string, again = false): string => `/v1/session/login?${new URLSearchParams({ return_to: to, ...(again ? { prompt: "login" } : {}) })}`;

export function useLogin() {
  const client = useQueryClient();
  const forget = (): void => client.removeQueries({ predicate: ({ queryKey }) => queryKey[0] !== "session" });
  return {
    withToken: async (token: string): Promise<void> => {
      await send("/v1/session", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ token }) });
      forget();
      await client.invalidateQueries({ queryKey: ["session"] });
    },
    out: async (to?: string): Promise<void> => {
      await send("/v1/session", { method: "DELETE" });
      // The page is loaded anew: nothing that was seen in it, a payload least of all, stays in its memory.
      location.assign(to ? `/login?${new URLSearchParams({ return_to: to })}` : "/login");
    },
  };
}

/** The page of a trace, by the template that the control plane has; none where that leads to no page. */
export function traceLink(template: string | null, trace: string, span: string | null): string | null {
  if (!template || !/^[0-9a-f]{32}$/.test(trace)) return null;
  const text = template.replaceAll("{trace_id}", trace).replaceAll("{span_id}", /^[0-9a-f]{16}$/.test(span ?? "") ? span! : "");
  try {
    const url = new URL(text);
    return url.protocol === "https:" || url.protocol === "http:" ? url.href : null;
  } catch {
    return null;
  }
}
