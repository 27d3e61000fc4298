/** The stretch of time that all panels show, fixed at one instant for all of them; live, the instant moves on. */
import { useQuery } from "@tanstack/react-query";
import { createContext, useContext, useEffect, useMemo, useState, type ReactNode } from "react";
import { useSession } from "../api/session";
import { run, sql, time } from "../api/sql";
import { span, type Span } from "../lib/time";
import { useView } from "./url";

/** How often a live page looks again. */
const LIVE_MS = 5_000;

export interface Window extends Span {
  /** As the URL has it, or as it was chosen for the org. */
  words: { from: string; to: string };
  /** Takes now anew. */
  refresh: () => void;
}

const Context = createContext<Window | null>(null);

/** Nothing is said of time: the last hour, or less where the org is younger, so that its first minutes fill the page. */
const YOUNG: [number, string][] = [
  [4 * 60e3, "now-5m"],
  [13 * 60e3, "now-15m"],
];

export function WindowProvider({ children }: { children: ReactNode }) {
  const [{ org, from, to, live }] = useView();
  const [now, setNow] = useState(() => Date.now());
  const session = useSession();
  const age = useQuery({
    queryKey: ["age", org],
    // Who may ask is known first.
    enabled: from === "" && session.isSuccess,
    staleTime: Infinity,
    queryFn: async ({ signal }) => {
      const answer = await run(org, sql`SELECT min(started_at) AS oldest FROM tool_invocations WHERE started_at >= ${time(Date.now() - 3600e3)}`, signal);
      const oldest = answer.rows[0]?.[0];
      return typeof oldest === "string" ? Date.now() - Date.parse(oldest) : 3600e3;
    },
  });
  const young = YOUNG.find(([most]) => (age.data ?? Infinity) < most)?.[1] ?? "now-1h";
  const words = useMemo(() => ({ from: from || young, to: to || "now" }), [from, to, young]);

  useEffect(() => setNow(Date.now()), [from, to, org, live]);
  useEffect(() => {
    if (!live) return;
    const timer = setInterval(() => {
      if (document.visibilityState === "visible") setNow(Date.now());
    }, LIVE_MS);
    return () => clearInterval(timer);
  }, [live]);

  const pending = from === "" && age.isPending;
  const window = useMemo(() => {
    const stretch = span(words.from, words.to, Math.floor(now / 1000) * 1000);
    return { ...stretch, words, refresh: () => setNow(Date.now()) };
  }, [words, now]);
  return <Context value={pending ? null : window}>{children}</Context>;
}

/** The stretch; none until it is known. */
export const useTime = (): Window | null => useContext(Context);
