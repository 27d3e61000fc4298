#!/usr/bin/env bash
# Installs what the tests need beside Rust, each part at the version it was tried with. Quick when all is there already.
#   apt      tests/setup/apt.txt: compiler, Prometheus, file-system tools (Debian or Ubuntu; elsewhere it only says what is missing)
#   newer    Prometheus 3 and its promtool beside Debian 12's, from Debian's next release, into .venv/share/prometheus
#   python   tests/setup/requirements*.txt into .venv: the other engines that read our tables, MCP clients and servers, OpenTelemetry,
#            services that speak S3's protocol
#   node     tests/setup/package-lock.json into tests/setup/node_modules: the official MCP conformance suites, server and client, the SDKs
#            of both generations, a service that speaks S3's protocol badly, what drives a browser and looks for barriers, an OpenID provider
#   page     ui/dist, the dashboard, which the binary holds
#   data     three million real flight delays, into .venv/share
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

RUST_MIN=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
DATASETS=vega-datasets@3.2.1
FLIGHTS_SHA256=dbeb920c90f59b6ccaff823dcc3d08f25a97fa1ce128d93f40be4e931f5900b0
FLIGHTS=.venv/share/flights-3m.parquet
PROMETHEUS=3.5.3+ds1-6
PROMETHEUS_RELEASE=forky

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "root or sudo is needed to run: $*"
    fi
}

rust() {
    command -v cargo >/dev/null || die "no cargo: install Rust $RUST_MIN or newer with rustup, then run this again"
    local have
    have=$(cargo --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$RUST_MIN" "${have%%-*}" | sort -V | head -n1)" = "$RUST_MIN" ] \
        || die "cargo is $have; $RUST_MIN or newer is needed: rustup update"
}

# Whether a package's tools are there already, however they came.
present() {
    case $1 in
    build-essential) command -v cc >/dev/null && command -v make >/dev/null ;;
    pkg-config) command -v pkg-config >/dev/null ;;
    python3-venv) python3 -c 'import venv, ensurepip' 2>/dev/null ;;
    prometheus) command -v prometheus >/dev/null && command -v promtool >/dev/null ;;
    prometheus-alertmanager) command -v prometheus-alertmanager >/dev/null && command -v amtool >/dev/null ;;
    xfsprogs) command -v xfs_io >/dev/null ;;
    e2fsprogs) command -v mkfs.ext4 >/dev/null ;;
    util-linux) command -v losetup >/dev/null && command -v fsfreeze >/dev/null ;;
    systemd) command -v systemd-analyze >/dev/null ;;
    nginx-light) command -v nginx >/dev/null ;;
    openssl) command -v openssl >/dev/null ;;
    npm) command -v npm >/dev/null ;;
    chromium) command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ;;
    fonts-dejavu-core) has_font DejaVuSans.ttf ;;
    fonts-noto-color-emoji) has_font NotoColorEmoji.ttf ;;
    *) return 1 ;;
    esac
}

has_font() { [ -n "$(find /usr/share/fonts -name "$1" -print -quit 2>/dev/null)" ]; }

UPDATED=
apt_install() { # package, version tried
    command -v apt-get >/dev/null || die "missing: $1 ($2 was tried); there is no apt-get here, install it by hand"
    if [ -z "$UPDATED" ]; then as_root apt-get -qq update; UPDATED=yes; fi
    local get=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install)
    if apt-cache show "$1=$2" >/dev/null 2>&1; then
        as_root "${get[@]}" "$1=$2" >/dev/null
    else
        as_root "${get[@]}" "$1" >/dev/null
        say "$1: the archive has no $2, installed $(dpkg-query -W -f '${Version}' "$1") instead"
    fi
}

packages() {
    local name version
    while read -r name version _; do
        case $name in '' | '#'*) continue ;; esac
        present "$name" || { say "installing $name"; apt_install "$name" "$version"; }
    done <tests/setup/apt.txt
}

