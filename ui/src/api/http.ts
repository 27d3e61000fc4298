/**
 * The one way to the server. Errors are what its problem documents say; what is not needed any more is aborted; of queries only a few are under way at
 * once, because the server gives a token four places, and the rest waits here in order.
 */

export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly detail: string,
    readonly requestId: string | null,
    readonly members: Record<string, unknown> = {},
  ) {
    super(detail);
    this.name = "Problem";
  }
}

/** Told when a request finds that nobody is logged in (any more). */
export const loggedOut = new EventTarget();

export async function send(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (init.method && init.method !== "GET") headers.set("Mcpg-Csrf", "1");
  let response: Response;
  try {
    response = await fetch(path, { ...init, headers, credentials: "same-origin", referrerPolicy: "no-referrer" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Problem(0, "unreachable", "the control plane does not answer; is it running, and is the network there?", null);
  }
  if (response.ok) return response;
  const problem = await problemOf(response);
  if (response.status === 401 && !path.startsWith("/v1/session") && problem.code !== "login_again") loggedOut.dispatchEvent(new Event("out"));
  throw problem;
}

async function problemOf(response: Response): Promise<Problem> {
  const members = (await response.json().catch(() => ({}))) as Record<string, unknown>;
  const text = (name: string): string | null => (typeof members[name] === "string" ? (members[name] as string) : null);
  const retry = response.headers.get("retry-after");
  if (retry) members.retry_after = Number(retry);
  return new Problem(response.status, text("code") ?? `http_${response.status}`, text("detail") ?? response.statusText, text("request_id"), members);
}

export const json = async <T>(path: string, init?: RequestInit): Promise<T> => (await send(path, init)).json() as Promise<T>;

/** As many requests of a kind at once as there are places. */
export class Places {
  private taken = 0;
  private readonly waiting: (() => void)[] = [];

  constructor(private readonly places: number) {}

  async hold<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    if (this.taken >= this.places) {
      await new Promise<void>((resolve, reject) => {
        const enter = (): void => {
          signal?.removeEventListener("abort", leave);
          resolve();
        };
        const leave = (): void => {
          const at = this.waiting.indexOf(enter);
          if (at >= 0) this.waiting.splice(at, 1);
          reject(new DOMException("not needed any more", "AbortError"));
        };
        this.waiting.push(enter);
        signal?.addEventListener("abort", leave, { once: true });
      });
    }
    this.taken += 1;
    try {
      signal?.throwIfAborted();
      return await work();
    } finally {
      this.taken -= 1;
      this.waiting.shift()?.();
    }
  }
}

export const pause = (ms: number, signal?: AbortSignal): Promise<void> =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("not needed any more", "AbortError"));
    });
  });
