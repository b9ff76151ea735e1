// The views: each makes its elements from what is known.

import { age, colour, el, quoted, size, state } from "./dom.js";

const UP = ["running", "paused"];
const ACTIONS = [
  ["start", (s) => !UP.includes(s) && s !== "trashed"],
  ["stop", (s) => UP.includes(s) || s === "waiting"],
  ["restart", (s) => UP.includes(s)],
  ["pause", (s) => s === "running"],
  ["resume", (s) => s === "paused"],
  ["undelete", (s) => s === "trashed"],
];

/** Health in a sentence, what is there, who has it. */
export function overview({ host, instances }) {
  const failed = instances.filter((i) => i.status.state === "failed");
  const waiting = instances.filter((i) => i.status.state === "waiting");
  const up = instances.filter((i) => UP.includes(i.status.state));
  const sentence = failed.length
    ? `${failed.map((i) => i.name).join(", ")} failed.`
    : waiting.length
      ? `${waiting.map((i) => i.name).join(", ")} ended and will be started again.`
      : instances.length
        ? `All is well: ${up.length} of ${instances.length} instances run.`
        : "Nothing runs here yet.";
  const open = instances.filter((i) => !i.spec.protect && i.status.state !== "trashed");
  return [
    el("h1", {}, "Overview"),
    el("p", { class: "health" }, sentence, " ", instances.length ? "" : el("a", { href: "#/new" }, "Make an instance")),
    failed.map((i) => el("p", {}, el("a", { href: `#/instances/${i.name}` }, i.name), ": ", i.status.message ?? "")),
    el("div", { class: "cards" },
      card(`${up.length}`, "instances up"),
      card(`${host.cpus_given} of ${host.cpus}`, "processors given", `load ${host.load}`),
      card(size(host.memory_given), `memory given, of ${size(host.memory)}`, `${size(host.memory_available)} could be had`),
      card(size(host.disk_available), `disk free, of ${size(host.disk)}`),
      card(`${open.length}`, "instances not protected from deletion"),
    ),
    el("h2", {}, `Memory of ${host.name}`),
    bar(up, host),
    el("p", { class: "dim" }, `favo ${host.favo}; the daemon itself uses ${size(host.daemon_resident)}.`),
  ];
}

function card(value, label, more) {
  return el("div", { class: "card" }, el("b", {}, value), label, more && el("div", { class: "dim" }, more));
}

/** One host's memory, a piece for each instance: resident, of what it was given. */
function bar(up, host) {
  let x = 0;
  const pieces = up.map((instance) => {
    const width = (100 * (instance.status.resident ?? 0)) / host.memory;
    const piece = el("rect", { x, y: 0, width, height: 10, fill: colour(instance.name) },
      el("title", {}, `${instance.name}: ${size(instance.status.resident ?? 0)} of ${size(instance.spec.memory)}`));
    x += width;
    return piece;
  });
  const other = (100 * (host.memory - host.memory_available)) / host.memory - x;
  if (other > 0) {
    pieces.push(el("rect", { x, y: 0, width: other, height: 10, fill: "gray", opacity: 0.4 }, el("title", {}, "everything else")));
  }
  const key = (name, fill) => el("svg", { width: 10, height: 10, "aria-hidden": "true" }, el("rect", { width: 10, height: 10, fill }));
  return [
    el("div", { class: "bar", role: "img", "aria-label": `Memory in use by ${up.length} instances` },
      el("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none" }, pieces)),
    el("ul", { class: "legend" },
      up.map((i) => el("li", {}, key(i.name, colour(i.name)), el("a", { href: `#/instances/${i.name}` }, i.name), ` ${size(i.status.resident ?? 0)}`)),
      el("li", { class: "dim" }, "gray: everything else")),
  ];
}

