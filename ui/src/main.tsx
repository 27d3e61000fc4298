/** The page's beginning: the nonce, the theme, the providers, and the frame. */
import { createTheme, Drawer, localStorageColorSchemeManager, MantineProvider, Modal } from "@mantine/core";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { setNonce } from "get-nonce";
import { NuqsAdapter } from "nuqs/adapters/react";
import { enableHistorySync } from "nuqs/adapters/react";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import "./styles/mantine";
import "./styles/theme.css";
import "./styles/app.css";
import { Problem } from "./api/http";
import { App } from "./app";
import { nonce } from "./nonce";

setNonce(nonce);
enableHistorySync();

const SCHEME_KEY = "mcpg-scheme";
{
  // Before anything is drawn, so that nothing flashes.
  let kept: string | null = null;
  try {
    kept = localStorage.getItem(SCHEME_KEY);
  } catch {
    // A browser that keeps nothing follows the system.
  }
  const dark = kept === "dark" || (kept !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.setAttribute("data-mantine-color-scheme", dark ? "dark" : "light");
}

// A dialog's head is no banner of the page, and its button to close it has a name.
const dialog = { closeButtonProps: { "aria-label": "close" }, attributes: { header: { role: "presentation" } } };

const theme = createTheme({
  components: { Modal: Modal.extend({ defaultProps: dialog }), Drawer: Drawer.extend({ defaultProps: dialog }) },
  fontFamily: "var(--font)",
  fontFamilyMonospace: "var(--mono)",
  primaryColor: "indigo",
  defaultRadius: 4,
  cursorType: "pointer",
  respectReducedMotion: true,
  fontSizes: { xs: "12px", sm: "13px", md: "13px", lg: "15px", xl: "18px" },
});

const client = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 30_000,
      refetchOnWindowFocus: false,
      // What the server says is wrong with a request does not change by asking again.
      retry: (count, error) => !(error instanceof Problem && error.status > 0 && error.status < 500) && count < 2,
    },
  },
});

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <MantineProvider theme={theme} defaultColorScheme="auto" colorSchemeManager={localStorageColorSchemeManager({ key: SCHEME_KEY })} getStyleNonce={() => nonce}>
      <QueryClientProvider client={client}>
        <NuqsAdapter>
          <App />
        </NuqsAdapter>
      </QueryClientProvider>
    </MantineProvider>
  </StrictMode>,
);
