/** Stretches of time: what the URL says (`now-6h`, RFC 3339), what people type ("last 6 h", "yesterday 9 to 11"), steps that suit them. */

export interface Span {
  /** Milliseconds since the epoch; `to` is exclusive. */
  from: number;
  to: number;
}

const UNITS: Record<string, number> = { s: 1e3, m: 60e3, min: 60e3, h: 3600e3, d: 86_400e3, w: 7 * 86_400e3 };

/** The instant that a text of the URL names; none when it is not understood. */
export function instant(text: string, now: number): number | null {
  const relative = /^now(?:-(\d+(?:\.\d+)?)(s|m|min|h|d|w))?$/.exec(text.trim());
  if (relative) return now - Number(relative[1] ?? 0) * (UNITS[relative[2] ?? "s"] ?? 0);
  if (!/^\d{4}-\d\d-\d\d/.test(text)) return null;
  const at = Date.parse(text);
  return Number.isFinite(at) ? at : null;
}

/** The stretch between two texts of the URL; what is not understood is the last hour. */
export function span(from: string, to: string, now: number): Span {
  const end = instant(to, now) ?? now;
  const begin = instant(from, now) ?? end - 3600e3;
  return begin < end ? { from: begin, to: end } : { from: end - 3600e3, to: end };
}

/** Steps that a clock's face knows, in milliseconds. */
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400].map((s) => s * 1000);

/** The finest step that cuts a stretch into at most so many columns. */
export function stepOf({ from, to }: Span, columns: number): number {
  return STEPS.find((step) => (to - from) / step <= columns) ?? Math.ceil((to - from) / columns / 86_400e3) * 86_400e3;
}

export interface Words {
  from: string;
  to: string;
}

const WEEKDAYS = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];

/** What people type, as texts of the URL; none when it is not understood. */
export function parseWords(input: string, now: number): Words | null {
  const text = input.trim().toLowerCase().replace(/\s+/g, " ");
  const last = /^(?:the )?(?:last|past|l)? ?(\d+(?:\.\d+)?) ?(s|sec|seconds?|m|min|minutes?|h|hours?|d|days?|w|weeks?)$/.exec(text);
  if (last) {
    const unit = last[2]![0]!;
    return { from: `now-${last[1]}${unit}`, to: "now" };
  }
  if (/^now-/.test(text) && instant(text, now) !== null) return { from: text, to: "now" };
  const range = /^(\S+)(?: to | until | ?\.\. ?| – )(\S+)$/.exec(text);
  if (range && instant(range[1]!.toUpperCase().replace("NOW", "now"), now) !== null) {
    const [from, to] = [range[1]!, range[2]!].map((part) => part.toUpperCase().replace(/^NOW/, "now").replace(/(\d)([SMHDW])$/, (_, n: string, u: string) => n + u.toLowerCase()));
    if (instant(to!, now) !== null) return { from: from!, to: to! };
  }
  const named = /^(today|yesterday|\d{4}-\d\d-\d\d|(?:last )?[a-z]+day)(?: (?:from )?(\S+?)(?: ?(?:to|-|–|until) ?(\S+))?)?$/.exec(text);
  if (!named) return null;
  const midnight = dayNamed(named[1]!, now);
  if (midnight === null) return null;
  const next = new Date(midnight);
  next.setDate(next.getDate() + 1);
  const begin = named[2] ? timeOfDay(named[2], midnight) : midnight;
  const end = named[3] ? timeOfDay(named[3], midnight) : named[2] && begin !== null ? begin + 3600e3 : Math.min(next.getTime(), Math.max(now, midnight + 60e3));
  if (begin === null || end === null || begin >= end) return null;
  return { from: iso(begin), to: iso(end) };
}

function dayNamed(name: string, now: number): number | null {
  const midnight = new Date(now);
  midnight.setHours(0, 0, 0, 0);
  if (name === "today") return midnight.getTime();
  if (name === "yesterday") {
    midnight.setDate(midnight.getDate() - 1);
    return midnight.getTime();
  }
  const date = /^(\d{4})-(\d\d)-(\d\d)$/.exec(name);
  if (date) return new Date(Number(date[1]), Number(date[2]) - 1, Number(date[3])).getTime();
  const weekday = WEEKDAYS.indexOf(name.replace("last ", ""));
  if (weekday < 0) return null;
  const back = (midnight.getDay() - weekday + 7) % 7 || 7;
  midnight.setDate(midnight.getDate() - back);
  return midnight.getTime();
}

function timeOfDay(text: string, midnight: number): number | null {
  const time = /^(\d{1,2})(?::(\d\d))?(?::(\d\d))?(am|pm)?$/.exec(text);
  if (!time) return null;
  let hours = Number(time[1]);
  if (time[4] === "pm" && hours < 12) hours += 12;
  if (time[4] === "am" && hours === 12) hours = 0;
  if (hours > 24) return null;
  const at = new Date(midnight);
  at.setHours(hours, Number(time[2] ?? 0), Number(time[3] ?? 0));
  return at.getTime();
}

/** RFC 3339 in UTC, without needless zeros. */
export const iso = (ms: number): string => new Date(ms).toISOString().replace(/\.000Z$/, "Z");

/** A stretch as its button says it. */
export function spoken(from: string, to: string, now: number): string {
  const relative = /^now-(\d+(?:\.\d+)?)(s|m|min|h|d|w)$/.exec(from);
  if (relative && (to === "now" || to === "")) {
    const names: Record<string, string> = { s: "s", m: "min", min: "min", h: "h", d: "days", w: "weeks" };
    return `last ${relative[1]} ${names[relative[2]!]}`;
  }
  const stretch = span(from, to, now);
  const one = (ms: number, withDate: boolean): string => {
    const at = new Date(ms);
    const pad = (n: number): string => String(n).padStart(2, "0");
    const seconds = at.getSeconds() ? `:${pad(at.getSeconds())}` : "";
    const time = `${pad(at.getHours())}:${pad(at.getMinutes())}${seconds}`;
    return withDate ? `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${time}` : time;
  };
  const sameDay = new Date(stretch.from).toDateString() === new Date(stretch.to).toDateString();
  const today = new Date(now).toDateString() === new Date(stretch.from).toDateString();
  const end = to === "now" || to === "" ? "now" : one(stretch.to, !sameDay);
  return `${one(stretch.from, !(sameDay && today))} – ${end}`;
}
