/** The frame: the views' names, the org, the person; and the view that the path names. */
import { Menu, useComputedColorScheme, useMantineColorScheme } from "@mantine/core";
import { useQueryClient } from "@tanstack/react-query";
import { Component, lazy, Suspense, useCallback, useEffect, useState, type ReactNode } from "react";
import { loggedOut, Problem } from "./api/http";
import { attention } from "./lib/attended";
import { useLogin, useSession, type Session } from "./api/session";
import { Failure } from "./components/panel";
import { Name } from "./components/text";
import { Keys } from "./keys";
import { follow, go, link, usePath } from "./state/route";
import { useView } from "./state/url";
import { VIEWS } from "./state/views";
import { useTime, WindowProvider } from "./state/window";
import Activity from "./views/activity";

const CallPage = lazy(() => import("./views/call"));
const Ledger = lazy(() => import("./views/ledger"));
const Lag = lazy(() => import("./views/lag"));
const SqlView = lazy(() => import("./views/sql"));
const Status = lazy(() => import("./views/status"));
const Login = lazy(() => import("./views/login"));

export function App() {
  const session = useSession();
  const client = useQueryClient();
  // Whether nobody is logged in, and whether somebody was: a question under way does not change the answer.
  const [out, setOut] = useState<"no" | "yes" | "expired">("no");
  const path = usePath();
  const asked = session.error instanceof Problem && session.error.status === 401;
  useEffect(() => {
    let asked = -Infinity;
    const lost = (): void => {
      const known = client.getQueryData<Session>(["session"]);
      // Not again and again, should one route refuse whom the others know.
      if (!known || known.open || performance.now() - asked < 10_000) return;
      asked = performance.now();
      void client.resetQueries({ queryKey: ["session"] }).then(() => setOut((was) => (was === "yes" ? "expired" : was)));
    };
    loggedOut.addEventListener("out", lost);
    return () => loggedOut.removeEventListener("out", lost);
  }, [client]);
  useEffect(() => {
    const back = (): void => void client.invalidateQueries({ predicate: ({ queryKey }) => queryKey[0] !== "columns" });
    attention.addEventListener("back", back);
    return () => attention.removeEventListener("back", back);
  }, [client]);
  useEffect(() => {
    if (session.data) setOut("no");
    else if (asked) setOut((was) => (was === "no" ? "yes" : was));
  }, [session.data, asked]);

  if (asked || out !== "no" || path === "/login") {
    return (
      <Suspense fallback={null}>
        <Login expired={out === "expired" || (asked && session.data !== undefined)} />
      </Suspense>
    );
  }
  return (
    <WindowProvider>
      <Frame session={session.data} path={path}>
        {session.isError ? <Failure error={session.error} retry={session.refetch} /> : session.data ? <View path={path} /> : <div className="skeleton page" style={{ height: 320 }} role="status" aria-label="loading" />}
      </Frame>
    </WindowProvider>
  );
}

function View({ path }: { path: string }) {
  const view =
    path === "/" ? <Activity /> : path.startsWith("/calls/") ? <CallPage /> : path === "/ledger" ? <Ledger /> : path === "/lag" ? <Lag /> : path === "/sql" ? <SqlView /> : path === "/status" ? <Status /> : <NoSuchView />;
  return (
    <Guard key={path}>
      <Suspense fallback={<div className="skeleton page" style={{ height: 320 }} role="status" aria-label="loading" />}>{view}</Suspense>
    </Guard>
  );
}

function NoSuchView() {
  return (
    <div className="page narrow">
      <h1>Nothing is here</h1>
      <p>
        The address may be mistyped.{" "}
        <a href={link("/")} onClick={follow}>
          Tool activity
        </a>{" "}
        is the way in.
      </p>
    </div>
  );
}

