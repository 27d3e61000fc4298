/** The bar of conditions: each as a chip, a way to add one, the time, live. */
import { Button, Menu, Popover, TextInput } from "@mantine/core";
import { useState, type KeyboardEvent } from "react";
import { Name } from "../../components/text";
import { parseWords, spoken } from "../../lib/time";
import { attribute, type Attribute, type Condition } from "../../state/attributes";
import { useConditions, useView } from "../../state/url";
import { useTime } from "../../state/window";
import type { Value } from "../../api/activity";

export function FilterBar({ attributes, facets, onFacets }: { attributes: Attribute[]; facets: Record<string, Value[]> | undefined; onFacets: () => void }) {
  const { all, remove, clear } = useConditions();
  return (
    <div className="bar">
      <div className="chips">
        <button type="button" className="quiet-button facets-button" onClick={onFacets}>
          facets
        </button>
        {all.map((condition) => (
          <Chip key={`${condition.key} ${condition.keep} ${condition.value}`} condition={condition} onRemove={() => remove(condition)} />
        ))}
        <AddFilter attributes={attributes} facets={facets} />
        {all.length > 1 && (
          <button type="button" className="quiet-button" onClick={clear}>
            clear all
          </button>
        )}
      </div>
      <TimeControl />
    </div>
  );
}

function Chip({ condition, onRemove }: { condition: Condition; onRemove: () => void }) {
  const word = attribute(condition.key)?.word ?? condition.key;
  return (
    <span className={condition.keep ? "chip" : "chip not"}>
      <span className="muted">
        {word} {condition.keep ? "=" : "≠"}
      </span>
      <Name>{condition.value}</Name>
      <button type="button" onClick={onRemove} aria-label={`remove the filter ${word} ${condition.keep ? "is" : "is not"} ${condition.value || "none"}`}>
        ×
      </button>
    </span>
  );
}

/** `caller: alice`, `outcome != ok`: an attribute, then a value, by typing or by choosing. */
function AddFilter({ attributes, facets }: { attributes: Attribute[]; facets: Record<string, Value[]> | undefined }) {
  const [open, setOpen] = useState(false);
  const [text, setText] = useState("");
  const { add } = useConditions();
  const typed = parseFilter(text, attributes);
  const options: Condition[] = [];
  if (typed.of) {
    const known = (facets?.[typed.of.key] ?? []).filter(({ value }) => (value ?? "none").toLowerCase().includes(typed.value.toLowerCase()));
    options.push(...known.slice(0, 12).map(({ value }) => ({ key: typed.of!.key, value: value ?? "", keep: typed.keep })));
    if (typed.value && !known.some(({ value }) => value === typed.value)) options.push({ key: typed.of.key, value: typed.value, keep: typed.keep });
  } else if (text.trim() !== "") {
    for (const of of attributes) {
      for (const { value } of facets?.[of.key] ?? []) {
        if (value?.toLowerCase().includes(text.trim().toLowerCase()) && options.length < 12) options.push({ key: of.key, value, keep: true });
      }
    }
  }
  const named = typed.of ? [] : attributes.filter(({ word, key }) => word.startsWith(text.toLowerCase().trim()) || key.startsWith(text.toLowerCase().trim()));
  const take = (condition: Condition): void => {
    add(condition);
    setText("");
    setOpen(false);
  };
  const keys = (event: KeyboardEvent): void => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    if (typed.of && options[0]) take(typed.value ? (options.find((o) => o.value === typed.value) ?? options[0]) : options[0]);
    else if (options[0]) take(options[0]);
    else if (named[0]) setText(`${named[0].word}: `);
  };
  return (
    <Popover opened={open} onChange={setOpen} position="bottom-start" width={320} trapFocus returnFocus transitionProps={{ duration: 0 }} shadow="none">
      <Popover.Target>
        <button type="button" className="quiet-button" data-add-filter onClick={() => setOpen(!open)} aria-keyshortcuts="/">
          + filter
        </button>
      </Popover.Target>
      <Popover.Dropdown p={8}>
        <TextInput value={text} onChange={(event) => setText(event.currentTarget.value)} onKeyDown={keys} placeholder="caller: alice, outcome != ok" aria-label="filter" size="xs" data-autofocus />
        <ul className="options">
          {named.map((of) => (
            <li key={of.key}>
              <button type="button" onClick={() => setText(`${of.word}: `)}>
                {of.word} <span className="muted">…</span>
              </button>
            </li>
          ))}
          {options.map((option) => (
            <li key={`${option.key} ${option.value}`}>
              <button type="button" onClick={() => take(option)}>
                <span className="muted">
                  {attribute(option.key)?.word} {option.keep ? "=" : "≠"}
                </span>{" "}
                <Name>{option.value}</Name>
              </button>
            </li>
          ))}
          {named.length + options.length === 0 && <li className="muted">No such attribute or value. Try `caller: …` or `tool != …`.</li>}
        </ul>
      </Popover.Dropdown>
    </Popover>
  );
}

