// The page: listens to one stream of events, draws the overview, and reads a workload's columns while
// one is open. What a host cannot tell is shown as absent with its reason, never as zero.
"use strict";

const { amount } = Charts;
const byId = (id) => document.getElementById(id);
const view = new Charts.View(byId("charts"));
const SPANS = [[60, "1 min"], [300, "5 min"], [1800, "30 min"], [21600, "6 h"], [86400, "1 day"]];
let fleet = null;
let open = null;
let span = 300;
let reading = false;

// element(tag, {attributes}, ...children); text is never parsed as HTML.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}
const cell = (text, kind = "") => element("td", { class: kind || null }, text);
const percent = (value, digits = 0) => (value === null || value === undefined ? "–" : `${(value * 100).toFixed(digits)} %`);
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString();
function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}
function table(heads, rows, caption) {
  const head = element("tr", {}, ...heads.map(([text, kind]) => element("th", { scope: "col", class: kind || null }, text)));
  return element("table", {},
    element("caption", { class: "visually-hidden" }, caption),
    element("thead", {}, head), element("tbody", {}, ...rows));
}
function fill(id, ...children) {
  // An open <details> stays open when its card is drawn anew.
  const root = byId(id);
  const opened = new Set([...root.querySelectorAll("details[open]")].map((d) => d.dataset.key));
  root.replaceChildren(...children);
  for (const details of root.querySelectorAll("details")) {
    if (opened.has(details.dataset.key)) details.open = true;
  }
}
const empty = (...parts) => element("div", { class: "empty" }, ...parts);
const code = (text) => element("code", {}, text);

function drawSummary() {
  const up = fleet.hosts.filter((host) => host.connected).length;
  const model = fleet.models.current;
  byId("summary").textContent =
    `${up} of ${fleet.hosts.length} hosts connected · ${fleet.n_workloads} workloads · ` +
    `${fleet.ingested_vectors.toLocaleString()} samples taken in · ` +
    (model === null ? "base forecasts, no model yet" : `model v${model}`);
}

function drawHosts() {
  if (fleet.hosts.length === 0) {
    fill("hosts", empty("No agent has connected yet. Make a certificate with ",
      code("headroom-aggregator issue"), ", put it on the host, and name this aggregator in the agent's ",
      code("[uplink]"), " table."));
    return;
  }
  fill("hosts", ...fleet.hosts.map(hostCard));
}

function hostCard(host) {
  const report = host.report ?? {};
  const known = (value, text) => (value === null || value === undefined ? "not measured" : text(value));
  const facts = [
    ["CPU", known(report.cpu_used_cores, (v) => `${v.toFixed(2)} of ${report.cpus} cores used`) +
      (host.cpu_limited_cores === null ? ", no limits set" : `, limits sum to ${host.cpu_limited_cores.toFixed(2)}`)],
    ["Memory", known(report.memory_available_bytes, (v) => `${amount(v, "bytes")} of ${amount(report.memory_total_bytes, "bytes")} available`)],
    ["Pressure", `CPU ${percent(report.psi_cpu_some, 1)}, memory ${percent(report.psi_memory_some, 1)}, I/O ${percent(report.psi_io_some, 1)}`],
    ["Workloads", String(host.workloads)],
    ["Forecasts", Object.entries(host.forecast_sources).map(([source, n]) => `${n} by ${source}`).join(", ") || "none yet"],
    ["Policy", (host.policy_version === null ? "its own" : `version ${host.policy_version} of this aggregator`) +
      (host.policy_refused === null ? "" : `; refused the last: ${host.policy_refused}`)],
    ["Agent", `${host.agent_version}, ${known(report.agent_cpu_cores, (v) => `${(v * 100).toFixed(1)} % of a core`)}, ${known(report.agent_memory_bytes, (v) => amount(v, "bytes"))}`],
    ["Kernel", host.kernel],
  ];
  const heard = host.heard_s === null ? "no data yet" : `data ${ago(fleet.now_s - host.heard_s)} ago`;
  const missing = host.probes.filter((probe) => probe.state !== "ok");
  const probes = element("details", { "data-key": host.name },
    element("summary", {}, host.probes.length === 0 ? "Sources of facts: not told yet"
      : `Sources of facts: ${host.probes.length - missing.length} ok, ${missing.length} degraded or missing`),
    element("ul", {}, ...[...missing, ...host.probes.filter((probe) => probe.state === "ok")].map((probe) =>
      element("li", {}, element("strong", { class: probe.state === "ok" ? "ok" : "bad" }, `${probe.name}: ${probe.state}`),
        element("span", { class: "quiet" }, ` ${probe.text}`)))));
  return element("article", { class: "card" },
    element("h3", {}, host.name,
      element("span", { class: `state ${host.connected ? "up" : "down"}` }, host.connected ? "connected" : `away since ${clock(host.since_s)}`),
      element("span", { class: "quiet" }, heard)),
    element("dl", {}, ...facts.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)])),
    probes);
}

