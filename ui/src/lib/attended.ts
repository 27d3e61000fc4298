/**
 * Whether somebody is at the page. What a page asks by itself, to be up to date, would renew a session for as long as the page is open: so it asks for
 * nothing once nobody has touched it for a while, and the session ends as one does that nobody uses. Without sessions it goes on. Live is somebody's wish,
 * and goes on too.
 */
const ATTENDED_MS = 5 * 60_000;

let last = performance.now();
let guarded = false;

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

/** Whether there is a session that could end. */
export const guard = (hasSession: boolean): void => void (guarded = hasSession);

/** For how long nobody has touched the page, in ms. */
export const untouched = (): number => performance.now() - last;

const attended = (): boolean => !guarded || untouched() < ATTENDED_MS;

/** How often a query is asked again while somebody is there. */
export const whileAttended = (ms: number) => (): number | false => (attended() ? ms : false);
