// People in a real browser, before the real control plane and a real provider. Run by `people.rs` with a JSON object:
// where the page is, tokens, a call. Exits with 1 at the first thing that is not so, and says what.
import { createRequire } from "node:module";
import { existsSync, mkdirSync } from "node:fs";
import assert from "node:assert/strict";

const require = createRequire(new URL("../../setup/", import.meta.url));
const { chromium } = require("playwright-core");

const given = JSON.parse(process.argv[2]);
const { url } = given;
const PATIENCE = 60_000;
const program = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
assert.ok(program, "there is no Chromium; tests/setup.sh installs it");
mkdirSync(given.pictures, { recursive: true });

const browser = await chromium.launch({ executablePath: program, args: ["--no-sandbox", "--force-color-profile=srgb"] });
const faults = [];
const passed = (name) => console.log(`passed: ${name}`);

/** A browser of somebody's, with a page that notes what its policy reports and what its scripts throw. */
async function newPage() {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  context.setDefaultTimeout(PATIENCE);
  await context.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`));
    globalThis.alert = () => console.error("CSP: a payload ran as a script");
  });
  const page = await context.newPage();
  page.on("pageerror", (error) => page.url().startsWith(url) && faults.push(`a script threw: ${error.stack ?? error}`));
  page.on("console", (message) => {
    if (page.url().startsWith(url) && /CSP:|Content.Security.Policy/i.test(message.text())) faults.push(`at ${page.url()}: ${message.text()}`);
  });
  return page;
}

const until = async (what, check) => {
  const end = Date.now() + PATIENCE;
  for (;;) {
    const found = await check();
    if (found) return found;
    assert.ok(Date.now() < end, `waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
};

const form = (page) => page.locator("main.login");
const actor = (page, name) => page.locator("header.top").getByRole("button", { name });
const cookies = async (page) => (await page.context().cookies(url)).filter(({ name }) => name.startsWith("mcpg-"));

async function paste(page, token) {
  await form(page).locator("input").fill(token);
  await form(page).getByRole("button", { name: "Log in", exact: true }).click();
}

/** In by a token, not into another org, and out. */
async function byToken() {
  const page = await newPage();
  await page.goto(`${url}/ledger?org=acme`);
  await form(page).waitFor();
  assert.equal(await page.locator("header.top").count(), 0, "nothing but the form is there for who is not known");
  await paste(page, "no token at all");
  await form(page).getByText("no such token").waitFor();
  await paste(page, given.reader);
  await actor(page, "service:reader").waitFor();
  assert.equal(new URL(page.url()).pathname, "/ledger", "they go on where they were");
  const kept = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href, document.documentElement.outerHTML]));
  assert.ok(!kept.includes(given.reader), "the page keeps no token");
  const [cookie] = await cookies(page);
  assert.deepEqual([cookie.httpOnly, cookie.sameSite], [true, "Strict"]);
  passed("a token becomes a session, and is kept nowhere");

  const refusal = async (org) => {
    await page.goto(`${url}/?org=${org}`);
    const failure = page.locator(".failure", { hasText: "No such org" }).first();
    await failure.waitFor();
    return failure.innerText();
  };
  assert.equal(await refusal("umbrella"), await refusal("nowhere"), "another's org looks like none");
  passed("an org of others does not exist");

  await page.goto(`${url}/calls/${given.call}?org=acme`);
  const trace = page.locator("[data-trace]");
  await trace.waitFor();
  assert.equal(await trace.getAttribute("href"), given.trace);
  assert.equal(await trace.getAttribute("rel"), "noopener noreferrer");
  const payload = page.locator("[data-payload]");
  await payload.getByRole("textbox").fill("a reader is curious");
  await payload.getByRole("button", { name: "View the payload" }).click();
  await payload.getByRole("alert").getByText("You lack the role").waitFor();
  passed("a call leads to its trace, and its payload opens for a right alone");

  await actor(page, "service:reader").click();
  await page.getByRole("menuitem", { name: "Log out" }).click();
  await form(page).waitFor();
  assert.deepEqual(await cookies(page), [], "the cookie is gone");
  await page.goBack();
  await form(page).waitFor();
  assert.ok(!(await page.locator("body").innerText()).includes("search_code"), "nothing of what was seen is left");
  await page.context().addCookies([cookie]);
  await page.goto(`${url}/ledger?org=acme`);
  await form(page).waitFor();
  passed("out: also going back, and for a cookie that was copied");
  await page.context().close();
}

async function provider(page, name) {
  await form(page).getByRole("link", { name: "Log in with your provider" }).click();
  await page.locator("input[name=login]").fill(name);
  await page.locator("input[name=password]").fill("any");
  await page.locator("button[type=submit]").click();
  // Then it asks for the consent.
  await page.locator("input[name=prompt][value=consent]").waitFor({ state: "attached" });
  await page.locator("button[type=submit]").click();
  await page.waitForURL((at) => at.origin === new URL(url).origin);
}

