/** Where to, by typing: a view, a time, a filter, a call by its id, an entry of the ledger by its number. */
import { Modal, TextInput } from "@mantine/core";
import { useMemo, useState, type KeyboardEvent } from "react";
import { spoken, parseWords } from "./lib/time";
import { ATTRIBUTES, written, type Condition } from "./state/attributes";
import { go, link } from "./state/route";
import { VIEWS } from "./state/views";

interface Place {
  word: string;
  /** What is typed for it, beside the word. */
  hint: string;
  act: () => void;
}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
const TIMES = ["now-15m", "now-1h", "now-6h", "now-24h", "now-7d"];

/** Tool activity with what the URL says already, where it says something of it, and these. */
function activity(params: Record<string, string>): string {
  const kept = location.pathname === "/" ? new URLSearchParams(location.search) : new URLSearchParams();
  for (const [key, value] of Object.entries(params)) kept.set(key, value);
  return link("/", kept);
}

/** `caller: bob`, `outcome != ok`: a condition on Tool activity. */
function condition(text: string): Condition | null {
  const parts = /^\s*([a-z][a-z_ ]*?)\s*(!=|≠|:|=)\s*(.+?)\s*$/i.exec(text);
  const name = parts?.[1]?.toLowerCase();
  const of = ATTRIBUTES.find(({ key, word, column }) => name === key || name === word || name === column);
  return of && parts?.[3] ? { key: of.key, value: parts[3], keep: !/!|≠/.test(parts[2]!) } : null;
}

function placesFor(text: string, refresh: () => void, help: () => void): Place[] {
  const typed = text.trim();
  const found: Place[] = [];
  if (UUID.test(typed)) found.push({ word: `call ${typed.toLowerCase()}`, hint: "its page", act: () => go(link(`/calls/${typed.toLowerCase()}`)) });
  if (/^[0-9a-f]{32}$/i.test(typed)) found.push({ word: `calls of trace ${typed.toLowerCase()}`, hint: "in sight", act: () => go(activity({ trace: typed.toLowerCase(), tab: "calls" })) });
  if (/^\d{1,15}$/.test(typed)) found.push({ word: `ledger entry ${typed}`, hint: "its text and proof", act: () => go(link("/ledger", { seq: typed })) });
  const of = condition(typed);
  if (of) found.push({ word: `calls with ${of.key} ${of.keep ? "=" : "≠"} ${of.value}`, hint: "in Tool activity", act: () => go(activity({ [of.key]: written(of) })) });
  const words = typed === "" ? null : parseWords(typed, Date.now());
  if (words) found.push({ word: spoken(words.from, words.to, Date.now()), hint: "the time of Tool activity", act: () => go(activity({ from: words.from, to: words.to })) });
  const always: Place[] = [
    ...VIEWS.map(({ word, path, key }): Place => ({ word, hint: `g ${key}`, act: () => go(link(path)) })),
    { word: "Failed calls", hint: "outcome != ok", act: () => go(activity({ outcome: "!ok", tab: "calls" })) },
    { word: "Denied calls", hint: "outcome = policy_denied", act: () => go(activity({ outcome: "policy_denied", tab: "calls" })) },
    { word: "Slowest calls", hint: "", act: () => go(activity({ tab: "calls", sort: "slowest" })) },
    ...TIMES.map((from): Place => ({ word: spoken(from, "now", Date.now()), hint: "the time of Tool activity", act: () => go(activity({ from, to: "now" })) })),
    { word: "Load again", hint: "r", act: refresh },
    { word: "Keys", hint: "?", act: help },
  ];
  const low = typed.toLowerCase();
  return [...found, ...always.filter(({ word, hint }) => `${word} ${hint}`.toLowerCase().includes(low))].slice(0, 12);
}

export default function Palette({ close, refresh, help }: { close: () => void; refresh: () => void; help: () => void }) {
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const places = useMemo(() => placesFor(text, refresh, help), [text, refresh, help]);
  const chosen = Math.min(at, places.length - 1);
  const take = (place: Place | undefined): void => {
    if (!place) return;
    close();
    place.act();
  };
  const keys = (event: KeyboardEvent): void => {
    if (event.key === "ArrowDown") setAt(Math.min(chosen + 1, places.length - 1));
    else if (event.key === "ArrowUp") setAt(Math.max(chosen - 1, 0));
    else if (event.key === "Enter") take(places[chosen]);
    else return;
    event.preventDefault();
  };
  return (
    <Modal opened onClose={close} title="Go to" transitionProps={{ duration: 0 }}>
      <TextInput
        value={text}
        onChange={(event) => {
          setText(event.currentTarget.value);
          setAt(0);
        }}
        onKeyDown={keys}
        placeholder="a view, last 6 h, caller: alice, a call's id"
        aria-label="where to"
        role="combobox"
        aria-expanded
        aria-controls="palette"
        aria-activedescendant={places[chosen] ? `palette-${chosen}` : undefined}
        size="xs"
        data-autofocus
      />
      <ul className="options" role="listbox" id="palette" aria-label="places" data-palette>
        {places.map((place, index) => (
          // The keyboard is the input's: see `aria-activedescendant`.
          <li key={place.word} id={`palette-${index}`} role="option" aria-selected={index === chosen} className={index === chosen ? "palette-place on" : "palette-place"} onMouseDown={(event) => event.preventDefault()} onClick={() => take(place)}>
            <bdi>{place.word}</bdi> <span className="muted">{place.hint}</span>
          </li>
        ))}
      </ul>
      {places.length === 0 && <p className="muted">Nothing is called so. Try a view, “last 6 h”, “caller: alice”, a call's id or an entry's number.</p>}
    </Modal>
  );
}
