/** The seal of a ledger's entry: what this browser has checked of it, with which key, and the command that needs no trust in this page. */
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { json, Problem, send } from "../../api/http";
import { Code } from "../../components/panel";
import { whole } from "../../lib/format";
import { useView } from "../../state/url";
import { canVerify, checkProof, NotSound, parseVkey, type Proof } from "../../verify/ledger";
import { pin, trust, type Trust } from "../../verify/pin";

export function useKey(org: string) {
  return useQuery({ queryKey: ["vkey", org], staleTime: 60_000, queryFn: async ({ signal }) => (await send(`/v1/orgs/${encodeURIComponent(org)}/audit/vkey`, { signal })).text() });
}

type Colour = "green" | "amber" | "red" | "grey";

export function Seal({ seq }: { seq: number }) {
  const [{ org }] = useView();
  const key = useKey(org);
  const [open, setOpen] = useState(false);
  const [, again] = useState(0);
  const known = key.data ? trust(org, key.data) : null;
  const proved = useQuery({
    queryKey: ["proof", org, seq, known?.vkey],
    enabled: known !== null && canVerify(),
    // A checkpoint follows an entry by about a second.
    retry: (count, error) => error instanceof Problem && error.code === "not_in_ledger" && count < 5,
    retryDelay: 1_000,
    queryFn: async ({ signal }) => {
      const proof = await json<Proof>(`/v1/orgs/${encodeURIComponent(org)}/audit/${seq}/proof`, { headers: { accept: "application/json" }, signal });
      try {
        return { sound: true as const, ...(await checkProof(proof, parseVkey(known!.vkey), org, seq)) };
      } catch (error) {
        if (error instanceof NotSound) return { sound: false as const, why: error.message };
        throw error;
      }
    },
  });
  const { colour, sentence } = seal(known, proved.data, canVerify(), proved.error ?? key.error);
  return (
    <div className={`seal ${colour}`} data-seal={colour}>
      <button type="button" className="seal-head" aria-expanded={open} onClick={() => setOpen(!open)}>
        <i aria-hidden="true" />
        {sentence}
      </button>
      {open && (
        <div className="seal-body">
          {proved.data?.sound && (
            <ul>
              {proved.data.checks.map((check) => (
                <li key={check}>{check}</li>
              ))}
            </ul>
          )}
          {proved.data && !proved.data.sound && <p>{proved.data.why}</p>}
          {known && <KeyTrust org={org} known={known} onPin={() => again((n) => n + 1)} />}
          <p className="muted">Checked in this browser, by this server's page: that finds a changed store, proxy or database, not a control plane that lies. Without trust in either:</p>
          <Code text={`mcpg audit proof --url ${location.origin} --org ${org} --seq ${seq} --vkey '${known?.vkey ?? "…"}'`} />
        </div>
      )}
    </div>
  );
}

function seal(known: Trust | null, proved: { sound: boolean; checkpoint?: { size: number } } | undefined, able: boolean, error: unknown): { colour: Colour; sentence: string } {
  if (!able) return { colour: "grey", sentence: "In the ledger. Not checked here: browsers check signatures only over https or on the same machine" };
  if (error instanceof Problem && error.code === "not_in_ledger") return { colour: "amber", sentence: "In the ledger, and not under a signed checkpoint yet" };
  if (error) return { colour: "grey", sentence: "In the ledger. It could not be checked: " + (error instanceof Error ? error.message : "unknown error") };
  if (!known || !proved) return { colour: "grey", sentence: "checking…" };
  if (known.state === "changed") return { colour: "red", sentence: "The server shows another key than the one this browser trusts" };
  if (known.link === "other") return { colour: "red", sentence: "The key in the link is not the key that the server shows" };
  if (!proved.sound) return { colour: "red", sentence: "Not proved: the ledger does not show this entry as it is" };
  const size = whole(proved.checkpoint?.size ?? 0);
  if (known.state === "pinned") return { colour: "green", sentence: `In the signed ledger, proved here against the checkpoint of ${size} entries` };
  return { colour: "amber", sentence: `Proved here against the checkpoint of ${size} entries, by a key that you have not confirmed` };
}

/** Which key, and whether it is trusted. */
export function KeyTrust({ org, known, onPin }: { org: string; known: Trust; onPin: () => void }) {
  return (
    <div className="key">
      <p>
        The key: <code className="mono breaks">{known.vkey}</code>
      </p>
      {known.link === "same" && <p>The link that you followed names the same key. It proves nothing by itself: whoever makes a link chooses what it says.</p>}
      {known.link === "other" && <p>The link that you followed names another key. Ask who gave you the link, and whoever keeps the ledger's key.</p>}
      {known.state === "seen" && (
        <p>
          This browser has it from the server. Compare it with the one that you were given by whoever keeps the ledger's key; then{" "}
          <button
            type="button"
            className="link"
            onClick={() => {
              pin(org, known.vkey);
              onPin();
            }}
          >
            trust this key
          </button>
        </p>
      )}
      {known.state === "pinned" && <p>You have told this browser to trust it.</p>}
      {known.state === "changed" && <p>It is the one that you told this browser to trust, and the server now shows another. A change of key is an entry ledger.key, signed by both.</p>}
    </div>
  );
}
