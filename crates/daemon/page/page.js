// The page: knows what is there, asks again when the daemon says that it
// changed, and shows the view the address names.

import { age, el } from "./dom.js";
import * as views from "./views.js";

const known = { host: undefined, instances: [], images: [], tasks: [] };
const chosen = new Set();
const samples = new Map();
const draft = { name: "", image: "", cpus: "1", memory: "1024", network: "user", publish: "" };
let log = "";
let signedIn = true;

async function ask(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: body ? { "content-type": "application/json" } : {},
    body: body && JSON.stringify(body),
  });
  if (answer.status === 401) {
    signedIn = false;
    throw new Error("signed out");
  }
  const type = answer.headers.get("content-type") ?? "";
  const value = type.includes("json") ? await answer.json() : await answer.text();
  if (!answer.ok) throw new Error([value.message ?? answer.statusText, value.hint].filter(Boolean).join(" – "));
  return value;
}

function note(text) {
  const shown = el("div", { class: "note" }, text);
  document.getElementById("notes").append(shown);
  setTimeout(() => shown.remove(), 10000);
}

async function act(name, action) {
  try {
    const path = `/v1/instances/${name}`;
    if (action === "delete" || action === "purge") await ask("DELETE", `${path}?purge=${action === "purge"}`);
    else await ask("POST", `${path}/${action}`);
    chosen.delete(name);
  } catch (error) {
    note(`${name}: ${error.message}`);
  }
}

async function submit(create) {
  try {
    await ask("POST", "/v1/instances", create);
    draft.name = "";
    location.hash = `#/instances/${create.name}`;
  } catch (error) {
    note(error.message);
  }
}

async function load() {
  const [host, instances, images, tasks] = await Promise.all([
    ask("GET", "/v1/host"),
    ask("GET", "/v1/instances?all=true"),
    ask("GET", "/v1/images"),
    ask("GET", "/v1/tasks?limit=20"),
  ]);
  Object.assign(known, { host, instances: instances.items, images: images.items, tasks: tasks.items });
  draft.image ||= known.images[0]?.name ?? "";
  for (const instance of known.instances) sample(instance);
  const name = opened();
  if (name) log = await ask("GET", `/v1/instances/${name}/logs`).then((text) => readable(text), () => "");
  return instances.revision;
}

/** What a terminal would show, roughly: without what moves its cursor. */
function readable(text) {
  // eslint-disable-next-line no-control-regex
  return text.replace(/\u001b\[[0-9;?]*[A-Za-z]|\u001b[()][A-Z0-9]|\r/g, "").slice(-20000);
}

function sample(instance) {
  const { uid, status } = instance;
  const list = samples.get(uid) ?? [];
  const time = performance.now();
  const last = list[list.length - 1];
  if (status.cpu_ms === undefined || (last && time - last.time < 900)) return;
  const cpu = last && status.cpu_ms >= last.cpu_ms ? (100 * (status.cpu_ms - last.cpu_ms)) / (time - last.time) : 0;
  list.push({ time, cpu, cpu_ms: status.cpu_ms, resident: status.resident ?? 0 });
  samples.set(uid, list.slice(-120));
}

function opened() {
  return /^#\/instances\/([a-z0-9-]+)$/.exec(location.hash)?.[1];
}

function show() {
  const main = document.getElementById("main");
  const { hash } = location;
  // A form that is being filled in is left alone.
  if (hash === "#/new" && main.dataset.view === "#/new") return;
  const instance = known.instances.find((i) => i.name === opened());
  const view = !signedIn
    ? views.signIn()
    : hash === "#/new"
      ? views.create({ images: known.images, draft, again: show, submit })
      : hash === "#/images"
        ? views.images(known)
        : hash === "#/instances"
          ? views.list({ instances: known.instances, chosen, act, again: show })
          : opened()
            ? instance
              ? views.instance({ instance, samples: samples.get(instance.uid) ?? [], log, act })
              : [el("h1", {}, "There is no such instance")]
            : known.host
              ? views.overview(known)
              : [el("p", {}, "One moment…")];
  const focused = focus(main);
  const before = main.dataset.view === hash && main.querySelector("pre[tabindex]");
  const end = !before || before.scrollHeight - before.scrollTop - before.clientHeight < 8;
  const top = before ? before.scrollTop : 0;
  main.replaceChildren(...view.flat(9).filter((child) => child !== undefined && child !== null));
  main.dataset.view = hash;
  // A console is read at its end, unless somebody looks further up.
  const said = main.querySelector("pre[tabindex]");
  if (said) said.scrollTop = end ? said.scrollHeight : top;
  focused?.();
  for (const link of document.querySelectorAll("nav a")) {
    const target = link.getAttribute("href");
    const current = target === "#/" ? hash === "" || hash === "#/" : hash.startsWith(target);
    current ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  tasks();
}

/** Puts the keyboard's focus back where it was, after the view was made anew. */
function focus(main) {
  const all = () => [...main.querySelectorAll("a, button, input, select, pre[tabindex]")];
  const index = all().indexOf(document.activeElement);
  return index < 0 ? undefined : () => all()[index]?.focus({ preventScroll: true });
}

function tasks() {
  const busy = known.tasks.filter((task) => task.state === "running").length;
  const drawer = document.getElementById("tasks");
  drawer.querySelector("summary").textContent = busy ? `Tasks: ${busy} under way` : "Tasks";
  drawer.querySelector("ol").replaceChildren(...known.tasks.map((task) =>
    el("li", {}, `${task.action} ${task.instance}: ${task.state}${task.message ? `, ${task.message}` : ""} `, el("span", { class: "dim" }, age(task.created)))));
}

function live(text) {
  document.getElementById("live").textContent = text;
}

let due;
/** Looks again soon, once for many events. */
function soon() {
  due ??= setTimeout(async () => {
    due = undefined;
    await look();
  }, 150);
}

async function look() {
  try {
    const revision = await load();
    live("live");
    show();
    return revision;
  } catch (error) {
    live(signedIn ? "the daemon does not answer" : "");
    show();
    return undefined;
  }
}

function watch(revision) {
  const events = new EventSource(`/v1/events?from=${revision + 1}`);
  events.onmessage = soon;
  events.onerror = () => {
    live("connecting again…");
    // The browser goes on by itself, unless the daemon said no.
    if (events.readyState === EventSource.CLOSED) setTimeout(begin, 2000);
  };
}

async function begin() {
  const code = /^#code=([0-9a-f]+)$/.exec(location.hash)?.[1];
  if (code) {
    history.replaceState(null, "", "#/");
    await ask("POST", "/v1/sign-in", { code }).catch((error) => note(error.message));
  }
  const revision = await look();
  if (revision !== undefined) watch(revision);
  else if (signedIn) setTimeout(begin, 2000);
}

addEventListener("hashchange", async () => {
  log = "";
  show();
  document.getElementById("main").focus({ preventScroll: true });
  await look();
});
setInterval(() => document.hidden || !signedIn || look(), 2000);
begin();
