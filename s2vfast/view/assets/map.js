// A map of features: colour and shape say the class, filled or outlined the part; the chosen point plays its sequence.

const labels = unpack(DATA.labels), parts = unpack(DATA.parts), places = unpack(DATA.places);
const n = labels.length;
const low = [0, 1].map((k) => places.reduce((a, v, i) => (i % 2 === k ? Math.min(a, v) : a), Infinity));
const high = [0, 1].map((k) => places.reduce((a, v, i) => (i % 2 === k ? Math.max(a, v) : a), -Infinity));
const view = { zoom: 1, x: 0, y: 0 }; // the middle of what is seen, as a share of the whole from its middle
const hidden = new Set(); // parts
let lit = null; // the class that is highlighted
let chosen = null;

const star = [...Array(10).keys()].map((i) => {
  const [r, a] = [i % 2 ? 0.5 : 1.25, (i * Math.PI) / 5];
  return [r * Math.sin(a), -r * Math.cos(a)];
});
const SHAPES = [null, [[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]], [[0, -1.1], [1, 0.8], [-1, 0.8]],
  [[0, 1.1], [1, -0.8], [-1, -0.8]], [[0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]], star,
  [[-1.1, 0], [0.8, 1], [0.8, -1]], [[1.1, 0], [-0.8, 1], [-0.8, -1]]];

function mark(context, label, x, y, size, filled) {
  const [colour, shape] = DATA.styles[label];
  context.beginPath();
  if (SHAPES[shape]) SHAPES[shape].forEach(([a, b], i) => context[i ? "lineTo" : "moveTo"](x + a * size, y + b * size));
  else context.arc(x, y, size, 0, 2 * Math.PI);
  context.closePath();
  context.fillStyle = context.strokeStyle = DATA.colours[colour];
  context.lineWidth = 1.4;
  if (filled) context.fill();
  context.stroke();
}

const LEFT = 26, BOTTOM = 26;

function place(i, width, height) {
  return [0, 1].map((k) => {
    const share = (places[2 * i + k] - low[k]) / (high[k] - low[k] || 1) - 0.5;
    const room = (k ? height - BOTTOM : width - LEFT) - 24;
    const at = (k ? -1 : 1) * (share - (k ? view.y : view.x)) * view.zoom * room;
    return at + (k ? (height - BOTTOM) / 2 : (width + LEFT) / 2);
  });
}

const shows = (i) => !hidden.has(parts[i]) && (lit === null || labels[i] === lit);