function parseFilter(text: string, attributes: Attribute[]): { of: Attribute | undefined; keep: boolean; value: string } {
  const parts = /^\s*([a-z][a-z ]*?)\s*(!=|≠|is not|:|=)\s*(.*)$/i.exec(text);
  const name = parts?.[1]?.toLowerCase();
  const of = attributes.find(({ key, word, column }) => name === key || name === word || name === column);
  return { of, keep: !/!=|≠|not/.test(parts?.[2] ?? ""), value: parts?.[3]?.trim() ?? "" };
}

const PRESETS = ["now-5m", "now-15m", "now-1h", "now-6h", "now-24h", "now-7d"];

export function TimeControl({ withLive = true }: { withLive?: boolean }) {
  const [{ live }, set] = useView();
  const time = useTime();
  const [open, setOpen] = useState(false);
  const [text, setText] = useState("");
  const [wrong, setWrong] = useState(false);
  const now = Date.now();
  const choose = (from: string, to: string): void => {
    void set({ from, to: to === "now" ? null : to, box: null, ...(to === "now" ? {} : { live: null }) });
    setOpen(false);
    setText("");
    setWrong(false);
  };
  const typed = (): void => {
    const words = parseWords(text, Date.now());
    if (words) choose(words.from, words.to);
    else setWrong(true);
  };
  const zoom = (factor: number): void => {
    if (!time) return;
    const width = (time.to - time.from) * factor;
    const middle = (time.from + time.to) / 2;
    const to = Math.min(middle + width / 2, Date.now());
    choose(new Date(to - width).toISOString(), new Date(to).toISOString());
  };
  return (
    <div className="time-control">
      <Menu opened={open} onChange={setOpen} position="bottom-end" width={260} transitionProps={{ duration: 0 }} shadow="none" trapFocus>
        <Menu.Target>
          <Button size="compact-sm" variant="default">
            {time ? spoken(time.words.from, time.words.to, now) : "…"} <span aria-hidden="true">▾</span>
          </Button>
        </Menu.Target>
        <Menu.Dropdown>
          <div className="menu-text">
            <TextInput
              size="xs"
              value={text}
              onChange={(event) => {
                setText(event.currentTarget.value);
                setWrong(false);
              }}
              onKeyDown={(event) => {
                if (event.key === "Enter") typed();
                event.stopPropagation();
              }}
              placeholder="yesterday 9 to 11"
              aria-label="time, in words"
              error={wrong ? "Try “last 6 h”, “yesterday 9 to 11”, “2026-11-20 14:00 to 15:30”." : undefined}
            />
          </div>
          {PRESETS.map((from) => (
            <Menu.Item key={from} onClick={() => choose(from, "now")}>
              {spoken(from, "now", now)}
            </Menu.Item>
          ))}
          <Menu.Item onClick={() => zoom(2)}>twice as long</Menu.Item>
        </Menu.Dropdown>
      </Menu>
      {withLive && (
        <button type="button" id="live" className={live ? "live on" : "live"} aria-pressed={live} aria-keyshortcuts="l" onClick={() => void set({ live: live ? null : true, ...(live ? {} : { to: null }) })}>
          <i aria-hidden="true" />
          {live ? "live" : "paused"}
        </button>
      )}
    </div>
  );
}
