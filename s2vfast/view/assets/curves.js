// The course of runs: a panel a number, over steps or epochs, smoothed as much as one likes.

const runs = DATA.runs.map((run) => ({
  ...run,
  columns: Object.fromEntries(Object.entries(run.columns).map(([key, [steps, values]]) =>
    [key, { steps: unpack(steps), values: unpack(values) }])),
}));
const now = { epochs: false, log: false, smooth: 0.05, hidden: new Set(), at: null };
const panels = DATA.panels.filter(({ lines }) => lines.some(([key]) => runs.some((run) => run.columns[key])));
const colour = (i) => nearby(DATA.colours, i);

// Mean over a window that shrinks at both ends, as s2vfast.view.curves.smooth.
function smoothed(values, width) {
  const total = new Float64Array(values.length + 1);
  for (let i = 0; i < values.length; i++) total[i + 1] = total[i] + values[i];
  return Float64Array.from(values, (_, i) => {
    const half = Math.min(i, values.length - 1 - i, Math.floor(width / 2));
    return (total[i + half + 1] - total[i - half]) / (2 * half + 1);
  });
}

const widthOf = (values) => Math.max(1, Math.round(now.smooth * values.length));
const across = (run, step) => (now.epochs ? step * run.epochs_per_step : step);

function ticks(low, high, log) {
  if (log) {
    const found = [];
    for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
      for (const digit of high - low < 2 ? [1, 2, 5] : [1]) {
        const at = power + Math.log10(digit);
        if (at >= low && at <= high) found.push([at, digit * 10 ** power]);
      }
    }
    const every = Math.ceil(found.length / 7);
    return found.filter((_, i) => i % every === 0);
  }
  const step = nice((high - low) / 3);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push([i * step, i * step]);
  return found;
}

class Panel {
  constructor({ axis, lines }, i) {
    Object.assign(this, { axis, lines });
    this.said = h("p", { class: "status note" });
    this.surface = new Surface(`${axis} over the steps`, i === 0 ? 300 : 210, (c, w, t) => this.draw(c, w, t), {
      pointermove: (e) => this.point(e), pointerdown: (e) => this.point(e),
      pointerleave: () => { now.at = null; redraw(); },
    });
    const dashed = lines.length > 1
      ? [h("p", { class: "note" }, lines.map(([, kind], k) => `${k ? "dashed" : "solid"}: ${kind}`).join("; "))] : [];
    this.element = h("section", { class: `card${i === 0 ? " wide" : ""}` }, h("h2", {}, axis), ...dashed,
      this.surface.canvas, this.said);
  }

  series() {
    return runs.flatMap((run, i) => now.hidden.has(i) ? [] : this.lines.flatMap(([key, kind], k) => {
      const column = run.columns[key];
      return column ? [{ run, i, kind, dashed: k > 0, ...column, mean: smoothed(column.values, widthOf(column.values)) }] : [];
    }));
  }

  point(event) {
    const share = (this.surface.at(event)[0] - this.left) / (this.surface.canvas.clientWidth - this.left - 8);
    now.at = this.x0 + clamp(share, 0, 1) * (this.x1 - this.x0);
    redraw();
  }

