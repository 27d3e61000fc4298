/** The keyboard: one map for all views. Keys do nothing while somebody types. */
import { Modal } from "@mantine/core";
import { lazy, Suspense, useCallback, useEffect, useRef, useState } from "react";
import { go, link } from "./state/route";
import { useView } from "./state/url";
import { VIEWS } from "./state/views";

const Palette = lazy(() => import("./palette"));

const HELP: [string, string][] = [
  ["⌘ K", "go to a view, a time, a filter, a call by its id; ctrl K elsewhere than on a Mac"],
  ["/", "add a filter"],
  ...VIEWS.map(({ key, word }): [string, string] => [`g ${key}`, word]),
  ["j  k", "next and previous row, or call; in a list the arrows too"],
  ["enter", "open the row"],
  ["esc", "close what is open, drop the box"],
  ["b", "draw a box on the heat map; arrows move it, shift and arrows stretch it"],
  ["l", "live, or pause"],
  ["1  2  3", "tools, errors, calls"],
  ["r", "load again"],
  ["?", "this list"],
];

const typing = (target: EventTarget | null): boolean => target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));

/** The next row of the list in sight. */
function step(by: 1 | -1): HTMLElement | null {
  const rows = [...document.querySelectorAll<HTMLElement>("[data-rows] [data-row]")];
  const here = document.activeElement?.closest<HTMLElement>("[data-row]") ?? document.querySelector<HTMLElement>('[data-row][aria-selected="true"]');
  const at = here ? rows.indexOf(here) : -1;
  const next = rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : at + by];
  next?.focus({ preventScroll: true });
  next?.scrollIntoView({ block: "nearest" });
  return next ?? null;
}

export function Keys({ refresh }: { refresh: () => void }) {
  const [{ call, box, live }, set] = useView();
  const [help, setHelp] = useState(false);
  const [palette, setPalette] = useState(false);
  const closePalette = useCallback(() => setPalette(false), []);
  const openHelp = useCallback(() => setHelp(true), []);
  // When `g` was pressed, not when the page came to it: a busy page is no slow hand.
  const going = useRef(-Infinity);
  useEffect(() => {
    const press = (event: KeyboardEvent): void => {
      if ((event.metaKey || event.ctrlKey) && !event.altKey && !event.shiftKey && event.key.toLowerCase() === "k" && !event.defaultPrevented) {
        event.preventDefault();
        if (!document.querySelector("[role=dialog]")) setPalette(true);
        return;
      }
      if (event.defaultPrevented || event.metaKey || event.ctrlKey || event.altKey || typing(event.target)) return;
      if (document.querySelector("[role=dialog]") && event.key !== "?") return;
      const act = actions[event.key];
      if (event.timeStamp - going.current < 1_000) {
        going.current = -Infinity;
        const view = VIEWS.find(({ key }) => key === event.key);
        if (view) {
          event.preventDefault();
          go(link(view.path));
        }
        return;
      }
      if (!act) return;
      if (act(event) !== false) event.preventDefault();
    };
    const actions: Record<string, (event: KeyboardEvent) => boolean | void> = {
      "/": () => document.querySelector<HTMLElement>("[data-add-filter]")?.click(),
      "?": () => setHelp((open) => !open),
      g: (event) => void (going.current = event.timeStamp),
      l: () => void set({ live: live ? null : true, ...(live ? {} : { to: null }) }),
      b: () => void dispatchEvent(new Event("mcpg:box")),
      r: () => refresh(),
      "1": () => void set({ tab: null, sort: null }),
      "2": () => void set({ tab: "errors", sort: null }),
      "3": () => void set({ tab: "calls", sort: null }),
      j: () => move(1),
      k: () => move(-1),
      ArrowDown: () => (inRows() ? move(1) : false),
      ArrowUp: () => (inRows() ? move(-1) : false),
      Enter: () => {
        const row = document.activeElement;
        if (!row?.matches("[data-row]")) return false;
        if (row.getAttribute("role") === "row") return false;
        row.querySelector<HTMLElement>("button, a")?.click();
      },
      Escape: () => {
        if (call) void set({ call: null });
        else if (box) void set({ box: null });
        else return false;
      },
    };
    const inRows = (): boolean => Boolean(document.activeElement?.closest("[data-rows]"));
    const move = (by: 1 | -1): void => {
      const row = step(by);
      if (row?.getAttribute("role") !== "row") return;
      if (call) void set({ call: row.dataset.row ?? null }, { history: "replace" });
      else if (document.querySelector("[data-side]")) row.click();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, [call, box, live, set, refresh]);
  return (
    <>
      <button type="button" className="quiet-button palette-button" onClick={() => setPalette(true)} aria-keyshortcuts="Meta+K Control+K" title="go to">
        <kbd>⌘K</kbd>
        <span className="sr-only">go to</span>
      </button>
      {palette && (
        <Suspense fallback={null}>
          <Palette close={closePalette} refresh={refresh} help={openHelp} />
        </Suspense>
      )}
      <button type="button" className="quiet-button" onClick={() => setHelp(true)} aria-keyshortcuts="?" title="keys">
        <kbd>?</kbd>
        <span className="sr-only">keys</span>
      </button>
      <Modal opened={help} onClose={() => setHelp(false)} title="Keys" transitionProps={{ duration: 0 }}>
        <dl className="keys">
          {HELP.map(([keys, what]) => (
            <div key={keys}>
              <dt>
                {keys.split("  ").map((key) => (
                  <kbd key={key}>{key}</kbd>
                ))}
              </dt>
              <dd>{what}</dd>
            </div>
          ))}
        </dl>
      </Modal>
    </>
  );
}