function limitText(use, unit) {
  if (use.limit.kind === "at") return amount(use.limit.amount, unit);
  return use.limit.kind === "unlimited" ? "none" : "no knob";
}

function drawWorkloads() {
  const wanted = byId("find").value.trim().toLowerCase();
  const rows = fleet.workloads.filter((w) =>
    !wanted || `${w.host} ${w.path} ${w.name} ${w.model_key}`.toLowerCase().includes(wanted));
  if (rows.length === 0) {
    fill("workloads", empty(fleet.workloads.length > 0 ? "No workload matches."
      : "No workload has been reported yet. The first samples come a few seconds after an agent connects."));
    return;
  }
  const drawn = rows.map((w) => {
    const limit = w.cpu.limit.kind === "at" ? w.cpu.limit.amount : null;
    const share = limit !== null && w.cpu.usage !== null ? Math.min(1, w.cpu.usage / limit) : null;
    const meter = share === null ? null : element("span", { class: `meter ${share > 0.9 ? "tight" : ""}`, "aria-hidden": "true" },
      Object.assign(document.createElement("i"), { style: `width:${(share * 100).toFixed(0)}%` }));
    const link = element("a", { href: `#/workload/${encodeURIComponent(w.host)}/${encodeURIComponent(w.path)}`, title: w.path }, w.name.length > 40 ? `${w.name.slice(0, 12)}…` : w.name);
    return element("tr", { class: "pick" },
      element("td", {}, link), cell(w.host), cell(w.kind),
      element("td", { class: "n" }, amount(w.cpu.usage, "cores"), meter),
      cell(amount(w.cpu.p50, "cores"), "n"), cell(amount(w.cpu.p99, "cores"), "n"), cell(limitText(w.cpu, "cores"), "n"),
      element("td", { class: `n ${w.throttled_ratio > 0.01 ? "bad" : ""}` }, percent(w.throttled_ratio, 1)),
      cell(amount(w.memory.usage, "bytes"), "n"), cell(amount(w.memory.p99, "bytes"), "n"), cell(limitText(w.memory, "bytes"), "n"),
      cell(w.cpu.source ?? "none yet"));
  });
  const horizon = fleet.workloads.find((w) => w.cpu.horizon_s !== null)?.cpu.horizon_s;
  const within = horizon === undefined ? "" : ` in ${horizon} s`;
  const shown = fleet.workloads.length < fleet.n_workloads
    ? element("p", { class: "quiet" }, `The busiest ${fleet.workloads.length} of ${fleet.n_workloads}.`) : null;
  fill("workloads", table([["Workload"], ["Host"], ["Kind"], ["CPU", "n"], [`p50${within}`, "n"], [`p99${within}`, "n"], ["Limit", "n"],
    ["Throttled", "n"], ["Memory", "n"], [`p99${within}`, "n"], ["Limit", "n"], ["Forecast by"]], drawn,
    "Workloads with their use, forecast and limits"), ...(shown ? [shown] : []));
}