/** A view that breaks leaves the frame standing. */
class Guard extends Component<{ children: ReactNode }, { error: unknown }> {
  override state = { error: null as unknown };
  static getDerivedStateFromError(error: unknown) {
    return { error };
  }
  override render() {
    if (this.state.error === null) return this.props.children;
    return (
      <div className="page narrow">
        <Failure error={this.state.error} retry={() => location.reload()} />
      </div>
    );
  }
}

function Frame({ session, path, children }: { session: Session | undefined; path: string; children: ReactNode }) {
  const [{ org }] = useView();
  const time = useTime();
  const client = useQueryClient();
  const refresh = useCallback(() => {
    time?.refresh();
    void client.invalidateQueries({ predicate: ({ queryKey }) => queryKey[0] !== "columns" });
  }, [time, client]);
  const here = VIEWS.find((view) => (view.path === "/" ? path === "/" || path.startsWith("/calls/") : path === view.path));
  useEffect(() => {
    document.title = `${here?.word ?? "mcpg"} · ${org} · mcpg`;
  }, [here, org]);
  return (
    <>
      <a href="#main" className="skip">
        to the content
      </a>
      <header className="top">
        <a className="brand" href={link("/")} onClick={follow}>
          mcpg
        </a>
        <nav aria-label="views">
          {VIEWS.map((view) => (
            <a key={view.path} href={link(view.path)} onClick={follow} aria-current={here === view ? "page" : undefined}>
              {view.word}
            </a>
          ))}
        </nav>
        <div className="top-right">
          <OrgMenu session={session} />
          <Keys refresh={refresh} />
          <Theme />
          <Person session={session} />
        </div>
      </header>
      <main id="main">{children}</main>
    </>
  );
}

function OrgMenu({ session }: { session: Session | undefined }) {
  const [{ org }] = useView();
  const orgs = [...new Set(session?.grants.map((grant) => grant.org).filter((name) => name !== "*"))];
  const choose = (name: string): void => go(`${location.pathname}?org=${encodeURIComponent(name)}`);
  useEffect(() => {
    // Whoever has one org and says none means that one.
    if (orgs.length > 0 && !orgs.includes(org) && !new URLSearchParams(location.search).has("org")) {
      const params = new URLSearchParams(location.search);
      params.set("org", orgs[0]!);
      go(`${location.pathname}?${params}`, true);
    }
  });
  if (orgs.length < 2) {
    return (
      <span className="org">
        <span className="muted">org</span> <Name>{org}</Name>
      </span>
    );
  }
  return (
    <Menu position="bottom-end" transitionProps={{ duration: 0 }} shadow="none">
      <Menu.Target>
        <button type="button" className="quiet-button org">
          <span className="muted">org</span> <Name>{org}</Name> <span aria-hidden="true">▾</span>
        </button>
      </Menu.Target>
      <Menu.Dropdown>
        {orgs.map((name) => (
          <Menu.Item key={name} onClick={() => choose(name)}>
            <Name>{name}</Name>
          </Menu.Item>
        ))}
      </Menu.Dropdown>
    </Menu>
  );
}

function Theme() {
  const scheme = useComputedColorScheme("light");
  const { setColorScheme } = useMantineColorScheme();
  const other = scheme === "dark" ? "light" : "dark";
  return (
    <button type="button" className="quiet-button" onClick={() => setColorScheme(other)} aria-label={`${other} theme`} title={`${other} theme`} id="theme">
      <span aria-hidden="true">{scheme === "dark" ? "☀" : "☾"}</span>
    </button>
  );
}

function Person({ session }: { session: Session | undefined }) {
  const login = useLogin();
  if (!session || session.open) return null;
  return (
    <Menu position="bottom-end" transitionProps={{ duration: 0 }} shadow="none">
      <Menu.Target>
        <button type="button" className="quiet-button">
          <Name>{session.actor}</Name> <span aria-hidden="true">▾</span>
        </button>
      </Menu.Target>
      <Menu.Dropdown>
        <Menu.Item onClick={() => void login.out()}>Log out</Menu.Item>
      </Menu.Dropdown>
    </Menu>
  );
}
