/** Numbers, times and changes as people read them: units, at most three significant digits, a sign where it matters. */

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** At most three significant digits, without an exponent. */
export function significant(value: number): string {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const digits = Math.max(0, Math.min(3, 2 - Math.floor(Math.log10(Math.abs(value)))));
  const text = value.toFixed(digits);
  return digits > 0 ? text.replace(/\.?0+$/, "") : text;
}

/** A count in full, with thousands separators. */
export const whole = (value: number): string => (Number.isFinite(value) ? grouped.format(value) : "–");

/** A count that may be large: 1,204 · 48.2 k · 1.3 M. */
export function count(value: number): string {
  if (!Number.isFinite(value)) return "–";
  if (Math.abs(value) < 10_000) return grouped.format(value);
  const [unit, suffix] = Math.abs(value) < 1e6 ? [1e3, " k"] : Math.abs(value) < 1e9 ? [1e6, " M"] : [1e9, " G"];
  return significant(value / unit) + suffix;
}

/** Calls a second, a minute or an hour: whichever is not below one. */
export function rate(perSecond: number): { value: string; unit: string } {
  if (!Number.isFinite(perSecond)) return { value: "–", unit: "" };
  if (perSecond >= 1 || perSecond === 0) return { value: significant(perSecond), unit: "/s" };
  if (perSecond * 60 >= 1) return { value: significant(perSecond * 60), unit: "/min" };
  return { value: significant(perSecond * 3600), unit: "/h" };
}

/** Milliseconds in the unit that suits them. */
export function duration(ms: number | null | undefined): string {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return "–";
  const size = Math.abs(ms);
  if (size === 0) return "0 ms";
  if (size < 0.001) return "<1 µs";
  if (size < 1) return `${significant(ms * 1000)} µs`;
  if (size < 1000) return `${significant(ms)} ms`;
  if (size < 120_000) return `${significant(ms / 1000)} s`;
  if (size < 7_200_000) return `${significant(ms / 60_000)} min`;
  if (size < 172_800_000) return `${significant(ms / 3_600_000)} h`;
  return `${significant(ms / 86_400_000)} d`;
}

/** A share of one as a percentage. */
export function percent(share: number): string {
  if (!Number.isFinite(share)) return "–";
  if (share > 0 && share < 0.0001) return "<0.01 %";
  return `${significant(share * 100)} %`;
}

/** A relative change, signed. */
export function change(now: number, before: number): string {
  if (!Number.isFinite(now) || !Number.isFinite(before)) return "";
  if (before === 0) return now === 0 ? "±0 %" : "new";
  const share = now / before - 1;
  if (Math.abs(share) < 0.005) return "±0 %";
  const text = Math.abs(share) >= 10 ? `${significant(now / before)} ×` : `${significant(Math.abs(share) * 100)} %`;
  return (share > 0 ? "+" : "−") + text;
}

export function bytes(value: number): string {
  if (!Number.isFinite(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${significant(value)} ${units[unit]}`;
}

const two = (n: number): string => String(n).padStart(2, "0");

/** The local time of day; with the date where it is not today's. */
export function clock(ms: number, withSeconds = true): string {
  const at = new Date(ms);
  const time = `${two(at.getHours())}:${two(at.getMinutes())}${withSeconds ? `:${two(at.getSeconds())}` : ""}`;
  return new Date().toDateString() === at.toDateString() ? time : `${day(ms)} ${time}`;
}

/** Local time with milliseconds. */
/** What stands after the seconds. */
export const millis = (ms: number): string => `.${String(Math.floor(ms) % 1000).padStart(3, "0")}`;

export function day(ms: number): string {
  const at = new Date(ms);
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
}

/** UTC, for the title of a local time. */
export const utc = (ms: number): string => new Date(ms).toISOString().replace("T", " ").replace("Z", " UTC");

/** How long ago, roughly. */
export function ago(ms: number, now = Date.now()): string {
  const seconds = Math.max(0, (now - ms) / 1000);
  return seconds < 1.5 ? "just now" : `${duration(Math.round(seconds) * 1000)} ago`;
}

/** The first and last characters of what is long and known by them. */
export const shortened = (hash: string, head = 8): string => (hash.length > head + 4 ? `${hash.slice(0, head)}…` : hash);
