/** Paths and the way between them: the browser's history, and nothing else. */
import { useSyncExternalStore, type MouseEvent } from "react";

const CHANGED = "mcpg:path";

function subscribe(changed: () => void): () => void {
  addEventListener("popstate", changed);
  addEventListener(CHANGED, changed);
  return () => {
    removeEventListener("popstate", changed);
    removeEventListener(CHANGED, changed);
  };
}

export const usePath = (): string => useSyncExternalStore(subscribe, () => location.pathname);

export function go(to: string, replace = false): void {
  if (replace) history.replaceState(null, "", to);
  else history.pushState(null, "", to);
  dispatchEvent(new Event(CHANGED));
  scrollTo(0, 0);
}

/** For links: follows them without loading the page again, unless another tab or window is asked for. */
export const follow = (event: MouseEvent<HTMLAnchorElement>): void => {
  if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(event.currentTarget.href);
};

/** A link within an org. */
export const link = (path: string, params: Record<string, string> | URLSearchParams = {}): string => {
  const given = new URLSearchParams(params);
  const org = new URLSearchParams(location.search).get("org");
  if (org && !given.has("org")) given.set("org", org);
  const text = given.toString();
  return text ? `${path}?${text}` : path;
};
