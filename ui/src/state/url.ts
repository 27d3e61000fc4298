/**
 * The URL is the state: which org, which calls, which time, which panel, which box. Each change is a step that the back button undoes.
 * The parameters are described in docs/dashboard.md and do not change their meaning.
 */
import { createParser, parseAsBoolean, parseAsNativeArrayOf, parseAsString, parseAsStringLiteral, useQueryStates } from "nuqs";
import { useCallback, useMemo } from "react";
import { ATTRIBUTES, read, written, type Condition } from "./attributes";

export const PANELS = ["heat", "latency", "calls", "errors", "denials", "lag"] as const;
export type PanelName = (typeof PANELS)[number];
export const TABS = ["tools", "errors", "calls"] as const;
export type Tab = (typeof TABS)[number];

/** A box on the heat map: from and to in time, from and to in milliseconds of latency. */
export interface Box {
  from: number;
  to: number;
  low: number;
  high: number;
}

const parseAsBox = createParser<Box>({
  parse(text) {
    const [from, to, low, high] = text.split("~");
    const box = { from: Date.parse(from ?? ""), to: Date.parse(to ?? ""), low: Number(low), high: Number(high) };
    return Object.values(box).every(Number.isFinite) && box.from < box.to && box.low < box.high ? box : null;
  },
  serialize: ({ from, to, low, high }) => `${new Date(from).toISOString()}~${new Date(to).toISOString()}~${Number(low.toPrecision(4))}~${Number(high.toPrecision(4))}`,
  eq: (a, b) => a.from === b.from && a.to === b.to && a.low === b.low && a.high === b.high,
});

const list = parseAsNativeArrayOf(parseAsString);

const parsers = {
  org: parseAsString.withDefault("default"),
  from: parseAsString.withDefault(""),
  to: parseAsString.withDefault(""),
  live: parseAsBoolean.withDefault(false),
  panel: parseAsStringLiteral(PANELS).withDefault("heat"),
  tab: parseAsStringLiteral(TABS).withDefault("tools"),
  sort: parseAsString.withDefault(""),
  box: parseAsBox,
  call: parseAsString.withDefault(""),
};

const conditionParsers = Object.fromEntries(ATTRIBUTES.map(({ key }) => [key, list])) as Record<(typeof ATTRIBUTES)[number]["key"], typeof list>;

/** Everything but the conditions. */
export function useView() {
  return useQueryStates(parsers, { history: "push" });
}

/** Outcomes may also stand in one parameter with commas between, as alerts link; any other name may have commas of its own. */
const parts = (key: string, text: string): string[] => (key === "outcome" ? text.split(",").filter((part) => part !== "") : [text]);

export interface Conditions {
  all: Condition[];
  /** Adds a condition, in place of the contrary one. */
  add: (condition: Condition) => void;
  remove: (condition: Condition) => void;
  clear: () => void;
  /** As parameters of a link. */
  params: URLSearchParams;
}

export function useConditions(): Conditions {
  const [lists, setLists] = useQueryStates(conditionParsers, { history: "push" });
  const all = useMemo(() => ATTRIBUTES.flatMap(({ key }) => (lists[key] ?? []).flatMap((text) => parts(key, text)).map((text) => read(key, text))), [lists]);
  const set = useCallback((key: string, conditions: Condition[]) => void setLists({ [key]: conditions.length ? conditions.map(written) : null }), [setLists]);
  const of = useCallback((key: string) => all.filter((condition) => condition.key === key), [all]);
  const add = useCallback(
    (condition: Condition) => set(condition.key, [...of(condition.key).filter(({ value }) => value !== condition.value), condition]),
    [of, set],
  );
  const remove = useCallback((condition: Condition) => set(condition.key, of(condition.key).filter(({ value }) => value !== condition.value)), [of, set]);
  const clear = useCallback(() => void setLists(null), [setLists]);
  const params = useMemo(() => paramsOf(all), [all]);
  return { all, add, remove, clear, params };
}

export const paramsOf = (conditions: Condition[]): URLSearchParams => new URLSearchParams(conditions.map((condition) => [condition.key, written(condition)]));

/** The same conditions, whatever their order, are the same text. */
export const fingerprint = (conditions: Condition[]): string => conditions.map((c) => `${c.key}=${written(c)}`).join("&");
