import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// Workers and small files stay files of their own: the page's policy allows neither `blob:` nor inline scripts.
export default defineConfig({
  plugins: [react()],
  build: {
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
  },
  worker: { format: "es" },
  server: { proxy: { "/v1": "http://127.0.0.1:7843", "/readyz": "http://127.0.0.1:7843", "/metrics": "http://127.0.0.1:7843" } },
});