/** All instances, with actions on those that are chosen. */
export function list({ instances, chosen, act, again }) {
  const toggle = (name) => (event) => {
    event.target.checked ? chosen.add(name) : chosen.delete(name);
    again();
  };
  const all = instances.length > 0 && instances.every((i) => chosen.has(i.name));
  const rows = instances.map((i) => el("tr", {},
    el("td", {}, el("input", { type: "checkbox", "aria-label": `choose ${i.name}`, checked: chosen.has(i.name), onchange: toggle(i.name) })),
    el("td", {}, el("a", { href: `#/instances/${i.name}` }, i.name)),
    el("td", {}, state(i.status)),
    el("td", { class: "wide" }, i.spec.image),
    el("td", { class: "wide" }, i.spec.cpus),
    el("td", {}, size(i.spec.memory)),
    el("td", { class: "wide" }, i.spec.publish.join(" ")),
    el("td", { class: "wide" }, age(i.created)),
  ));
  const picked = instances.filter((i) => chosen.has(i.name));
  return [
    el("h1", {}, "Instances"),
    el("div", { class: "row" },
      el("a", { href: "#/new" }, el("button", { class: "first", tabindex: -1 }, "New instance")),
      ACTIONS.map(([action, may]) => el("button", {
        disabled: !picked.some((i) => may(i.status.state)),
        onclick: () => picked.filter((i) => may(i.status.state)).forEach((i) => act(i.name, action)),
      }, action)),
      remove(picked, act)),
    el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {},
        el("th", {}, el("input", { type: "checkbox", "aria-label": "choose all", checked: all, onchange: (event) => {
          instances.forEach((i) => (event.target.checked ? chosen.add(i.name) : chosen.delete(i.name)));
          again();
        } })),
        ["Name", "State"].map((text) => el("th", { scope: "col" }, text)),
        ["Image", "CPUs"].map((text) => el("th", { scope: "col", class: "wide" }, text)),
        el("th", { scope: "col" }, "Memory"),
        ["Published", "Age"].map((text) => el("th", { scope: "col", class: "wide" }, text)))),
      el("tbody", {}, rows))),
    instances.length ? "" : el("p", { class: "dim" }, "There are none."),
  ];
}

/** Into the trash first; from there for good, after a question. */
function remove(picked, act) {
  const trashed = picked.length > 0 && picked.every((i) => i.status.state === "trashed");
  return el("button", { class: "danger", disabled: !picked.length, onclick: () => {
    const names = picked.map((i) => i.name).join(", ");
    if (trashed && !confirm(`Remove ${names} for good, disks and all?`)) return;
    picked.forEach((i) => act(i.name, trashed ? "purge" : "delete"));
  } }, trashed ? "delete for good" : "delete");
}

/** One instance. `samples`: its processor and memory use, the youngest last. */
export function instance({ instance: i, samples, log, act }) {
  const fact = (name, value) => (value === undefined || value === "" ? [] : [el("dt", {}, name), el("dd", {}, value)]);
  return [
    el("p", {}, el("a", { href: "#/instances" }, "Instances")),
    el("h1", {}, i.name, " ", state(i.status)),
    i.status.message ? el("p", {}, i.status.message) : "",
    i.status.needs_restart ? el("p", {}, "Its size changes at its next start.") : "",
    el("div", { class: "row" },
      ACTIONS.filter(([, may]) => may(i.status.state)).map(([action]) => el("button", { onclick: () => act(i.name, action) }, action)),
      remove([i], act)),
    el("div", { class: "cards" },
      el("div", { class: "card" }, "Processor", chart(samples.map((s) => s.cpu), 100 * i.spec.cpus), el("span", { class: "dim" }, latest(samples, (s) => `${s.cpu.toFixed(0)} % of ${100 * i.spec.cpus} %`))),
      el("div", { class: "card" }, "Memory", chart(samples.map((s) => s.resident), i.spec.memory), el("span", { class: "dim" }, latest(samples, (s) => `${size(s.resident)} resident, ${size(i.spec.memory)} given`)))),
    el("h2", {}, "What it is"),
    el("dl", { class: "card" },
      fact("image", i.spec.image), fact("processors", `${i.spec.cpus}`), fact("memory", size(i.spec.memory)),
      fact("network", i.spec.network), fact("published", i.spec.publish.join(" ")), fact("limits", i.spec.rate.join(" ")),
      fact("restarted", i.spec.restart.replace("_", " ")), fact("starts with the host", i.spec.autostart ? "yes" : "no"),
      fact("protected", i.spec.protect ? "yes" : "no"), fact("engine", i.status.engine), fact("process", i.status.pid && `${i.status.pid}`),
      fact("labels", Object.entries(i.spec.labels).map(([k, v]) => `${k}=${v}`).join(" ")), fact("uid", i.uid)),
    el("h2", {}, "By command"),
    el("pre", {}, [`favo shell ${i.name}`, `favo console ${i.name}`, `favo show ${i.name} -o yaml`].join("\n")),
    el("h2", {}, "Console"),
    el("pre", { tabindex: 0, "aria-label": "what the console said" }, log),
  ];
}

