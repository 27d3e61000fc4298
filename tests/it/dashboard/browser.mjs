// The dashboard in a real browser: what `mod.rs` has planted is found, by mouse and by keyboard, in both themes, at all
// widths, whatever names hold. Run by `mod.rs` with a JSON object: where the page is, what was planted, where pictures
// go. Exits with 1 at the first thing that is not so, and says what.
import { createRequire } from "node:module";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import assert from "node:assert/strict";

const require = createRequire(new URL("../../setup/", import.meta.url));
const { chromium } = require("playwright-core");
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const given = JSON.parse(process.argv[2]);
const { url, pictures, planted } = given;
const PATIENCE = 60_000;
const program = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
assert.ok(program, "there is no Chromium; tests/setup.sh installs it");
mkdirSync(pictures, { recursive: true });

const browser = await chromium.launch({ executablePath: program, args: ["--no-sandbox", "--force-color-profile=srgb"] });
const faults = [];

/** A page that notes what its policy reports, what its scripts throw, and what a hostile name would do. */
async function newPage(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light", ...options });
  context.setDefaultTimeout(PATIENCE);
  await context.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => console.error(`CSP: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
    globalThis.alert = () => console.error("CSP: a name ran as a script");
  });
  const page = await context.newPage();
  page.on("pageerror", (error) => faults.push(`a script threw: ${error.stack ?? error}`));
  page.on("console", (message) => {
    if (/CSP:|Content.Security.Policy|ResizeObserver|Warning: /i.test(message.text())) faults.push(`at ${page.url()}: ${message.text()}`);
  });
  return page;
}

const passed = (name) => console.log(`passed: ${name}`);
const params = (page) => new URL(page.url()).searchParams;
const settled = (page) => page.waitForFunction(() => !document.querySelector(".skeleton, .stale"), undefined, { timeout: PATIENCE });
const open = async (page, path) => {
  await page.goto(url + path);
  await page.locator("main").first().waitFor();
  await settled(page);
};
const until = async (what, check) => {
  const end = Date.now() + PATIENCE;
  for (;;) {
    const found = await check();
    if (found) return found;
    assert.ok(Date.now() < end, `waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
};

const range = `from=${planted.from}&to=${planted.to}`;

/** Two keys that go to a view; they are to come within a second of one another, which a busy machine does not always give. */
const goTo = (page, key, path) => until(path, async () => {
  await page.keyboard.press("g");
  await page.keyboard.press(key);
  await page.waitForFunction((path) => location.pathname === path, path, { timeout: 1_000 }).catch(() => {});
  return new URL(page.url()).pathname === path;
});

/** From what stands out on the map to the policy behind it. */
async function anomaly() {
  const page = await newPage();
  await open(page, `/?${range}`);
  const over = page.locator("[data-heat] .u-over");
  await over.waitFor();
  const area = await over.boundingBox();
  const [from, to] = [Date.parse(planted.from), Date.parse(planted.to)];
  const x = (time) => area.x + ((Date.parse(time) - from) / (to - from)) * area.width;
  await page.mouse.move(x(planted.slow_from) - 4, area.y + 2);
  await page.mouse.down();
  await page.mouse.move(x(planted.slow_to) + 4, area.y + area.height * 0.22, { steps: 8 });
  await page.mouse.up();
  await page.locator("[data-differences] li").first().waitFor();
  await settled(page);
  // The policies come from the ledger, by a query of their own.
  for (const value of planted.different) {
    await until(`${value} among what is different`, async () => {
      const texts = await page.locator("[data-differences] li").allInnerTexts();
      return texts.map((text) => text.replaceAll(/\s+/g, " ")).some((line) => line.includes(value) && /100 % here/.test(line));
    });
  }
  assert.ok(params(page).get("box"), "the box is in the URL");
  passed("a box on the map says what is different in it");

  await page.reload();
  await page.locator("[data-differences] li").first().waitFor();
  await page.locator("[data-box]").waitFor();
  passed("a link with a box shows the same box");

  await page.getByRole("button", { name: "its calls" }).click();
  const rows = page.locator("[role=table][aria-label=calls] [data-row]");
  await rows.first().waitFor();
  await settled(page);
  await until("the calls to be those in the box", async () => Number(await page.locator("[role=table][aria-label=calls]").getAttribute("aria-rowcount")) === planted.slow + 1);
  await rows.first().click();
  const sentence = page.locator("[data-sentence]");
  await sentence.waitFor();
  await page.locator("[data-policies]").waitFor();
  for (const part of planted.sentence) await until(`${part} in the sentence`, async () => (await sentence.innerText()).includes(part));
  await page.locator("[data-side] [data-trail-step=policy]", { hasText: "slow-lane" }).waitFor();
  const steps = await page.locator("[data-side] [data-trail-step]").evaluateAll((all) => all.map((step) => [step.dataset.trailStep, step.innerText]));
  assert.deepEqual(steps.map(([word]) => word), ["identity", "policy", "dispatch"]);
  for (const [at, name] of ["user:bob@acme", "slow-lane", "github"].entries()) assert.ok(steps[at][1].includes(name), `${name} is not in: ${steps[at]}`);
  passed("a call of the box says who, what and by which policy");

  const seal = page.locator("[data-side] [data-seal=amber]");
  await seal.waitFor();
  await seal.locator(".seal-head").click();
  await seal.getByText(/is signed by the key/).first().waitFor();
  await page.getByRole("button", { name: "trust this key" }).click();
  await page.locator("[data-side] [data-seal=green]").waitFor();
  passed("the entry is proved in the browser, amber until its key is trusted");

  const first = params(page).get("call");
  await page.keyboard.press("j");
  await until("the next call", async () => params(page).get("call") !== first);
  await page.keyboard.press("k");
  await until("the call before", async () => params(page).get("call") === first);
  await page.keyboard.press("Escape");
  await until("the call to close", async () => !params(page).get("call"));
  await page.goBack();
  await until("back to open it again", async () => params(page).get("call") === first);
  passed("j, k, escape and back");

  await page.goto(`${url}/calls/${first}`);
  await page.locator("[data-sentence]").waitFor();
  await until("the timeline's steps", async () => (await page.locator("[data-timeline] li").count()) >= 2);
  await page.context().close();
}

async function filters() {
  const page = await newPage();
  await open(page, `/?${range}`);
  const calls = async () => Number((await page.locator(".tile", { hasText: "calls" }).first().getAttribute("title"))?.replaceAll(/[^\d]/g, ""));
  const shown = (number) => until(`${number} calls`, async () => (await calls()) === number);
  await shown(planted.calls);
  const facet = page.locator("section.facet", { has: page.getByRole("heading", { name: "caller", exact: true }) });
  await facet.locator(".facet-value", { hasText: "user:bob@acme" }).click();
  await until("the caller in the URL", async () => params(page).get("caller") === "user:bob@acme");
  await shown(planted.bobs);
  await page.reload();
  await shown(planted.bobs);
  await page.goBack();
  await until("the filter to be undone", async () => params(page).get("caller") === null);
  await shown(planted.calls);

  const outcome = page.locator("section.facet", { has: page.getByRole("heading", { name: "outcome", exact: true }) });
  await outcome.locator(".facet-row", { hasText: "ok" }).first().hover();
  await outcome.getByRole("button", { name: "leave out outcome ok" }).click();
  await until("the exclusion in the URL", async () => params(page).get("outcome") === "!ok");
  await shown(planted.not_ok);

  await page.keyboard.press("/");
  await page.locator("input[aria-label=filter]:focus").waitFor();
  await page.keyboard.type("tool: search_code");
  await page.keyboard.press("Enter");
  await until("the typed filter in the URL", async () => params(page).get("tool") === "search_code");
  await page.getByRole("button", { name: "clear all" }).click();
  await until("no filters", async () => !params(page).get("tool") && !params(page).get("outcome"));

  await open(page, `/?outcome=client_error,server_error,timeout,policy_denied,quota_exceeded&${range}`);
  await shown(planted.not_ok);
  await open(page, `/?tool=none&caller=nobody&${range}`);
  await page.getByText("match without").first().waitFor();
  passed("filters by facet, by exclusion, by typing, by link; reload, back and empty");

  await open(page, "/?from=now-8d&to=now");
  await shown(planted.calls);
  await until("all tools", async () => (await page.locator("[data-tools] tbody tr").count()) === 4);
  await open(page, "/?from=now-8d&caller=user:bob@acme");
  await shown(planted.bobs);
  passed("long times from the rollups, and the same as from the calls");

  for (const [tab, row] of [["errors", "[data-errors] tbody tr"], ["tools", "[data-tools] tbody tr"], ["calls", "[aria-label=calls] [data-row]"]]) {
    await open(page, `/?tab=${tab}&${range}`);
    await page.locator(row).first().waitFor();
  }
  for (const panel of ["latency", "calls", "errors", "denials", "lag"]) {
    await open(page, `/?panel=${panel}&${range}`);
    await page.locator(".chart canvas").waitFor();
  }
  await page.getByRole("button", { name: "show query" }).first().click();
  await page.getByRole("dialog").getByText("FROM tool_invocations").waitFor();
  passed("tables, panels and their queries");

  await page.getByRole("dialog").getByRole("link", { name: "open in SQL" }).first().click();
  await page.locator("[aria-label=answer] [data-row]").first().waitFor();
  passed("a panel's query runs in SQL");
  await page.context().close();
}

async function live() {
  const page = await newPage();
  await open(page, "/?tab=calls&from=now-5m");
  await page.keyboard.press("l");
  await until("live in the URL", async () => params(page).get("live") === "true");
  const sample = { workspace: "prod", instance: "gw-1", plugin: "live", tool: "just_now", caller: "user:dana@acme", started_at: new Date().toISOString(), duration_ms: 12.5, outcome: "ok" };
  const sent = await fetch(`${url}/v1/orgs/default/invocations`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(sample) });
  assert.equal(sent.status, 200, await sent.text());
  await page.locator("[aria-label=calls] [data-row]", { hasText: "just_now" }).waitFor();
  passed("live shows what comes in");
  await page.context().close();
}

