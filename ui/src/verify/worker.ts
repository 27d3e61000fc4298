/** The verifier off the page's thread: `{org, vkey}` in, progress and at last the verdict out. */
import { verifyLedger, type Progress, type Verdict } from "./verify";

export type Told = { progress: Progress } | { verdict: Verdict };

self.onmessage = async ({ data }: MessageEvent<{ org: string; vkey: string }>) => {
  const base = `/v1/orgs/${encodeURIComponent(data.org)}/audit/`;
  let said = 0;
  const verdict = await verifyLedger(
    data.org,
    data.vkey,
    async (path) => {
      const response = await fetch(base + path, { credentials: "same-origin", cache: "no-store" });
      if (response.ok) return response;
      if (response.status === 404) return null;
      const problem = (await response.json().catch(() => null)) as { detail?: string } | null;
      throw new Error(`${path}: ${problem?.detail ?? `the server answered ${response.status}`}`);
    },
    (progress) => {
      // A few times a second is what an eye can follow.
      if (performance.now() - said < 100 && progress.done < progress.total) return;
      said = performance.now();
      self.postMessage({ progress } satisfies Told);
    },
  );
  self.postMessage({ verdict } satisfies Told);
};
