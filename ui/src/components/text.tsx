/** Names of others, times and outcomes as text. A name may hold anything: it is shown as it is, on its own, cut where there is no room. */
import { clock, millis, utc } from "../lib/format";

/** A name that somebody else chose. */
export function Name({ children, none = "none" }: { children: string | null | undefined; none?: string }) {
  if (children === null || children === undefined || children === "") return <span className="muted">{none}</span>;
  return (
    <bdi className="name" title={children}>
      {children}
    </bdi>
  );
}

export function ToolName({ plugin, tool }: { plugin: string; tool: string }) {
  return (
    <span className="tool-name">
      <span className="muted">
        <Name>{plugin}</Name>/
      </span>
      <Name>{tool}</Name>
    </span>
  );
}

/** A local time, with UTC on hover. */
export function Time({ at, exact = false }: { at: number | string; exact?: boolean }) {
  const ms = typeof at === "number" ? at : Date.parse(at);
  if (!Number.isFinite(ms)) return <span className="muted">–</span>;
  return (
    <time dateTime={new Date(ms).toISOString()} title={utc(ms)}>
      {clock(ms)}
      {exact && <i>{millis(ms)}</i>}
    </time>
  );
}

export function Outcome({ children }: { children: string }) {
  return (
    <span className="outcome" data-outcome={children}>
      <i aria-hidden="true" />
      <Name>{children}</Name>
    </span>
  );
}