async function sql() {
  const page = await newPage();
  await open(page, "/sql");
  const editor = page.getByRole("textbox", { name: "SQL" });
  await editor.click();
  await page.keyboard.press("Control+a");
  await page.keyboard.type("SELECT count(*) AS calls FROM tool_invocations WHERE tool = 'search_code'", { delay: 0 });
  await page.keyboard.press("Escape");
  await page.keyboard.press("Control+Enter");
  await page.locator("[aria-label=answer] [data-row]").first().waitFor();
  await page.locator("[data-sql-status]", { hasText: /1 row in/ }).waitFor();
  await until("the query in the URL", async () => params(page).get("q")?.includes("search_code"));
  const [file] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "save CSV" }).click()]);
  assert.match(readFileSync(await file.path(), "utf8"), /^calls\r?\n\d+/);
  await open(page, `/sql?q=${encodeURIComponent("SELECT nothing FROM tool_invocations")}`);
  await page.locator(".failure").getByText("invalid_query").waitFor();
  passed("SQL runs, saves, and says what is wrong");
  await page.context().close();
}

async function ledger() {
  const page = await newPage();
  await open(page, "/ledger");
  await page.locator("#verify:enabled").click();
  const verdict = page.locator("[data-verdict]");
  await verdict.waitFor();
  assert.equal(await verdict.getAttribute("data-verdict"), "sound", await verdict.innerText());
  assert.match(await verdict.innerText(), /every entry's bytes/);
  passed("a sound ledger is found sound");

  await page.getByLabel("action", { exact: true }).fill("tool.deny");
  await page.keyboard.press("Enter");
  await until("the filter in the URL", async () => params(page).get("action") === "tool.deny");
  await settled(page);
  await until("the entries of the filter alone", async () => {
    const texts = await page.locator("[aria-label=entries] [data-row]").allInnerTexts();
    return texts.length > 0 && texts.every((text) => text.includes("tool.deny"));
  });
  await page.locator("[aria-label=entries] [data-row]").first().click();
  await page.locator("[data-side] .seal").waitFor();
  await until("the entry that was opened", async () => /tool\.deny/.test(await page.locator("[data-side]").innerText()));

  await open(page, "/ledger?org=tampered");
  await page.locator("#verify:enabled").click();
  await verdict.waitFor();
  assert.equal(await verdict.getAttribute("data-verdict"), "not-sound", await verdict.innerText());
  assert.ok((await verdict.innerText()).includes(given.tampered), `${given.tampered} is not named: ${await verdict.innerText()}`);
  passed("one tampered tile is found and named");

  await open(page, "/ledger#vkey=mcpg.local/orgs/default/audit/1+00000000+AAAA");
  await page.getByText("names another key").waitFor();
  assert.equal(await page.evaluate(() => Object.keys(localStorage).filter((key) => key.startsWith("mcpg-vkey")).length), 0, "a key of a link is not kept");
  passed("a key in a link is compared and not kept");
  await page.context().close();
}

async function keyboard() {
  const page = await newPage();
  await open(page, `/?${range}`);
  await page.keyboard.press("?");
  await page.getByRole("dialog", { name: "Keys" }).waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  await page.keyboard.press("Control+k");
  await page.getByRole("dialog", { name: "Go to" }).locator("input:focus").waitFor();
  await page.keyboard.type("tool != search_code");
  await page.keyboard.press("Enter");
  await until("what was typed in the URL", async () => params(page).get("tool") === "!search_code");
  await page.keyboard.press("Control+k");
  await page.locator("[data-palette]").waitFor();
  await page.getByRole("dialog", { name: "Go to" }).locator("input:focus").waitFor();
  await page.keyboard.type("ledger");
  await page.keyboard.press("Enter");
  await until("the view that was typed", async () => new URL(page.url()).pathname === "/ledger");
  await open(page, `/?${range}`);
  await page.locator("[data-heat] .u-over").waitFor();
  await page.keyboard.press("b");
  await page.locator(".box.drawing").waitFor();
  for (const key of ["ArrowRight", "ArrowUp", "Shift+ArrowRight", "Shift+ArrowUp", "Enter"]) await page.keyboard.press(key);
  await until("the box in the URL", async () => params(page).get("box"));
  await page.keyboard.press("Escape");
  await until("no box", async () => !params(page).get("box"));
  await page.keyboard.press("3");
  await page.locator("[aria-label=calls] [data-row]").first().waitFor();
  await settled(page);
  await until("the row's call", async () => {
    if (!params(page).get("call")) {
      await page.keyboard.press("j");
      await page.keyboard.press("Enter");
    }
    return page.locator("[data-side] [data-sentence]").isVisible();
  });
  await page.keyboard.press("Escape");
  for (const [key, path] of [["l", "/ledger"], ["a", "/lag"], ["o", "/status"], ["t", "/"]]) {
    await goTo(page, key, path);
  }
  await settled(page);
  // All that a mouse reaches is reached by Tab.
  const unreached = await page.evaluate(() => [...document.querySelectorAll("main button, main a, header button, header a")].filter((e) => e.checkVisibility() && e.tabIndex < 0).map((e) => e.outerHTML.slice(0, 120)));
  assert.deepEqual(unreached, []);
  passed("the keyboard alone");
  await page.context().close();
}

const VIEWS = {
  activity: `/?${range}`,
  box: `/?${range}&box=${planted.box}`,
  calls: `/?tab=calls&panel=calls&${range}`,
  errors: `/?tab=errors&panel=latency&${range}`,
  call: `/calls/${planted.call}`,
  side: `/?tab=calls&${range}&call=${planted.call}`,
  ledger: "/ledger",
  lag: `/lag?${range}`,
  sql: `/sql?q=${encodeURIComponent("SELECT plugin, tool, count(*) AS calls FROM tool_invocations GROUP BY plugin, tool ORDER BY calls DESC")}`,
  status: "/status",
  login: "/login",
  empty: `/?${range}&tool=none`,
  keys: `/lag?${range}`,
  palette: `/lag?${range}`,
};

/** No barrier on any view, in either theme; nothing is wider than the page; a picture of each. */
async function looks() {
  for (const colorScheme of ["light", "dark"]) {
    const page = await newPage({ colorScheme, reducedMotion: "reduce" });
    for (const [name, path] of Object.entries(VIEWS)) {
      await page.setViewportSize({ width: 1280, height: 900 });
      await open(page, path);
      if (name === "sql") await page.locator("[aria-label=answer]").waitFor();
      if (name === "keys") await page.keyboard.press("?");
      if (name === "palette") await page.keyboard.press("Control+k");
      if (name === "keys" || name === "palette") await page.getByRole("dialog").waitFor();
      await page.evaluate(AXE);
      const { violations } = await page.evaluate(() => globalThis.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
      const told = violations.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => `${node.html.slice(0, 160)} (${node.any[0]?.message ?? node.all[0]?.message ?? node.none[0]?.message ?? ""})`).join(" ; ")}`);
      assert.deepEqual(told, [], `axe on ${name}, ${colorScheme}`);
      for (const width of [360, 1280, 2560]) {
        await page.setViewportSize({ width, height: width === 360 ? 740 : 1000 });
        await fits(page, `${name} at ${width}`);
        await page.screenshot({ path: `${pictures}/${name}-${colorScheme}-${width}.png` });
      }
    }
    await page.context().close();
  }
  passed("every view in both themes without a barrier, from 360 to 2560 px");
}

const fits = (page, what) => until(`${what} to hold its content`, () => page.evaluate(() => document.documentElement.scrollWidth <= document.documentElement.clientWidth));

/** Markup, right-to-left text, emoji and 128 characters are text, and hold the layout. */
async function hostile() {
  const page = await newPage();
  for (const path of [`/?org=hostile&${range}`, `/?org=hostile&tab=errors&${range}`, `/?org=hostile&tab=calls&${range}`, `/lag?org=hostile&${range}`, "/ledger?org=hostile", `/calls/${planted.hostile_call}?org=hostile`]) {
    await open(page, path);
    assert.equal(await page.locator("img, bdi script, bdi b").count(), 0, `${path}: a name became markup`);
    for (const width of [360, 1280]) {
      await page.setViewportSize({ width, height: 900 });
      await fits(page, `${path} at ${width}`);
    }
    const named = page.locator("bdi", { hasText: "<img" }).first();
    await named.waitFor({ state: "attached" });
    await page.screenshot({ path: `${pictures}/hostile${path.replaceAll(/[^a-z]+/g, "-").slice(0, 24)}.png` });
  }
  passed("hostile names are text");
  await page.context().close();
}

const parts = { anomaly, filters, live, sql, ledger, keyboard, looks, hostile };
try {
  for (const [name, part] of Object.entries(parts)) {
    if (given.only && !given.only.includes(name)) continue;
    const began = Date.now();
    await part();
    console.log(`${name}: ${Date.now() - began} ms`);
  }
  assert.deepEqual(faults, [], "the page reported faults");
} catch (error) {
  for (const context of browser.contexts()) for (const page of context.pages()) {
    console.error(`at ${page.url()}`);
    await page.screenshot({ path: `${pictures}/failed.png` }).catch(() => {});
    console.error((await page.locator("body").innerText().catch(() => "")).slice(0, 3000));
  }
  console.error(faults.join("\n"));
  console.error(error);
  process.exitCode = 1;
} finally {
  await browser.close();
}
