/** Small charts within text and tables. They say nothing that the numbers beside them do not, and are hidden from screen readers. */

export function Spark({ values, marks, width = 72, height = 20 }: { values: (number | null)[]; marks?: number[]; width?: number; height?: number }) {
  const top = Math.max(...values.map((v) => v ?? 0), 1e-12);
  const step = width / values.length;
  const bar = (v: number | null, at: number, className: string) => {
    if (!v) return null;
    const tall = Math.max(1.5, (v / top) * height);
    return <rect key={`${className}${at}`} className={className} x={(at * step).toFixed(2)} y={(height - tall).toFixed(2)} width={Math.max(1, step - 0.6).toFixed(2)} height={tall.toFixed(2)} />;
  };
  return (
    <svg className="spark" width={width} height={height} viewBox={`0 0 ${width} ${height}`} preserveAspectRatio="none" aria-hidden="true">
      {values.map((v, at) => bar(v, at, "spark-bar"))}
      {marks?.map((v, at) => bar(v, at, "spark-mark"))}
    </svg>
  );
}

/** A series in as many bars as fit. */
export function thinned(values: (number | null)[], bars: number, how: "sum" | "max"): (number | null)[] {
  if (values.length <= bars) return values;
  const width = Math.ceil(values.length / bars);
  const out: (number | null)[] = [];
  for (let at = 0; at < values.length; at += width) {
    const part = values.slice(at, at + width).filter((v) => v !== null);
    out.push(part.length === 0 ? null : how === "sum" ? part.reduce((a, b) => a + b, 0) : Math.max(...part));
  }
  return out;
}

export function Share({ of, className = "share" }: { of: number; className?: string }) {
  return (
    <span className={className} aria-hidden="true">
      <i style={{ width: `${Math.min(100, Math.max(0, of * 100))}%` }} />
    </span>
  );
}
