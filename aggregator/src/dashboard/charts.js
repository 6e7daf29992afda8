// Draws one workload: use, the band that was forecast for past moments and the one ahead of now, the
// limit as a step line, throttled time as a strip, and changes of limits as markers.
"use strict";

const Charts = (() => {
  const colour = (name) => {
    // A canvas does not resolve light-dark(): the browser does it for an element.
    const probe = document.createElement("span");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  };
  const faded = (value, share) => {
    const parts = value.match(/[\d.]+/g);
    return `rgba(${parts[0]}, ${parts[1]}, ${parts[2]}, ${share})`;
  };

  const UNITS = {
    "cores": (v) => (v < 10 ? v.toFixed(2) : v.toFixed(1)),
    "bytes": (v) => scaled(v, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]),
    "bytes/s": (v) => scaled(v, 1000, ["B/s", "kB/s", "MB/s", "GB/s"]),
  };
  function scaled(value, base, names) {
    let i = 0;
    while (Math.abs(value) >= base && i < names.length - 1) { value /= base; i += 1; }
    return `${value >= 100 || i === 0 ? value.toFixed(0) : value.toFixed(1)} ${names[i]}`;
  }
  function amount(value, unit) {
    if (value === null || value === undefined) return "–";
    const text = UNITS[unit](value);
    return unit === "cores" ? `${text} cores` : text;
  }

  // One row of times for everything a chart shows; a column has null where it says nothing.
  function columns(data, resource) {
    const r = data.resources[resource];
    const rows = new Map();
    const at = (t) => {
      const key = Math.round(t * 10);
      if (!rows.has(key)) rows.set(key, { t, use: null, limit: null, band: null, throttled: null });
      return rows.get(key);
    };
    data.t.forEach((t, i) => {
      const row = at(t);
      row.use = r.usage[i];
      row.limit = r.limit[i];
      row.throttled = data.throttled_ratio[i];
    });
    const band = (part) => part.t.forEach((t, i) => { at(t).band = part.quantiles.map((q) => q[i]); });
    band(r.past);
    band(r.ahead);
    if (r.limit_now !== null && r.ahead.t.length > 0) {
      r.ahead.t.forEach((t) => { at(t).limit = r.limit_now; });
    }
    const sorted = [...rows.values()].sort((a, b) => a.t - b.t);
    join(sorted, Math.max(10, 3 * (data.bucket_s ?? 1)));
    const level = (i) => sorted.map((row) => (row.band ? row.band[i] : null));
    return {
      rows: sorted,
      plot: [
        sorted.map((row) => row.t), level(0), level(2), level(1), level(4),
        sorted.map((row) => row.limit), sorted.map((row) => row.use),
      ],
    };
  }

  // Forecasts come every few samples: rows between two of them get a value on the way. Where none
  // came for longer than `longest` seconds the band has a gap.
  function join(rows, longest) {
    let last = -1;
    rows.forEach((row, i) => {
      if (row.band === null) return;
      const from = rows[last];
      if (last >= 0 && row.t - from.t <= longest) {
        for (let k = last + 1; k < i; k += 1) {
          const share = (rows[k].t - from.t) / (row.t - from.t);
          rows[k].band = from.band.map((v, q) => v + share * (row.band[q] - v));
        }
      }
      last = i;
    });
  }

  // Where there is no limit the step line breaks; a use that is not measured breaks its line.
  function options(width, unit, data, state) {
    const use = colour("use"), limit = colour("limit"), quiet = colour("quiet"), line = colour("line");
    const axis = { stroke: quiet, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const bandLine = { stroke: "transparent", points: { show: false } };
    return {
      width, height: 230, cursor: { points: { show: false } }, legend: { show: false },
      scales: {
        x: { time: true, range: () => [state.from, state.to] },
        y: { range: (u, min, max) => [0, Math.max(max ?? 0, state.floor) * 1.08] },
      },
      axes: [axis, { ...axis, size: 84, values: (u, ticks) => ticks.map((v) => UNITS[unit](v)) }],
      series: [
        {},
        bandLine, bandLine,
        { stroke: faded(use, 0.75), width: 1, dash: [2, 4], points: { show: false } },
        { stroke: faded(use, 0.9), width: 1.5, dash: [7, 4], points: { show: false } },
        { stroke: limit, width: 2, paths: uPlot.paths.stepped({ align: -1 }), points: { show: false } },
        { stroke: use, width: 2, points: { show: false } },
      ],
      bands: [{ series: [2, 1], fill: faded(use, 0.22) }],
      hooks: { draw: [(u) => decorate(u, state)] },
    };
  }

  // "Now", the strip of throttled time, and markers of changes.
  function decorate(u, state) {
    const ctx = u.ctx, { left, top, width, height } = u.bbox;
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    const now = u.valToPos(state.now, "x", true);
    ctx.strokeStyle = colour("quiet");
    ctx.setLineDash([3, 3]);
    ctx.beginPath(); ctx.moveTo(now, top); ctx.lineTo(now, top + height); ctx.stroke();
    ctx.setLineDash([]);
    if (state.throttled) {
      const strip = 7 * devicePixelRatio;
      ctx.fillStyle = colour("bad");
      for (const row of state.rows) {
        if (!(row.throttled > 0)) continue;
        const x = u.valToPos(row.t, "x", true), from = u.valToPos(row.t - state.step, "x", true);
        ctx.globalAlpha = Math.min(1, 0.35 + row.throttled);
        ctx.fillRect(from, top + height - strip, Math.max(1, x - from), strip);
      }
      ctx.globalAlpha = 1;
    }
    ctx.fillStyle = colour("limit");
    for (const action of state.actions) {
      const x = u.valToPos(action.at_s, "x", true), size = 6 * devicePixelRatio;
      const isRaise = action.after === null || (action.before !== null && action.after > action.before);
      const y = top + size * 1.4;
      ctx.beginPath();
      ctx.moveTo(x - size, isRaise ? y + size / 2 : y - size / 2);
      ctx.lineTo(x + size, isRaise ? y + size / 2 : y - size / 2);
      ctx.lineTo(x, isRaise ? y - size : y + size);
      ctx.fill();
    }
    ctx.restore();
  }

  function sentence(data, resource, r) {
    const last = [...r.usage].reverse().find((v) => v !== null);
    const parts = [`${resource} use ${last === undefined ? "not measured" : amount(last, r.unit)}`];
    if (r.ahead.t.length > 0) {
      const top = Math.max(...r.ahead.quantiles[4]), seconds = Math.round(r.ahead.t.at(-1) - data.now_s);
      parts.push(`99th percentile of the forecast up to ${amount(top, r.unit)} within ${Math.max(0, seconds)} s`);
    } else {
      parts.push("no forecast yet");
    }
    parts.push(r.limit_now === null ? "no limit" : `limit ${amount(r.limit_now, r.unit)}`);
    return `${parts.join(", ")}.`;
  }

  const TITLES = { cpu: "CPU", memory: "Memory", disk: "Disk", network: "Network" };
  const KNOBS = { cpu: ["cpu_quota"], memory: ["memory_max", "memory_high"], disk: [], network: [] };

  class View {
    constructor(root) { this.root = root; this.plots = new Map(); }

    clear() {
      for (const { plot } of this.plots.values()) plot.destroy();
      this.plots.clear();
      this.root.replaceChildren();
    }

    draw(data, seconds) {
      for (const resource of ["cpu", "memory", "disk", "network"]) this.one(resource, data, seconds);
    }

    one(resource, data, seconds) {
      const r = data.resources[resource];
      const { rows, plot } = columns(data, resource);
      const aheadTo = r.ahead.t.at(-1) ?? data.now_s;
      const state = {
        rows, now: data.now_s, from: data.now_s - seconds,
        to: Math.max(aheadTo, data.now_s) + seconds * 0.02,
        step: data.bucket_s ?? 1, throttled: resource === "cpu",
        floor: { cpu: 0.1, memory: 16 * 1048576, disk: 10000, network: 10000 }[resource],
        actions: data.actions.filter((a) => KNOBS[resource].includes(a.knob)),
      };
      const entry = this.plots.get(resource) ?? this.make(resource, r);
      const text = sentence(data, TITLES[resource], r);
      entry.canvas.setAttribute("aria-label", text);
      entry.fact.textContent = text;
      if (!entry.plot) {
        entry.state = state;
        entry.plot = new uPlot(options(this.width(), r.unit, data, state), plot, entry.canvas);
        this.plots.set(resource, entry);
      } else {
        Object.assign(entry.state, state);
        entry.plot.setData(plot);
      }
    }

    width() { return Math.max(320, this.root.clientWidth); }

    resize() { for (const { plot } of this.plots.values()) plot.setSize({ width: this.width(), height: 230 }); }

    make(resource) {
      const figure = document.createElement("figure");
      figure.className = "chart";
      const caption = document.createElement("figcaption");
      const title = document.createElement("strong");
      title.textContent = TITLES[resource];
      const fact = document.createElement("span");
      const keys = document.createElement("span");
      keys.className = "key";
      const key = (kind, style, text) => {
        const mark = document.createElement("i");
        mark.className = kind;
        Object.assign(mark.style, style);
        const label = document.createElement("span");
        label.textContent = `${text}   `;
        keys.append(mark, label);
      };
      key("", { color: "var(--use)" }, "use");
      key("band", { background: "var(--use)" }, "forecast 10–90 %");
      key("", { color: "var(--use)", borderTopStyle: "dashed" }, "99 %");
      if (KNOBS[resource].length > 0) key("", { color: "var(--limit)" }, "limit, ▲▼ changed");
      if (resource === "cpu") key("band", { background: "var(--bad)", opacity: "1" }, "throttled");
      caption.append(title, fact, keys);
      const canvas = document.createElement("div");
      canvas.setAttribute("role", "img");
      figure.append(caption, canvas);
      this.root.append(figure);
      return { canvas, fact, plot: null, state: null };
    }
  }

  return { View, amount };
})();
