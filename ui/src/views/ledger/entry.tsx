/** One entry: its members as they were hashed, and its seal. */
import { useQuery } from "@tanstack/react-query";
import { useEffect } from "react";
import { send } from "../../api/http";
import { Loaded } from "../../components/panel";
import { Name } from "../../components/text";
import { whole } from "../../lib/format";
import { follow, link } from "../../state/route";
import { useView } from "../../state/url";
import { parseEntry } from "../../verify/ledger";
import { Seal } from "../call/seal";

export function EntryPanel({ seq, onClose }: { seq: number; onClose: () => void }) {
  const [{ org }] = useView();
  const entry = useQuery({
    queryKey: ["entry", org, seq],
    staleTime: Infinity,
    queryFn: async ({ signal }) => {
      const line = (await (await send(`/v1/orgs/${encodeURIComponent(org)}/audit/canonical?from=${seq}&limit=1`, { signal })).text()).split("\n")[0] ?? "";
      if (line === "") return null;
      const members = parseEntry(line);
      return members.seq === String(seq) ? members : null;
    },
  });
  const members = entry.data;
  useEffect(() => {
    const close = (event: KeyboardEvent): void => {
      if (event.key === "Escape" && !event.defaultPrevented) onClose();
    };
    addEventListener("keydown", close);
    return () => removeEventListener("keydown", close);
  }, [onClose]);
  return (
    <aside className="side" aria-label={`entry ${seq}`} tabIndex={0} data-side>
      <header className="side-head">
        <h2>Entry {whole(seq)}</h2>
        <span className="side-actions">
          <button type="button" className="quiet-button" onClick={onClose} aria-keyshortcuts="Escape">
            close
          </button>
        </span>
      </header>
      <div className="call-body">
        <Loaded of={entry} height={240} empty={entry.data === null ? `There is no entry ${whole(seq)}, or it was removed when its time was over.` : undefined}>
          {() => (
            <>
              <Seal seq={seq} />
              <dl className="facts" style={{ marginTop: 16 }}>
                {Object.entries(members!).map(([name, member]) => (
                  <div key={name}>
                    <dt>{name}</dt>
                    <dd className="mono breaks">
                      {name === "invocation_id" ? (
                        <a href={link(`/calls/${encodeURIComponent(String(member))}`)} onClick={follow}>
                          <Name>{String(member)}</Name>
                        </a>
                      ) : (
                        <bdi>{Array.isArray(member) ? member.join(", ") : member}</bdi>
                      )}
                    </dd>
                  </div>
                ))}
              </dl>
            </>
          )}
        </Loaded>
      </div>
    </aside>
  );
}
