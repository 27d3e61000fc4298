/** "Verify this ledger": all of it, here, in a worker, with the key that this browser trusts. */
import { Button } from "@mantine/core";
import { useEffect, useRef, useState } from "react";
import { Code, Panel } from "../../components/panel";
import { Name } from "../../components/text";
import { whole } from "../../lib/format";
import { useView } from "../../state/url";
import { canVerify } from "../../verify/ledger";
import { trust } from "../../verify/pin";
import type { Progress, Verdict } from "../../verify/verify";
import type { Told } from "../../verify/worker";
import { useKey } from "../call/seal";

export function Verify() {
  const [{ org }] = useView();
  const key = useKey(org);
  const [progress, setProgress] = useState<Progress | null>(null);
  const [verdict, setVerdict] = useState<Verdict | null>(null);
  const worker = useRef<Worker | null>(null);
  const stop = (): void => {
    worker.current?.terminate();
    worker.current = null;
    setProgress(null);
  };
  useEffect(() => stop, []);
  useEffect(() => {
    stop();
    setVerdict(null);
  }, [org]);
  const known = key.data ? trust(org, key.data) : null;

  const start = (): void => {
    if (!known) return;
    stop();
    setVerdict(null);
    setProgress({ step: "entries", done: 0, total: 1 });
    const made = new Worker(new URL("../../verify/worker.ts", import.meta.url), { type: "module" });
    worker.current = made;
    made.onmessage = ({ data }: MessageEvent<Told>) => {
      if ("progress" in data) return setProgress(data.progress);
      setVerdict(data.verdict);
      stop();
    };
    made.onerror = () => {
      setVerdict({ sound: false, unchecked: "the verifier did not start in this browser" });
      stop();
    };
    made.postMessage({ org, vkey: known.vkey });
  };

  const command = `mcpg audit verify --url ${location.origin} --org ${org} --vkey '${known?.vkey ?? "…"}'`;
  return (
    <Panel
      title="Verify this ledger"
      actions={
        progress ? (
          <Button size="compact-sm" variant="default" onClick={stop}>
            Stop
          </Button>
        ) : (
          <Button size="compact-sm" variant="default" onClick={start} disabled={!known || !canVerify()} id="verify">
            Verify all of it here
          </Button>
        )
      }
    >
      {!canVerify() && <p className="warn">This page came neither over https nor from this machine: here the browser checks no signatures. Use the command below.</p>}
      {progress && (
        <div role="status">
          <p>
            {progress.step}: {whole(progress.done)} of {whole(progress.total)}
          </p>
          <div className="progress">
            <i style={{ width: `${(100 * progress.done) / Math.max(1, progress.total)}%` }} />
          </div>
        </div>
      )}
      {verdict && <Outcome verdict={verdict} />}
      <p className="hint muted">Checked in this browser, by this server's page: that finds a changed store, proxy or database, not a control plane that lies. Files' own statistics are the command's alone to check. Without trust in this page:</p>
      <Code text={command} />
    </Panel>
  );
}

function Outcome({ verdict }: { verdict: Verdict }) {
  const colour = verdict.sound ? "green" : verdict.fault ? "red" : "grey";
  return (
    <div className={`seal ${colour}`} role="status" data-verdict={verdict.sound ? "sound" : verdict.fault ? "not-sound" : "unchecked"}>
      <p className="seal-head">
        <i aria-hidden="true" />
        {verdict.sound ? `Sound: ${whole(verdict.size ?? 0)} entries` : verdict.fault ? `Not sound: ${verdict.fault}` : `Not checked: ${verdict.unchecked}`}
      </p>
      <div className="seal-body">
        {verdict.sound && (
          <ul>
            <li>
              every entry's bytes, hash, number and predecessor{verdict.firstKept ? `, from ${whole(verdict.firstKept)} on; those before it were removed by an entry that says so` : ""}
            </li>
            <li>the root of the tree, and the key's signature of it</li>
            <li>{whole(verdict.checkpoints ?? 0)} kept checkpoints, each the root of the ledger's beginning</li>
            <li>{whole(verdict.tiles ?? 0)} tiles and bundles</li>
          </ul>
        )}
        {verdict.root && <p className="muted mono breaks">root {verdict.root}</p>}
        {verdict.holes?.map((hole) => (
          <p key={hole.instance}>
            <Name>{hole.instance}</Name>: {whole(hole.missing)} events never reached the ledger, the first is its number {whole(hole.first)}.
          </p>
        ))}
      </div>
    </div>
  );
}
