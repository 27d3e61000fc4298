/** Lines, bars and the heat map over time, on uPlot's canvas; each with its table behind a button. */
import { useEffect, useMemo, useRef, useState } from "react";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { clock, count, duration, utc } from "../lib/format";
import type { Box } from "../state/url";
import { useColors, type Colors } from "./colors";

const FONT = "11px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
const pad = (n: number): string => String(n).padStart(2, "0");

/** Of a logarithmic scale only powers of ten, or what lies between them where there are few. */
function decades(_: uPlot, _axis: number, low: number, high: number): number[] {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const between = last - first <= 2 ? [1, 2, 5] : [1];
  const out: number[] = [];
  for (let power = first; power <= last; power += 1) for (const factor of between) out.push(factor * 10 ** power);
  return out.filter((v) => v >= low * 0.999 && v <= high * 1.001);
}

function axes(colors: Colors, format: (v: number) => string, log: boolean, size = 64): uPlot.Axis[] {
  const grid = { stroke: colors.line, width: 1 };
  const ticks = { stroke: colors.line, width: 1, size: 4 };
  return [
    { stroke: colors.muted, font: FONT, grid: { show: false }, ticks, gap: 4, size: 28, space: 72, values: (u, splits) => timeLabels(splits, (u.scales.x!.max ?? 0) - (u.scales.x!.min ?? 0)) },
    { stroke: colors.muted, font: FONT, grid, ticks: { show: false }, gap: 6, size, space: 24, ...(log ? { splits: decades, filter: (_u: uPlot, splits: number[]) => splits } : {}), values: (_, splits) => splits.map((v) => (v === null ? "" : format(v))) },
  ];
}

/** Times of day, with the date where it changes. */
function timeLabels(splits: number[], width: number): string[] {
  let last = "";
  return splits.map((seconds) => {
    const at = new Date(seconds * 1000);
    const date = `${pad(at.getMonth() + 1)}-${pad(at.getDate())}`;
    const time = `${pad(at.getHours())}:${pad(at.getMinutes())}${width < 600 ? `:${pad(at.getSeconds())}` : ""}`;
    const changed = last !== "" && last !== date;
    last = date;
    if (width > 6 * 86_400) return date;
    return changed ? date : time;
  });
}

/** The width that an element has, as it changes. */
function useWidth(): [React.RefObject<HTMLDivElement | null>, number] {
  const element = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(0);
  useEffect(() => {
    if (!element.current) return;
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry?.contentRect.width ?? 0)));
    observer.observe(element.current);
    return () => observer.disconnect();
  }, []);
  return [element, width];
}

export interface Line {
  label: string;
  values: (number | null)[];
  color: string;
  /** Bars that stand on those before them. */
  stacked?: boolean;
  dash?: number[];
}

interface Common {
  /** Milliseconds. */
  times: number[];
  step: number;
  from: number;
  to: number;
  height: number;
  label: string;
}

