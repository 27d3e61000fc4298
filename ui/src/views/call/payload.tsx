/**
 * What went over the wire of a call, where it was captured and the person has the right: asked for with a reason, recorded before it is opened, shown as
 * text, held in this component alone and gone when it closes or the page is hidden. It passes no cache of ours, and nothing in it becomes a link or an image.
 */
import { Button, Textarea } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { json, Problem } from "../../api/http";
import { providerLogin, useLogin, useSession } from "../../api/session";
import { run, sql } from "../../api/sql";
import { whole } from "../../lib/format";
import { useColumns } from "../../state/columns";
import { follow, link } from "../../state/route";
import { useView } from "../../state/url";
import { value } from "../../api/sql";
import type { Row } from "./data";

interface Side {
  content_type: string;
  text?: string;
  base64?: string;
  truncated?: boolean;
  redactions?: string[];
}

interface Viewed {
  request?: Side;
  response?: Side;
  ledger_seq: number;
}

const ADVICE: Record<string, string> = {
  not_entitled: "This org does not capture payloads.",
  not_captured: "No payload of this call was captured, or it is not kept any more.",
  key_destroyed: "The key of that day was destroyed when its time was over: nobody can open it any more.",
  sealed_for_tenant: "It is sealed for the tenant's own key too, which this server does not have. Export it, and open it with that key.",
  person_required: "Only a person can view a payload: log in by your name, not by a service's token.",
  login_again: "It is not known that you logged in within the hour. Log in again, and ask once more.",
  too_many_views: "You have viewed as many payloads as one may: 30 a minute, 500 a day. Ask again later.",
  reason_required: "The reason has a character in it that is not text, or is shorter than 3 characters.",
  role_missing: "You lack the role `payload`.",
  key_service_unavailable: "The service that keeps the keys does not answer. Try again in a minute.",
  record_damaged: "What is stored is not what was sealed. It was not opened; the ledger says so.",
};

export function Payload({ id, row }: { id: string; row: Row }) {
  const [{ org }] = useView();
  const columns = useColumns(org);
  const captured = useQuery({
    queryKey: ["captured", org, id],
    enabled: Boolean(columns.data?.["tool_invocation_payloads"]),
    retry: false,
    queryFn: async ({ signal }) => {
      const answer = await run(org, sql`SELECT direction FROM tool_invocation_payloads WHERE invocation_id = ${value(id)} AND date >= CAST(${value(String(row.started_at).slice(0, 10))} AS DATE) - INTERVAL '1 day'`, signal);
      return answer.rows.length > 0;
    },
  });
  if (!captured.data) return null;
  return <View key={id} org={org} id={id} />;
}

function View({ org, id }: { org: string; id: string }) {
  const [reason, setReason] = useState("");
  const [viewed, setViewed] = useState<Viewed | null>(null);
  const [problem, setProblem] = useState<{ code: string; text: string } | null>(null);
  const [busy, setBusy] = useState(false);
  const session = useSession();
  const login = useLogin();

  useEffect(() => {
    const drop = (): void => {
      if (document.visibilityState === "hidden") setViewed(null);
    };
    document.addEventListener("visibilitychange", drop);
    return () => document.removeEventListener("visibilitychange", drop);
  }, []);

  const ask = async (): Promise<void> => {
    setBusy(true);
    setProblem(null);
    try {
      setViewed(
        await json<Viewed>(`/v1/orgs/${encodeURIComponent(org)}/invocations/${encodeURIComponent(id)}/payloads/view`, {
          method: "POST",
          cache: "no-store",
          headers: { "content-type": "application/json" },
          body: JSON.stringify({ reason }),
        }),
      );
    } catch (error) {
      setProblem(error instanceof Problem ? { code: error.code, text: ADVICE[error.code] ?? error.detail } : { code: "", text: "it could not be asked for" });
    } finally {
      setBusy(false);
    }
  };

  return (
    <section aria-label="payload" data-payload>
      <h2>Payload</h2>
      {viewed ? (
        <>
          <p className="muted">
            That you viewed it is entry{" "}
            <a href={link("/ledger", { seq: String(viewed.ledger_seq) })} onClick={follow}>
              {whole(viewed.ledger_seq)}
            </a>{" "}
            of the ledger. It is gone when you close this or leave the page.
          </p>
          <Half word="request" side={viewed.request} />
          <Half word="response" side={viewed.response} />
          <Button size="compact-sm" variant="default" onClick={() => setViewed(null)}>
            Close it
          </Button>
        </>
      ) : (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            void ask();
          }}
        >
          <Textarea label="Why do you need to see it?" description="3 to 500 characters. The reason and your name are recorded in the ledger before it is opened." value={reason} onChange={(event) => setReason(event.currentTarget.value)} maxLength={500} autosize minRows={2} size="xs" />
          <Button type="submit" size="compact-sm" variant="default" mt={8} loading={busy} disabled={reason.trim().length < 3}>
            View the payload
          </Button>
          {problem && (
            <p role="alert" className="bad">
              {problem.text}{" "}
              {problem.code === "login_again" &&
                (session.data?.provider ? (
                  <a href={providerLogin(location.pathname + location.search, true)}>Log in again</a>
                ) : (
                  <button type="button" className="link" onClick={() => void login.out(location.pathname + location.search)}>
                    Log out, and in again
                  </button>
                ))}
            </p>
          )}
        </form>
      )}
    </section>
  );
}

function Half({ word, side }: { word: string; side: Side | undefined }) {
  if (!side) return <p className="muted">The {word} was not captured.</p>;
  const download = (): void => {
    const bytes = side.text !== undefined ? new TextEncoder().encode(side.text) : Uint8Array.from(atob(side.base64 ?? ""), (char) => char.charCodeAt(0));
    const url = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
    const anchor = Object.assign(document.createElement("a"), { href: url, download: `payload-${word}.bin` });
    anchor.click();
    URL.revokeObjectURL(url);
  };
  return (
    <div className="payload">
      <h3>
        {word} <span className="muted">{side.content_type}</span>
      </h3>
      {side.truncated && <p className="muted">It was longer than is kept, and is cut.</p>}
      {side.redactions && side.redactions.length > 0 && <p className="muted">Taken out before it was sealed: {side.redactions.join(", ")}</p>}
      <pre tabIndex={0}>
        <bdi>{side.text !== undefined ? pretty(side.text) : `${whole(Math.floor(((side.base64 ?? "").length * 3) / 4))} bytes that are no text`}</bdi>
      </pre>
      <button type="button" className="quiet-button" onClick={download}>
        save as a file
      </button>
    </div>
  );
}

function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