function drawModels() {
  const { current, train, versions } = fleet.models;
  const progress = train.progress ? `pass ${train.progress.epoch} of ${train.progress.epochs}, loss ${train.progress.loss_validation.toFixed(4)}` : "preparing";
  byId("train").disabled = train.running;
  byId("train-status").textContent = train.running ? `Training: ${progress}.`
    : train.last === null ? "No training run yet." : `Last run, ${clock(train.last_s)}: ${train.last}`;
  if (versions.length === 0) {
    fill("models", empty("There is no model yet. Agents forecast with their base layer meanwhile. The first model is trained when there is enough history."));
    return;
  }
  const against = (other, own) => (other === null || other === undefined ? "–"
    : `${other.toFixed(4)} (${own <= other ? "−" : "+"}${Math.abs((own / other - 1) * 100).toFixed(1)} %)`);
  const rows = [...versions].reverse().map((version) => {
    const e = version.evaluation;
    const accepted = version.accepted_by, refused = Object.entries(version.refused_by);
    const told = element("td", { class: "wrap" }, accepted.length > 0 ? `accepted by ${accepted.join(", ")}` : "nobody has told yet");
    for (const [host, reason] of refused) told.append(element("div", { class: "bad" }, `refused by ${host}: ${reason}`));
    return element("tr", {},
      cell(version.version === current ? `v${version.version}, in use` : `v${version.version}`), cell(clock(version.created_s)),
      cell(e.pinball.toFixed(4), "n"), cell(against(e.pinball_persistence, e.pinball), "n"), cell(against(e.pinball_incumbent, e.pinball), "n"),
      cell(e.coverage.map((c) => percent(c)).join(" "), "n"), cell(`${e.windows_trained} / ${e.windows_held_back}`, "n"),
      element("td", { class: "wrap" }, version.verdict_text), told);
  });
  fill("models", table([["Version"], ["Made"], ["Loss", "n"], ["Persistence", "n"], ["Incumbent", "n"], ["Covers 10 50 90 95 99 %", "n"],
    ["Windows trained / judged", "n"], ["Verdict"], ["Agents"]], rows, "Model versions and how they were judged"));
}

function drawSpans() {
  fill("spans", ...SPANS.map(([seconds, text]) => {
    const button = element("button", { type: "button", "aria-pressed": String(seconds === span) }, text);
    button.addEventListener("click", () => { span = seconds; drawSpans(); readWorkload(); });
    return button;
  }));
}

async function readWorkload() {
  if (!open || reading) return;
  reading = true;
  const wanted = open;
  try {
    const query = new URLSearchParams({ host: open.host, path: open.path, seconds: String(span) });
    const response = await fetch(`/api/workload?${query}`);
    const data = await response.json();
    if (wanted !== open) return;
    if (!response.ok) {
      view.clear();
      byId("workload-facts").textContent = data.error;
      return;
    }
    drawWorkload(data);
    readNeighbours();
  } catch (error) {
    byId("workload-facts").textContent = `Cannot read this workload: ${error.message}`;
  } finally {
    reading = false;
    if (wanted !== open) readWorkload();
  }
}

// Neighbours change slowly and cost the aggregator a look at the whole fleet.
const NEIGHBOURS_EVERY_MS = 15000;
let neighboursAt = 0;

async function readNeighbours() {
  if (!open || Date.now() - neighboursAt < NEIGHBOURS_EVERY_MS) return;
  neighboursAt = Date.now();
  const wanted = open;
  try {
    const query = new URLSearchParams({ host: open.host, path: open.path, n: "8" });
    const response = await fetch(`/api/workload/neighbours?${query}`);
    const data = await response.json();
    if (wanted !== open) return;
    if (response.ok) drawNeighbours(data); else fill("neighbours", empty(`${data.error}.`));
  } catch (error) {
    fill("neighbours", empty(`Cannot compare this workload: ${error.message}`));
  }
}