export function Lines(props: Common & { lines: Line[]; format: (v: number) => string; log?: boolean; onZoom?: (from: number, to: number) => void }) {
  const { times, lines, height, format, log, onZoom, from, to, step, label } = props;
  const [element, width] = useWidth();
  const colors = useColors();
  const [hover, setHover] = useState<number | null>(null);
  const zoom = useRef(onZoom);
  zoom.current = onZoom;
  const stacked = useMemo(() => stack(lines), [lines]);

  useEffect(() => {
    if (!element.current || width < 40) return;
    const bars = uPlot.paths.bars!({ size: [0.9, 40, 1], align: 1, gap: 0 });
    const plot = new uPlot(
      {
        width,
        height,
        legend: { show: false },
        padding: [8, 20, 0, 0],
        cursor: { y: false, points: { show: false }, drag: { x: true, y: false, setScale: false } },
        select: { show: Boolean(zoom.current), left: 0, top: 0, width: 0, height: 0 },
        scales: {
          x: { time: true, range: () => [from / 1000, to / 1000] },
          y: log ? { distr: 3, log: 10, range: (_u, low, high) => logRange(low, high) } : { range: (_u, _low, high) => [0, high > 0 ? high * 1.08 : 1] },
        },
        axes: axes(colors, format, Boolean(log)),
        series: [
          {},
          ...lines.map((line) =>
            line.stacked
              ? { stroke: line.color, fill: line.color, width: 0, paths: bars, points: { show: false } }
              : { stroke: line.color, width: 1.5, points: { size: 4, fill: line.color, stroke: line.color }, spanGaps: false, ...(line.dash ? { dash: line.dash } : {}) },
          ),
        ],
        hooks: {
          setCursor: [(u) => setHover(u.cursor.idx ?? null)],
          setSelect: [
            (u) => {
              if (u.select.width < 4) return;
              const [a, b] = [u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")];
              u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
              zoom.current?.(Math.floor((a * 1000) / step) * step, Math.ceil((b * 1000) / step) * step);
            },
          ],
        },
      },
      [times.map((t) => t / 1000), ...stacked] as uPlot.AlignedData,
      element.current,
    );
    return () => plot.destroy();
  }, [element, width, height, times, lines, stacked, colors, format, log, from, to, step]);

  const shown = hover !== null && times[hover] !== undefined ? hover : null;
  return (
    <div className="chart">
      <div ref={element} style={{ height }} role="img" aria-label={label} />
      <div className="legend" aria-hidden="true">
        {lines
          .filter((line) => line.values.some((v) => v))
          .map((line) => (
          <span key={line.label} className="legend-item">
            <i style={{ background: line.color }} />
            {line.label}
            <b>{shown === null ? "" : line.values[shown] === null || line.values[shown] === undefined ? "–" : format(line.values[shown]!)}</b>
          </span>
        ))}
        <span>{shown === null ? "" : clock(times[shown]!)}</span>
      </div>
    </div>
  );
}

/** Each stacked line upon those before it; drawn from the highest down, so that each shows its own part. */
function stack(lines: Line[]): (number | null)[][] {
  const out: (number | null)[][] = [];
  let above: number[] | null = null;
  for (let at = lines.length - 1; at >= 0; at -= 1) {
    const line = lines[at]!;
    if (!line.stacked) {
      out[at] = line.values;
      continue;
    }
    const sums: number[] = line.values.map((v, place) => (v ?? 0) + (above?.[place] ?? 0));
    above = sums;
    out[at] = sums;
  }
  return out;
}

function logRange(low: number | null, high: number | null): [number, number] {
  const [least, most] = [Math.max(low ?? 1, 1e-3), Math.max(high ?? 10, 1e-2)];
  return [10 ** Math.floor(Math.log10(least)), 10 ** Math.ceil(Math.log10(most * 1.05))];
}

export interface Cell {
  at: number;
  low: number;
  high: number;
  calls: number;
}

export interface Tick {
  at: number;
  label: string;
}

/** The range of latencies that cells cover, at whole doublings, wide enough to be drawn in. */
function rangeOf(cells: Cell[]): [number, number] {
  let [low, high] = [Infinity, 0];
  for (const cell of cells) {
    if (cell.low > 0) low = Math.min(low, cell.low);
    high = Math.max(high, cell.high);
  }
  if (!(low < high)) return [1, 1000];
  return [low / 1.2, Math.max(high * 1.2, low * 16)];
}

export function HeatMap(props: Common & { cells: Cell[]; ticks: Tick[]; box: Box | null; onBox: (box: Box | null) => void; drawing: boolean; onDrawn: () => void }) {
  const { times, step, from, to, height, cells, ticks, box, label } = props;
  const [element, width] = useWidth();
  const colors = useColors();
  const plotted = useRef<uPlot | null>(null);
  const [hover, setHover] = useState<{ left: number; top: number; cell: Cell | null; tick: Tick | null } | null>(null);
  const [area, setArea] = useState<{ left: number; top: number; width: number; height: number } | null>(null);
  const report = useRef(props.onBox);
  report.current = props.onBox;
  const [low, high] = useMemo(() => rangeOf(cells), [cells]);
  const most = useMemo(() => cells.reduce((max, cell) => Math.max(max, cell.calls), 1), [cells]);

  useEffect(() => {
    if (!element.current || width < 40) return;
    const ratio = devicePixelRatio || 1;
    const shade = (calls: number): string => colors.heat[Math.min(31, Math.round((Math.log(calls) / Math.log(Math.max(most, 8))) * 31))]!;
    const plot = new uPlot(
      {
        width,
        height,
        legend: { show: false },
        padding: [8, 20, 0, 0],
        cursor: { points: { show: false }, drag: { x: true, y: true, uni: 12, setScale: false } },
        scales: { x: { time: true, range: () => [from / 1000, to / 1000] }, y: { distr: 3, log: 10, range: () => [low, high] } },
        axes: axes(colors, duration, true),
        series: [{}, { paths: () => null, points: { show: false } }],
        hooks: {
          draw: [
            (u) => {
              const context = u.ctx;
              context.save();
              context.beginPath();
              context.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
              context.clip();
              for (const cell of cells) {
                const left = u.valToPos(cell.at / 1000, "x", true);
                const right = u.valToPos((cell.at + step) / 1000, "x", true);
                const top = u.valToPos(cell.high, "y", true);
                const bottom = u.valToPos(Math.max(cell.low, low), "y", true);
                const gap = right - left > 5 * ratio ? ratio : 0;
                context.fillStyle = shade(cell.calls);
                context.fillRect(Math.round(left), Math.round(top), Math.max(ratio, Math.round(right) - Math.round(left) - gap), Math.max(ratio, Math.round(bottom) - Math.round(top) - gap));
              }
              context.fillStyle = colors.muted;
              for (const tick of ticks) {
                const x = Math.round(u.valToPos(tick.at / 1000, "x", true));
                const y = u.bbox.top + u.bbox.height;
                context.beginPath();
                context.moveTo(x, y - 6 * ratio);
                context.lineTo(x + 4 * ratio, y);
                context.lineTo(x - 4 * ratio, y);
                context.fill();
              }
              context.restore();
              setArea({ left: u.bbox.left / ratio, top: u.bbox.top / ratio, width: u.bbox.width / ratio, height: u.bbox.height / ratio });
            },
          ],
          setCursor: [
            (u) => {
              const { left, top } = u.cursor;
              if (left === undefined || top === undefined || left < 0 || top < 0) return setHover(null);
              const [at, ms] = [u.posToVal(left, "x") * 1000, u.posToVal(top, "y")];
              const cell = cells.find((c) => c.at <= at && at < c.at + step && c.low < ms && ms <= c.high) ?? null;
              const near = ticks.find((t) => Math.abs(u.valToPos(t.at / 1000, "x") - left) < 5 && top > u.bbox.height / ratio - 14) ?? null;
              setHover({ left, top, cell, tick: near });
            },
          ],
          setSelect: [
            (u) => {
              const { left, top, width: wide, height: tall } = u.select;
              if (wide < 3 || tall < 3) return;
              const whole = tall > u.bbox.height / ratio - 4;
              const found = {
                from: Math.floor((u.posToVal(left, "x") * 1000) / step) * step,
                to: Math.ceil((u.posToVal(left + wide, "x") * 1000) / step) * step,
                low: whole ? 0 : u.posToVal(top + tall, "y"),
                high: whole ? 1e12 : u.posToVal(top, "y"),
              };
              u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
              report.current(found);
            },
          ],
        },
      },
      [times.map((t) => t / 1000), times.map(() => null)] as uPlot.AlignedData,
      element.current,
    );
    plotted.current = plot;
    return () => {
      plotted.current = null;
      plot.destroy();
    };
  }, [element, width, height, times, cells, ticks, colors, from, to, step, low, high, most]);

  const place = (b: Box) => {
    if (!area) return null;
    const x = (at: number): number => area.left + (Math.min(Math.max(at, from), to) - from) / (to - from) * area.width;
    const y = (ms: number): number => area.top + (1 - (Math.log(Math.min(Math.max(ms, low), high)) - Math.log(low)) / (Math.log(high) - Math.log(low))) * area.height;
    return { left: x(b.from), top: y(b.high), width: Math.max(2, x(b.to) - x(b.from)), height: Math.max(2, y(b.low) - y(b.high)) };
  };

  return (
    <div className="heat">
      <div ref={element} style={{ height }} role="img" aria-label={label} data-heat />
      {box && place(box) && <div className="box" style={place(box)!} data-box />}
      {props.drawing && <KeyboardBox from={from} to={to} step={step} low={low} high={high} place={place} initial={box} done={(b) => { props.onDrawn(); if (b) report.current(b); }} />}
      {hover && (hover.cell || hover.tick) && area && (
        <div className="tip" style={hover.left > area.width * 0.6 ? { right: area.width - hover.left + 20, top: Math.max(0, hover.top - 8) } : { left: hover.left + area.left + 12, top: Math.max(0, hover.top - 8) }} role="status">
          {hover.tick ? (
            <>
              <bdi>{hover.tick.label}</bdi>
              <span className="muted">{clock(hover.tick.at)}</span>
            </>
          ) : (
            <>
              <b>{count(hover.cell!.calls)} {hover.cell!.calls === 1 ? "call" : "calls"}</b>
              <span>{duration(hover.cell!.low)} – {duration(hover.cell!.high)}</span>
              <span className="muted" title={utc(hover.cell!.at)}>{clock(hover.cell!.at)}</span>
            </>
          )}
        </div>
      )}
    </div>
  );
}

/** Draws a box with the arrow keys: they move it, with shift they stretch it; Enter takes it, Escape leaves it. */
function KeyboardBox(props: { from: number; to: number; step: number; low: number; high: number; initial: Box | null; place: (box: Box) => React.CSSProperties | null; done: (box: Box | null) => void }) {
  const { from, to, low, high } = props;
  const jump = Math.max(props.step, Math.round((to - from) / 40 / props.step) * props.step);
  const factor = (high / low) ** (1 / 24);
  const [box, setBox] = useState<Box>(() => props.initial ?? { from: from + jump * 24, to: from + jump * 32, low: low * factor ** 14, high: low * factor ** 22 });
  const element = useRef<HTMLDivElement>(null);
  useEffect(() => element.current?.focus(), []);
  const key = (event: React.KeyboardEvent): void => {
    const [x, y] = [{ ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0, { ArrowDown: -1, ArrowUp: 1 }[event.key] ?? 0];
    if (event.key === "Enter") props.done(box);
    else if (event.key === "Escape") props.done(null);
    else if (!x && !y) return;
    else if (event.shiftKey) setBox({ ...box, to: Math.max(box.from + props.step, box.to + x * jump), high: Math.max(box.low * factor, box.high * factor ** y) });
    else setBox({ from: box.from + x * jump, to: box.to + x * jump, low: box.low * factor ** y, high: box.high * factor ** y });
    event.preventDefault();
    event.stopPropagation();
  };
  return (
    <div ref={element} className="box drawing" style={props.place(box) ?? {}} tabIndex={0} onKeyDown={key} role="application" aria-label="A box on the heat map. Arrows move it, shift and arrows stretch it, Enter takes it, Escape leaves it.">
      <span className="box-help">
        {clock(box.from)} – {clock(box.to)}, {duration(box.low)} – {duration(box.high)} · arrows move, ⇧ arrows stretch, ⏎ takes it
      </span>
    </div>
  );
}
