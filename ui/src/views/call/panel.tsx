/** One call at the side of the list; j and k go on, Escape closes it. */
import { useEffect, useRef } from "react";
import { link } from "../../state/route";
import { useView } from "../../state/url";
import { follow } from "../../state/route";
import { CallBody } from "./body";

export default function CallPanel({ id }: { id: string }) {
  const [, set] = useView();
  const element = useRef<HTMLElement>(null);
  useEffect(() => {
    element.current?.scrollTo(0, 0);
  }, [id]);
  return (
    <aside className="side" ref={element} aria-label="one call" tabIndex={0} data-side>
      <header className="side-head">
        <h2>Call</h2>
        <span className="side-actions">
          <a href={link(`/calls/${encodeURIComponent(id)}`)} onClick={follow}>
            open as a page
          </a>
          <button type="button" className="quiet-button" onClick={() => void set({ call: null })} aria-keyshortcuts="Escape">
            close
          </button>
        </span>
      </header>
      <CallBody id={id} onCall={(other) => void set({ call: other })} />
    </aside>
  );
}
