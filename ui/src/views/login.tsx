/** Coming in: with the provider, by a link, or with a token that is pasted and kept nowhere. */
import { Button, PasswordInput } from "@mantine/core";
import { useState } from "react";
import { Problem } from "../api/http";
import { hasProvider, providerLogin, useLogin, useSession } from "../api/session";
import { go } from "../state/route";

/** Where to go afterwards: a path of this page and nothing else, without what became of a login before. */
function wayBack(): string {
  const params = new URLSearchParams(location.search);
  params.delete("login_error");
  const here = location.pathname + (params.size > 0 ? `?${params}` : "");
  const to = params.get("return_to") ?? (location.pathname === "/login" ? "/" : here);
  // Browsers drop tabs and line ends of a URL: what is a path without them may be another host with them.
  return /^\/(?![/\\])/.test(to) && new URL(to, location.origin).origin === location.origin ? to : "/";
}

/** What became of a login with the provider, by the codes of docs/access.md. */
const REFUSED: Record<string, string> = {
  login_expired: "The login took longer than ten minutes, or did not begin in this browser. Begin it again.",
  provider_unavailable: "The provider does not answer. Try again in a minute.",
  no_access: "The provider knows you, and what it says of you grants nothing here. Ask whoever keeps the control plane's `identity.grants`.",
};

export default function Login({ expired = false }: { expired?: boolean }) {
  const session = useSession();
  const login = useLogin();
  const [token, setToken] = useState("");
  const [wrong, setWrong] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const back = wayBack();
  const oidc = hasProvider(session.error);
  const refused = new URLSearchParams(location.search).get("login_error");

  const enter = async (): Promise<void> => {
    setBusy(true);
    setWrong(null);
    try {
      await login.withToken(token.trim());
      setToken("");
      if (location.pathname === "/login" || refused) go(back, true);
    } catch (error) {
      setWrong(error instanceof Problem ? error.detail : "the token was not taken");
    } finally {
      setBusy(false);
    }
  };

  return (
    <main className="login">
      <h1>mcpg</h1>
      {expired && <p role="status">Your session has ended. Log in to go on where you were.</p>}
      {refused && (
        <p role="alert" className="bad">
          {REFUSED[refused] ?? "The provider did not let you in, or what it answered is not sound. The control plane's log says more."} <bdi className="mono">{refused}</bdi>
        </p>
      )}
      {oidc && (
        <Button component="a" href={providerLogin(back)} fullWidth>
          Log in with your provider
        </Button>
      )}
      {oidc && <p className="muted or">or</p>}
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void enter();
        }}
      >
        <PasswordInput label="Token" description="One that `mcpg token new` has made. It becomes a session of this browser; the page does not keep it." value={token} onChange={(event) => setToken(event.currentTarget.value)} error={wrong} autoComplete="off" data-autofocus />
        <Button type="submit" variant={oidc ? "default" : "filled"} fullWidth mt={12} loading={busy} disabled={token.trim() === ""}>
          Log in
        </Button>
      </form>
    </main>
  );
}
