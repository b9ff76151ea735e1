// Uses the page as a person would, in Chromium, against a daemon that runs.
// Usage: page.mjs URL DIRECTORY; screenshots go to DIRECTORY.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [url, directory] = process.argv.slice(2);
const home = url.split("#")[0];
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const context = await browser.newContext({ viewport: { width: 1100, height: 800 }, colorScheme: "light" });
const page = await context.newPage();
const errors = [];
page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
page.on("pageerror", (error) => errors.push(String(error)));
const shoot = (name) => page.screenshot({ path: `${directory}/${name}.png`, fullPage: true });

// The link signs in; the form makes an instance, which the page sees come up.
await page.goto(url);
await page.waitForSelector(".cards");
await page.goto(`${home}#/new`);
await page.fill("input[name=name]", "shop");
await page.selectOption("select[name=image]", { label: "minimal:latest" });
await page.fill("input[name=memory]", "128");
assert.match(await page.textContent("pre"), /^favo launch minimal:latest shop .*--memory 128M/);
await shoot("new-light");
await page.click('button:text-is("Create")');
await page.waitForSelector('h1:has-text("shop") .running', { timeout: 60000 });
await page.waitForSelector('pre:has-text("Linux version")', { timeout: 60000 });
await page.waitForSelector(".chart path", { timeout: 30000 });
await shoot("instance-light");

// Bulk actions, by keyboard too.
await page.click('nav a[href="#/instances"]');
await page.check('input[aria-label="choose shop"]');
await page.focus('button:text-is("pause")');
await page.keyboard.press("Enter");
await page.waitForSelector("td .paused", { timeout: 30000 });
await shoot("instances-light");
await page.check('input[aria-label="choose shop"]');
await page.click('button:text-is("resume")');
await page.waitForSelector("td .running", { timeout: 30000 });
await page.click("#tasks summary");
await page.waitForSelector('#tasks li:has-text("resume shop: done")', { timeout: 30000 });
await page.click("#tasks summary");

// Dark, and as wide as a telephone: nothing sticks out.
await page.emulateMedia({ colorScheme: "dark" });
for (const view of ["", "instances", "images", "new", "instances/shop"]) {
  await page.goto(`${home}#/${view}`);
  await page.setViewportSize({ width: 1100, height: 800 });
  await page.waitForTimeout(500);
  await shoot(`${view.replace("/", "-") || "overview"}-dark`);
  await page.setViewportSize({ width: 360, height: 740 });
  await page.waitForTimeout(500);
  await shoot(`${view.replace("/", "-") || "overview"}-narrow`);
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.equal(width, 360, `${view} is ${width} wide`);
}

// The trash, and back.
await page.setViewportSize({ width: 1100, height: 800 });
await page.goto(`${home}#/instances`);
await page.check('input[aria-label="choose shop"]');
await page.click('button:text-is("delete")');
await page.waitForSelector("td .trashed", { timeout: 90000 });
await page.check('input[aria-label="choose shop"]');
await page.click('button:text-is("undelete")');
await page.waitForSelector("td .stopped", { timeout: 30000 });
assert.deepEqual(errors, []);

// Without the link nothing is shown, and it worked once.
const stranger = await (await browser.newContext()).newPage();
await stranger.goto(home);
await stranger.waitForSelector('h1:has-text("Sign in")');
await stranger.goto("about:blank");
await stranger.goto(url);
await stranger.waitForSelector('.note:has-text("does not work")');
await browser.close();
console.log("the page does what it should");
