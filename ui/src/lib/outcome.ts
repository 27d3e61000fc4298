/** Outcomes: one colour each, the same everywhere. */
export const OUTCOMES = ["ok", "client_error", "server_error", "timeout", "policy_denied", "quota_exceeded"] as const;
export type Outcome = (typeof OUTCOMES)[number];

export const ERRORS: readonly string[] = ["client_error", "server_error", "timeout"];
export const DENIALS: readonly string[] = ["policy_denied", "quota_exceeded"];

/** What a sentence says of a call's end. */
export function ending(outcome: string, took: string): string {
  switch (outcome) {
    case "ok":
      return `it succeeded in ${took}`;
    case "client_error":
      return `the tool refused it after ${took}`;
    case "server_error":
      return `the server failed after ${took}`;
    case "timeout":
      return `it timed out after ${took}`;
    case "policy_denied":
      return "policy denied it, and nothing ran";
    case "quota_exceeded":
      return "a quota was used up, and nothing ran";
    default:
      return `it ended as ${outcome} after ${took}`;
  }
}
