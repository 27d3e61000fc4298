/** The views: where they are, what they are called, the key after `g`. */
export const VIEWS = [
  { path: "/", word: "Tool activity", key: "t" },
  { path: "/ledger", word: "Ledger", key: "l" },
  { path: "/lag", word: "Lag", key: "a" },
  { path: "/sql", word: "SQL", key: "s" },
  { path: "/status", word: "Status", key: "o" },
] as const;
