/** Colours for canvases, from the style sheet: they follow the theme. */
import { useComputedColorScheme } from "@mantine/core";
import { useMemo } from "react";

export interface Colors {
  text: string;
  muted: string;
  line: string;
  surface: string;
  accent: string;
  outcome: Record<string, string>;
  /** The heat map's, from one call to the most. */
  heat: string[];
}

export function useColors(): Colors {
  const scheme = useComputedColorScheme("light");
  return useMemo(() => {
    void scheme;
    const style = getComputedStyle(document.documentElement);
    const get = (name: string): string => style.getPropertyValue(`--${name}`).trim();
    const outcomes = ["ok", "client_error", "server_error", "timeout", "policy_denied", "quota_exceeded"];
    const [low, middle, high] = ["heat-low", "heat-mid", "heat-high"].map((name) => channels(get(name)));
    const heat = Array.from({ length: 32 }, (_, at) => {
      const share = at / 31;
      return share < 0.5 ? mix(low!, middle!, share * 2) : mix(middle!, high!, share * 2 - 1);
    });
    return { text: get("text"), muted: get("muted"), line: get("line"), surface: get("surface"), accent: get("accent"), outcome: Object.fromEntries(outcomes.map((name) => [name, get(`outcome-${name}`)])), heat };
  }, [scheme]);
}

const channels = (hex: string): number[] => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) || 0);
const mix = (a: number[], b: number[], share: number): string => `rgb(${a.map((v, at) => Math.round(v + (b[at]! - v) * share)).join(" ")})`;
