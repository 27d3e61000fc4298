#!/usr/bin/env bash
# Builds the dashboard into ui/dist, from where the binary takes it; does nothing when nothing has changed.
# Needs Node 20.19 or newer and npm; the Node that tests/setup.sh has installed is taken where there is no other.
set -euo pipefail
cd "$(dirname "$0")"

say() { printf 'ui: %s\n' "$*" >&2; }

sources() { find src public scripts index.html package.json package-lock.json tsconfig.json vite.config.ts build.sh -type f | LC_ALL=C sort; }
stamp=dist/.built
sum=$(sources | tr '\n' '\0' | xargs -0 sha256sum | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$sum" ]; then exit 0; fi

is_new_enough() { "$1" -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' 2>/dev/null; }
if ! { command -v node >/dev/null && is_new_enough node; }; then
    installed=$PWD/../tests/setup/node_modules/.bin
    if [ -x "$installed/node" ] && is_new_enough "$installed/node"; then
        PATH=$installed:$PATH
    else
        say "Node 20.19 or newer is needed to build the dashboard; without it the binary serves everything but the page"
        exit "${UI_REQUIRED:-0}"
    fi
fi
command -v npm >/dev/null || { say "npm is needed to build the dashboard; without it the binary serves everything but the page"; exit "${UI_REQUIRED:-0}"; }

say "building the dashboard"
if ! cmp -s package-lock.json node_modules/.installed; then
    npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
    install -m 644 package-lock.json node_modules/.installed
fi
npm run --silent build >&2
printf '%s\n' "$sum" >"$stamp"