  draw(context, width, height) {
    const series = this.series(), bottom = 34, top = 8;
    const up = (v) => (now.log ? (v > 0 ? Math.log10(v) : NaN) : v);
    let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const { run, steps, values, mean } of series) {
      x0 = Math.min(x0, across(run, steps[0]));
      x1 = Math.max(x1, across(run, steps[steps.length - 1]));
      for (const list of [mean, values]) {
        for (const v of list) {
          if (Number.isFinite(up(v))) [y0, y1] = [Math.min(y0, up(v)), Math.max(y1, up(v))];
        }
      }
    }
    if (!series.length || y0 === Infinity) {
      context.fillStyle = css("soft");
      context.fillText(series.length ? "no value can be drawn here" : "no run is shown", 8, 24);
      return;
    }
    if (x1 === x0) [x0, x1] = [x0 - 0.5, x1 + 0.5];
    if (y1 === y0) [y0, y1] = [y0 - (Math.abs(y0) || 1) * 0.1, y1 + (Math.abs(y1) || 1) * 0.1];
    [y0, y1] = [y0 - 0.04 * (y1 - y0), y1 + 0.04 * (y1 - y0)];
    const marks = ticks(y0, y1, now.log);
    this.left = Math.ceil(Math.max(...marks.map(([, v]) => context.measureText(short(v)).width), 10)) + 10;
    Object.assign(this, { x0, x1 });
    const px = (x) => this.left + ((x - x0) / (x1 - x0)) * (width - this.left - 8);
    const py = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - bottom - top);
    context.lineWidth = 1;
    context.strokeStyle = css("floor");
    context.fillStyle = css("soft");
    context.textBaseline = "middle";
    const line = (...points) => {
      context.beginPath();
      points.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](x, y));
      context.stroke();
    };
    context.textAlign = "right";
    for (const [at, v] of marks) {
      line([this.left, py(at)], [width - 8, py(at)]);
      context.fillText(short(v), this.left - 6, py(at));
    }
    context.textAlign = "center";
    for (const [x] of ticks(x0, x1, false)) {
      line([px(x), top], [px(x), height - bottom]);
      if (px(x) < width - 12) context.fillText(String(Number(x.toPrecision(6))), px(x), height - bottom + 10);
    }
    context.fillText(now.epochs ? "epoch" : "step", (this.left + width) / 2, height - 8);
    for (const { run, i, steps, values, mean, dashed } of series) {
      context.strokeStyle = colour(i);
      context.setLineDash(dashed ? [5, 4] : []);
      for (const [list, alpha, wide] of now.smooth ? [[values, 0.25, 1], [mean, 1, 2]] : [[values, 1, 1.5]]) {
        context.globalAlpha = alpha;
        context.lineWidth = wide;
        const points = [];
        for (let k = 0; k < steps.length; k++) {
          if (Number.isFinite(up(list[k]))) points.push([px(across(run, steps[k])), py(up(list[k]))]);
        }
        line(...points);
      }
    }
    context.setLineDash([]);
    context.globalAlpha = 1;
    if (now.at === null) { this.said.textContent = ""; return; }
    context.strokeStyle = css("soft");
    context.lineWidth = 1;
    if (now.at >= x0 && now.at <= x1) line([px(now.at), top], [px(now.at), height - bottom]);
    const words = series.map(({ run, i, kind, steps, values }) => {
      let k = 0;
      while (k + 1 < steps.length && across(run, steps[k + 1]) <= now.at) k++;
      const name = [runs.length > 1 ? run.name : "", kind].filter(Boolean).join(" ");
      return `${name ? `${name}: ` : ""}${short(values[k])}`;
    });
    this.said.textContent = `${now.epochs ? "epoch" : "step"} ${short(now.at)}: ${words.join(", ")}`;
  }
}

const drawn = panels.map((panel, i) => new Panel(panel, i));
const redraw = () => drawn.forEach((panel) => panel.surface.redraw());

const legend = runs.map((run, i) => {
  const dot = new Surface("", 18, (c) => { c.fillStyle = colour(i); c.fillRect(1, 6, 16, 6); });
  const button = h("button", {
    "aria-pressed": "true",
    click: () => {
      now.hidden[now.hidden.has(i) ? "delete" : "add"](i);
      button.setAttribute("aria-pressed", String(!now.hidden.has(i)));
      redraw();
    },
  }, dot.canvas, run.name);
  return button;
});
const said = h("output", {}, "5 %");
const slider = h("input", {
  type: "range", min: 0, max: 0.2, step: 0.01, value: now.smooth, "aria-label": "smoothing, per cent of the run",
  input: () => { now.smooth = Number(slider.value); said.value = `${Math.round(100 * now.smooth)} %`; redraw(); },
});
MAIN.classList.add("two");
MAIN.append(
  h("section", { class: "card wide" },
    h("div", { class: "row" }, choice("over", ["steps", "epochs"], 0, (i) => { now.epochs = i === 1; redraw(); }),
      h("label", {}, "smoothing", slider, said),
      h("label", {}, h("input", { type: "checkbox", change: (e) => { now.log = e.target.checked; redraw(); } }),
        "logarithmic")),
    ...(runs.length > 1 ? [h("div", { class: "legend" }, ...legend)] : []),
    h("p", { class: "note" }, "Pale: what was logged. Strong: its mean over that share of the run.")),
  ...drawn.map((panel) => panel.element),
);