const latest = (samples, say) => (samples.length ? say(samples[samples.length - 1]) : "no figures yet");

function chart(values, most) {
  const points = values.map((value, index) => `${(100 * index) / Math.max(1, values.length - 1)},${40 - (40 * Math.min(value, most)) / most}`);
  return el("svg", { class: "chart", viewBox: "0 0 100 40", preserveAspectRatio: "none", "aria-hidden": "true" },
    points.length > 1 ? el("path", { d: `M${points.join("L")}` }) : "");
}

/** The form of a new instance, and the same as a command and a request. */
export function create({ images, draft, again, submit }) {
  const field = (name, label, attributes = {}) => el("label", {}, label, el("input", {
    name, value: draft[name], ...attributes, oninput: (event) => { draft[name] = event.target.value; shown(); } }));
  const command = el("pre", {});
  const request = el("pre", {});
  const spec = () => ({
    image: draft.image, cpus: Number(draft.cpus), memory: Math.round(Number(draft.memory)) * 1024 * 1024, network: draft.network,
    publish: draft.publish.split(/\s+/).filter(Boolean),
  });
  const shown = () => {
    const s = spec();
    const words = ["favo", "launch", s.image, draft.name || "NAME", "--cpus", `${s.cpus}`, "--memory", `${draft.memory}M`, "--network", s.network,
      ...s.publish.flatMap((p) => ["--publish", p])];
    command.textContent = words.map(quoted).join(" ");
    const body = JSON.stringify({ name: draft.name || "NAME", spec: s });
    request.textContent = `curl --unix-socket api.sock http://favo/v1/instances \\\n  -H 'Content-Type: application/json' -d ${quoted(body)}`;
  };
  shown();
  return [
    el("h1", {}, "New instance"),
    images.length ? "" : el("p", {}, "There is no image yet: favo image build debian:12"),
    el("form", { class: "fields", onsubmit: (event) => { event.preventDefault(); submit({ name: draft.name, spec: spec() }); } },
      field("name", "Name", { required: true, pattern: "[a-z]([a-z0-9\\-]{0,61}[a-z0-9])?", title: "lower-case letters, digits and hyphens", autofocus: true, autocomplete: "off" }),
      el("label", {}, "Image", el("select", { name: "image", onchange: (event) => { draft.image = event.target.value; shown(); } },
        images.map((image) => el("option", { value: image.name, selected: image.name === draft.image }, image.name)))),
      field("cpus", "Processors", { type: "number", min: 1, max: 64 }),
      field("memory", "Memory in MiB", { type: "number", min: 16, step: 1 }),
      field("network", "Network", { title: "user, none, or the name of a shared one" }),
      field("publish", "Published ports", { placeholder: "127.0.0.1:8080:80" }),
      el("div", { class: "row" }, el("button", { class: "first", disabled: !images.length }, "Create"))),
    el("h2", {}, "The same by command"), command,
    el("h2", {}, "The same by request"), request,
  ];
}

export function images({ images }) {
  return [
    el("h1", {}, "Images"),
    el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, ["Name", "Disk", "Age"].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, images.map((i) => el("tr", {}, el("td", {}, i.name), el("td", {}, size(i.disk_size)),
        el("td", {}, age(new Date(i.created * 1000).toISOString()))))))),
    el("p", { class: "dim" }, "favo image build debian:12 makes one; favo image import FILE takes one."),
  ];
}

export function signIn() {
  return [el("h1", {}, "Sign in"), el("p", {}, "Run ", el("code", {}, "favo up"), " on this host and open the link it prints. It works once.")];
}
