/**
 * Whether somebody is at the page. What a page asks by itself, to be up to date, would renew a session for as long as the page is open: so it asks for
 * nothing once nobody has touched it for a while, and the session ends as one does that nobody uses. Without sessions it goes on. Live is somebody's wish,
 * and goes on too.
 */
const MOST_MS = 5 * 60_000;

let last = performance.now();
/** For how long a page may be untouched and still be somebody's. */
let limit = Infinity;

/** Told when somebody is back at a page that nobody had touched. */
export const attention = new EventTarget();

for (const kind of ["pointerdown", "pointermove", "wheel", "keydown"]) {
  addEventListener(
    kind,
    () => {
      const wasAway = !attended();
      last = performance.now();
      if (wasAway) attention.dispatchEvent(new Event("back"));
    },
    { capture: true, passive: true },
  );
}

/** A session ends in so many milliseconds unless it is used; none where there is no session. */
export const guard = (left: number | null): void => void (limit = left === null ? Infinity : Math.min(left / 3, MOST_MS));

/** Whether somebody is there. */
export const attended = (): boolean => performance.now() - last < limit;

/** How often a query is asked again while somebody is there. */
export const whileAttended = (ms: number) => (): number | false => (attended() ? ms : false);