const surface = new Surface(`map of ${n} sequences; arrow keys go from one to the next`,
  (width) => clamp(width * 0.8, 320, innerHeight * 0.75), (context, width, height) => {
    context.save();
    context.beginPath();
    context.rect(LEFT, 0, width - LEFT, height - BOTTOM);
    context.clip();
    for (const clear of [false, true]) {
      for (let i = 0; i < n; i++) {
        if (hidden.has(parts[i]) || shows(i) !== clear) continue;
        context.globalAlpha = clear ? 0.9 : 0.12;
        mark(context, labels[i], ...place(i, width, height), 4, parts[i] === 0);
      }
    }
    context.globalAlpha = 1;
    if (chosen !== null) {
      context.beginPath();
      context.arc(...place(chosen, width, height), 10, 0, 2 * Math.PI);
      context.lineWidth = 2.5;
      context.strokeStyle = css("text");
      context.stroke();
    }
    context.restore();
    context.strokeStyle = css("line");
    context.lineWidth = 1;
    context.strokeRect(LEFT + 0.5, 0.5, width - LEFT - 1, height - BOTTOM - 1);
    context.fillStyle = css("soft");
    context.textAlign = "center";
    context.fillText(DATA.axes[0], (width + LEFT) / 2, height - 8);
    context.translate(14, (height - BOTTOM) / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(DATA.axes[1], 0, 0);
  }, {
    class: "turns", tabindex: 0,
    pointerdown: (e) => { drag = [...surface.at(e), view.x, view.y]; moved = false; },
    pointermove: (e) => move(e),
    pointerup: (e) => { if (drag && !moved) choose(nearest(e, 28)); drag = null; },
    pointercancel: () => { drag = null; },
    pointerleave: () => { drag = null; },
    keydown: (e) => {
      const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[e.key];
      if (!step) return;
      e.preventDefault();
      for (let tried = 1; tried <= n; tried++) {
        const i = ((chosen ?? (step > 0 ? -1 : 0)) + step * tried + 2 * n) % n;
        if (shows(i)) { choose(i); break; }
      }
    },
  });
let drag = null, moved = false;

function move(event) {
  if (!drag) {
    const near = event.pointerType === "mouse" ? nearest(event, 12) : null;
    if (near !== null && near !== chosen) choose(near);
    return;
  }
  const [x, y] = surface.at(event);
  moved ||= Math.hypot(x - drag[0], y - drag[1]) > 5;
  const { clientWidth, clientHeight } = surface.canvas;
  if (moved) shift(drag[2] - (x - drag[0]) / clientWidth / view.zoom, drag[3] + (y - drag[1]) / clientHeight / view.zoom);
}

function shift(x, y, zoom = view.zoom) {
  view.zoom = clamp(zoom, 1, 40);
  const room = (1 - 1 / view.zoom) / 2;
  Object.assign(view, { x: clamp(x, -room, room), y: clamp(y, -room, room) });
  surface.redraw();
}

function nearest(event, reach) {
  const [x, y] = surface.at(event);
  let best = null;
  for (let i = 0; i < n; i++) {
    if (!shows(i)) continue;
    const [a, b] = place(i, surface.canvas.clientWidth, surface.canvas.clientHeight);
    const distance = Math.hypot(a - x, b - y);
    if (distance < reach) [best, reach] = [i, distance];
  }
  return best;
}

// ---- the chosen sequence

const clips = DATA.clips && new Animations(DATA.clips, DATA.layout);
const about = h("div", { role: "status" }, h("p", { class: "note" }, "Hover, click or tap a point."));
const stage = clips ? new Stage(clips, "the chosen sequence") : null;

function choose(i) {
  if (i === null) return;
  chosen = i;
  about.replaceChildren(facts([["name", DATA.names[i]], ["class", DATA.classes[labels[i]]],
    ["part", DATA.part_names[parts[i]]]]));
  stage?.show(i);
  surface.redraw();
}

// ---- the legend

const present = [...new Set(labels)].sort((a, b) => a - b);
const buttons = new Map(present.map((label) => {
  const dot = new Surface("", 18, (c) => mark(c, label, 9, 9, 5, true));
  return [label, h("button", { "aria-pressed": "false", click: () => light(label) }, dot.canvas, DATA.classes[label])];
}));

function light(label) {
  lit = lit === label ? null : label;
  for (const [each, button] of buttons) button.setAttribute("aria-pressed", String(each === lit));
  surface.redraw();
}

const partBoxes = DATA.part_names.map((name, part) => h("label", {}, h("input", {
  type: "checkbox", checked: true,
  change: (e) => { hidden[e.target.checked ? "delete" : "add"](part); surface.redraw(); },
}), `${name} (${part ? "outlined" : "filled"})`));
const zoom = (text, name, act) => h("button", { "aria-label": name, click: act }, text);

MAIN.classList.add("side");
MAIN.append(
  h("section", { class: "card" }, h("div", { class: "row" }, ...partBoxes,
    zoom("−", "zoom out", () => shift(view.x, view.y, view.zoom / 1.5)),
    zoom("+", "zoom in", () => {
      const at = chosen === null ? [view.x, view.y]
        : [0, 1].map((k) => (places[2 * chosen + k] - low[k]) / (high[k] - low[k] || 1) - 0.5);
      shift(...at, view.zoom * 1.5);
    }),
    zoom("Whole map", "whole map", () => shift(0, 0, 1))), surface.canvas),
  h("section", { class: "card" }, h("h2", {}, "Chosen sequence"), about, ...(stage?.elements ?? [])),
  h("section", { class: "card wide" }, h("h2", {}, "Classes: press one to highlight it"),
    h("div", { class: "legend" }, ...buttons.values())),
);