/** In by the provider; a payload is seen, and gone. */
async function byProvider() {
  const page = await newPage();
  const path = `/calls/${given.call}?org=acme`;
  await page.goto(url + path);
  await provider(page, "alice");
  await actor(page, "user:alice@acme.example").waitFor();
  await until("them to come back to where they were", async () => page.url() === url + path);
  passed("a login with the provider leads back");

  const payload = page.locator("[data-payload]");
  const shown = payload.locator("pre");
  await payload.getByRole("textbox").fill("incident 4711, as asked for by bob");
  await payload.getByRole("button", { name: "View the payload" }).click();
  await shown.waitFor();
  assert.deepEqual(JSON.parse(await shown.innerText()), JSON.parse(given.payload));
  assert.equal(await shown.locator("a, img, script").count(), 0, "what is in a payload is text");
  await payload.getByText("of the ledger").waitFor();
  const [file] = await Promise.all([page.waitForEvent("download"), payload.getByRole("button", { name: "save as a file" }).click()]);
  assert.equal(file.suggestedFilename(), "payload-request.bin");
  await page.evaluate(() => {
    Object.defineProperty(document, "visibilityState", { value: "hidden", configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  });
  await shown.waitFor({ state: "detached" });
  assert.ok(!(await page.content()).includes("evil.example"), "a page that is hidden holds no payload");
  passed("a payload is seen for a reason, as text, and gone when the page is hidden");

  // An operator ends her sessions while she is at work.
  await page.goto(`${url}/?org=acme`);
  await actor(page, "user:alice@acme.example").waitFor();
  const end = async (org) => {
    const answer = await fetch(`${url}/v1/orgs/${org}/sessions/revoke`, { method: "POST", headers: { authorization: `Bearer ${given.operator}`, "content-type": "application/json" }, body: "{}" });
    assert.equal(answer.status, 200, await answer.text());
  };
  await end("acme");
  await until("the page to notice", async () => {
    await page.keyboard.press("r");
    return page.locator(".failure").getByRole("link", { name: "Log in again" }).first().isVisible();
  });
  await end("umbrella");
  await until("the page to notice that all is over", async () => {
    await page.keyboard.press("r");
    return form(page).isVisible();
  });
  passed("a session that an operator ends is over on the page as well");
  await page.context().close();
}

/** A link leads no login elsewhere, and puts no markup into the page. */
async function byHostileLink() {
  const page = await newPage();
  const markup = "<img src=x onerror=alert(1)>";
  await page.goto(`${url}/?org=acme&login_error=${encodeURIComponent(markup)}`);
  await form(page).getByRole("alert").getByText(markup).waitFor();
  assert.equal(await form(page).locator("img").count(), 0, "what a link says is text");
  await paste(page, given.reader);
  await actor(page, "service:reader").waitFor();
  await until("the login's end to be said no more", async () => !new URL(page.url()).searchParams.has("login_error"));
  await page.context().clearCookies();

  for (const to of ["//elsewhere.example/", "/\\elsewhere.example/", "/\t/elsewhere.example/", "https://elsewhere.example/", "javascript:alert(1)"]) {
    const link = `return_to=${encodeURIComponent(to)}`;
    const answer = await page.goto(`${url}/v1/session/login?${link}`);
    assert.equal(answer.status(), 400, `the login takes ${JSON.stringify(to)} for a way back`);
    await page.goto(`${url}/login?${link}`);
    const provider = await form(page).getByRole("link", { name: "Log in with your provider" }).getAttribute("href");
    assert.equal(new URL(provider, url).searchParams.get("return_to"), "/", `the page takes ${JSON.stringify(to)} for a way back`);
    await paste(page, given.reader);
    await actor(page, "service:reader").waitFor();
    const at = new URL(page.url());
    assert.deepEqual([at.origin, at.pathname], [new URL(url).origin, "/"], `where a login leads with ${JSON.stringify(to)}`);
    await page.context().clearCookies();
  }
  passed("no link leads a login elsewhere, or writes into the page");
  await page.context().close();
}

/** A page that nobody touches does not keep its session, and says that it is over. */
async function idle() {
  const page = await newPage();
  await page.goto(`${url}/sql?org=acme`);
  await form(page).waitFor();
  await paste(page, given.reader);
  await actor(page, "service:reader").waitFor();
  await form(page).getByText("Your session has ended").waitFor();
  assert.equal(await page.locator("header.top").count(), 0, "nothing of what was seen is left");
  await paste(page, given.reader);
  await actor(page, "service:reader").waitFor();
  assert.equal(new URL(page.url()).pathname, "/sql", "they go on where they were");
  passed("a session that nobody uses ends on the page too");
  await page.context().close();
}

const parts = { byToken, byProvider, byHostileLink, idle };
try {
  for (const name of given.parts) await parts[name]();
  assert.deepEqual(faults, [], "the page reported faults");
} catch (error) {
  for (const context of browser.contexts()) for (const page of context.pages()) {
    console.error(`at ${page.url()}`);
    await page.screenshot({ path: `${given.pictures}/failed.png` }).catch(() => {});
    console.error((await page.locator("body").innerText().catch(() => "")).slice(0, 3000));
  }
  console.error(faults.join("\n"));
  console.error(error);
  process.exitCode = 1;
} finally {
  await browser.close();
}