function drawNeighbours(data) {
  if (data.neighbours.length === 0) {
    fill("neighbours", empty(data.compared === 0 ? "There is no other workload to compare with."
      : `None of ${data.compared} others has enough measured in common to be compared.`));
    return;
  }
  const rows = data.neighbours.map((n) => element("tr", {},
    element("td", {}, element("a", { href: `#/workload/${encodeURIComponent(n.host)}/${encodeURIComponent(n.path)}`, title: n.path }, n.name.length > 40 ? `${n.name.slice(0, 12)}…` : n.name)),
    cell(n.host), cell(n.distance.toFixed(3), "n"), cell(percent(n.comparable), "n"),
    cell(n.demand_distance === null ? "–" : n.demand_distance.toFixed(3), "n")));
  fill("neighbours", table([["Workload"], ["Host"], ["Program distance", "n"], ["Compared", "n"], ["Demand distance", "n"]], rows,
    "Workloads that run the program most like this one's, nearest first"));
}

function drawWorkload(data) {
  const cpu = data.resources.cpu;
  byId("workload-facts").textContent = `${data.host} · ${data.workload.path} · ${data.workload.kind} · model key ${data.workload.model_key} · ` +
    (cpu.source === null ? "no forecast yet" : `forecast by ${cpu.source}, calibration ${percent(cpu.confidence)}`);
  view.draw(data, span);
  const actions = [...data.actions].reverse();
  const shown = (value, unit) => (value === null ? "none" : amount(value, unit));
  fill("actions", actions.length === 0
    ? empty("No limit was changed in this time. Out of the box Headroom only recommends; a workload opts in by policy.")
    : table([["When"], ["Knob"], ["Before", "n"], ["After", "n"], ["Why"]], actions.slice(0, 100).map((a) => element("tr", {},
      cell(clock(a.at_s)), cell(a.knob), cell(shown(a.before, a.unit), "n"), cell(shown(a.after, a.unit), "n"), cell(a.reason, "wrap"))),
    "Changes of limits, newest first"));
  const rows = data.t.slice(-20).map((t, i, times) => {
    const at = data.t.length - times.length + i;
    const of = (name, column) => amount(data.resources[name][column][at], data.resources[name].unit);
    return element("tr", {}, cell(clock(t)), cell(of("cpu", "usage"), "n"), cell(of("cpu", "limit"), "n"), cell(percent(data.throttled_ratio[at], 1), "n"),
      cell(of("memory", "usage"), "n"), cell(of("memory", "limit"), "n"), cell(of("disk", "usage"), "n"), cell(of("network", "usage"), "n"));
  });
  fill("values", table([["Time"], ["CPU", "n"], ["CPU limit", "n"], ["Throttled", "n"], ["Memory", "n"], ["Memory limit", "n"], ["Disk", "n"], ["Network", "n"]],
    rows, "The newest samples"));
}

function route() {
  const [, page, host, path] = location.hash.split("/").map((part) => decodeURIComponent(part));
  open = page === "workload" && host && path ? { host, path } : null;
  byId("overview").hidden = open !== null;
  byId("workload").hidden = open === null;
  view.clear();
  if (open) {
    byId("workload-title").textContent = open.path;
    byId("workload-facts").textContent = "Reading…";
    fill("neighbours");
    neighboursAt = 0;
    document.title = `${open.path} · Headroom`;
    drawSpans();
    readWorkload();
  } else {
    document.title = "Headroom";
    if (fleet) drawOverview();
  }
}

function drawOverview() { drawHosts(); drawWorkloads(); drawModels(); }

function listen() {
  const events = new EventSource("/api/live");
  const say = (text, state) => {
    const link = byId("link");
    if (link.textContent !== text) link.textContent = text;
    link.className = `link ${state}`;
  };
  events.addEventListener("open", () => say("live", "up"));
  events.addEventListener("error", () => say("no connection to the aggregator, trying again", "down"));
  events.addEventListener("fleet", (event) => {
    fleet = JSON.parse(event.data);
    drawSummary();
    if (open) readWorkload(); else drawOverview();
  });
}

byId("find").addEventListener("input", () => { if (fleet) drawWorkloads(); });
byId("train").addEventListener("click", async () => {
  byId("train").disabled = true;
  const response = await fetch("/api/train", { method: "POST" });
  if (!response.ok) byId("train-status").textContent = (await response.json()).error;
});
addEventListener("hashchange", () => { route(); byId("main").focus(); });
addEventListener("resize", () => view.resize());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { view.clear(); readWorkload(); });
route();
listen();