python() {
    local stamp=.venv/.installed
    if [ -x .venv/bin/python ] && cat tests/setup/requirements*.txt | cmp -s - "$stamp"; then return; fi
    say "installing the Python packages into .venv"
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: -r tests/setup/requirements.txt
    # What says that it wants a newer Python and runs on Debian 12's all the same.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --no-deps --ignore-requires-python \
        -r tests/setup/requirements-newer-python.txt
    # A folder of its own for an SDK that has the name of its successor.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --no-deps --upgrade \
        --target .venv/share/mcp-1 -r tests/setup/requirements-mcp-1.txt
    cat tests/setup/requirements*.txt >"$stamp"
}

# No package may run a script while it is installed: Node itself comes as a package that needs none.
node() {
    local stamp=tests/setup/node_modules/.installed
    # The fixture servers and clients look for the SDKs in the folders above their own.
    ln -sfn ../setup/node_modules tests/fixtures/node_modules
    if cmp -s tests/setup/package-lock.json "$stamp"; then return; fi
    say "installing MCP suites, servers and clients, s3rver, playwright-core, axe and oidc-provider into tests/setup/node_modules"
    npm ci --prefix tests/setup --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
    # npm 9 links no program by this name.
    (cd tests/setup/node_modules/.bin && ln -sf ../node-linux-*/bin/node node)
    [ -x tests/setup/node_modules/.bin/node ] || die "there is no Node for $(uname -sm) among the packages of tests/setup/package.json"
    install -m 644 tests/setup/package-lock.json "$stamp"
}

# The newest Prometheus that there is a package of. It needs no more than a C library, so it is unpacked and not installed. Lists and
# packages go to a folder of their own: the machine's apt does not learn of the other release.
newer_prometheus() {
    local folder=.venv/share/prometheus
    if [ -x "$folder/prometheus" ] && [ -x "$folder/promtool" ]; then return; fi
    say "fetching Prometheus $PROMETHEUS from Debian's release $PROMETHEUS_RELEASE"
    command -v apt-get >/dev/null || die "put prometheus and promtool of version 3 into $folder by hand: there is no apt-get here"
    if [ -z "$UPDATED" ]; then as_root apt-get -qq update; UPDATED=yes; fi
    local dir mirror key=/usr/share/keyrings/debian-archive-keyring.gpg
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | grep -v security | head -n1)
    [ -n "$mirror" ] && [ -f "$key" ] || die "put prometheus and promtool of version 3 into $folder by hand: apt knows no mirror of Debian"
    dir=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$dir'" EXIT
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    echo "deb [signed-by=$key] $mirror $PROMETHEUS_RELEASE main" >"$dir/sources.list"
    local apt=(apt-get -qq -o "Dir::Etc::SourceList=$dir/sources.list" -o "Dir::Etc::SourceParts=-" -o "Dir::State::Lists=$dir/lists"
        -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
    "${apt[@]}" update
    local name
    for name in prometheus promtool; do
        (cd "$dir" && "${apt[@]}" download "$name=$PROMETHEUS" 2>/dev/null) \
            || { say "the archive has no $name $PROMETHEUS; taking the one it has"; (cd "$dir" && "${apt[@]}" download "$name"); }
    done
    for name in "$dir"/*.deb; do dpkg-deb -x "$name" "$dir/unpacked"; done
    mkdir -p "$folder"
    install "$dir/unpacked/usr/bin/prometheus" "$dir/unpacked/usr/bin/promtool" "$folder/"
    rm -rf "$dir"
    trap - EXIT
}

flights() {
    if [ -f "$FLIGHTS" ]; then return; fi
    say "fetching the flight delays ($DATASETS)"
    local dir
    dir=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$dir'" EXIT
    npm pack --silent --pack-destination "$dir" "$DATASETS" >/dev/null
    tar -xzf "$dir"/vega-datasets-*.tgz -C "$dir" package/data/flights-3m.parquet
    echo "$FLIGHTS_SHA256  $dir/package/data/flights-3m.parquet" | sha256sum --check --quiet \
        || die "the flight delays are not the ones the tests were written for"
    mkdir -p "$(dirname "$FLIGHTS")"
    mv "$dir/package/data/flights-3m.parquet" "$FLIGHTS"
}

rust
packages
python
node
newer_prometheus
UI_REQUIRED=1 ui/build.sh
flights
