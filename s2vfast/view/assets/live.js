// A stream as it comes: the skeleton of the newest frame, the classes of the newest look, and how they went.

const camera = DATA.planar ? new Camera(0, 0) : new Camera();
const V = DATA.layout.joints.length;
const per = (value) => `${Math.round(100 * value)} %`;
const now = { session: null, state: {}, looks: [], dropped: 0, broken: [], second: 0, at: 0, open: false, hover: null };

// ---- the skeleton

const figure = new Figure(
  { places: [], seen: [], bodies: 0, frames: 1, joints: V, centre: [0, 0, 0], radius: 1, half: 1 }, DATA.layout, {
    camera,
    height: (width) => clamp(width * 0.8, 240, innerHeight * 0.42),
    label: "skeleton of the newest frame; drag or arrow keys turn it, plus and minus change its size",
  });
figure.empty = "waiting for the first frame";

// Who looks follows slowly, so that the skeleton moves and not the room; what leaves the picture widens it at once.
function show(bodies) {
  const places = Object.assign(Float32Array.from(bodies.flat()), { shape: [bodies.length, 1, V, 3] });
  const seen = new Uint8Array(bodies.length * V);
  for (let i = 0; i < seen.length; i++) seen[i] = places[3 * i] || places[3 * i + 1] || places[3 * i + 2] ? 1 : 0;
  const scene = readScene({ places, seen }, DATA.layout), before = figure.scene;
  figure.empty = "nobody is seen";
  if (!seen.some(Boolean)) {
    Object.assign(scene, { centre: before.centre, radius: before.radius, half: before.half });
  } else if (figure.met) {
    const centre = before.centre.map((value, k) => value + 0.05 * (scene.centre[k] - value));
    const off = scene.centre.map((value, k) => value - centre[k]);
    const follow = (from, to) => (to > from ? to : from + 0.02 * (to - from));
    scene.radius = follow(before.radius, scene.radius + Math.hypot(off[0], off[2]));
    scene.half = follow(before.half, scene.half + Math.abs(off[1]));
    scene.centre = centre;
  }
  figure.met ||= seen.some(Boolean);
  figure.scene = scene;
  figure.show(0);
  legend.hidden = scene.bodies < 2 && !DATA.layout.right.length;
  second.forEach((element) => { element.hidden = scene.bodies < 2; });
}

const key = (colour, text) => {
  const dot = new Surface("", 18, (c) => { c.fillStyle = css(colour); c.arc(9, 9, 6, 0, 7); c.fill(); });
  return h("span", { class: "key" }, dot.canvas, text);
};
const sided = DATA.layout.right.length > 0;
const first = [key("body0", sided ? "left side and middle" : "body"), ...(sided ? [key("right0", "right side")] : [])];
const second = [key("body1", sided ? "left side of a second body" : "second body"), ...(sided ? [key("right1", "its right side")] : [])];
const legend = h("div", { class: "row" }, ...first, ...second);

// ---- the classes of the newest look

const answer = h("p", { class: "answer", role: "status" }, "–");
const bars = Array.from({ length: Math.min(DATA.top, DATA.classes.length) }, () => {
  const name = h("span"), value = h("span", { class: "number" }), bar = h("div");
  return { name, value, bar, row: h("li", {}, name, value, h("div", { class: "bar" }, bar)) };
});
const counted = Object.fromEntries(["frames", "frames a second", "latency", "looks", "waiting", "broken lines"].map(
  (name) => [name, h("dd", {}, "–")]));

function list() {
  const look = now.looks[now.looks.length - 1];
  const pairs = look ? look[2] : [];
  const text = pairs.length ? DATA.classes[pairs[0][0]] : "–";
  if (answer.textContent !== text) answer.textContent = text; // said aloud where it changes
  bars.forEach(({ name, value, bar, row }, i) => {
    row.hidden = i >= pairs.length;
    if (row.hidden) return;
    name.textContent = DATA.classes[pairs[i][0]];
    value.textContent = per(pairs[i][1]);
    bar.style.width = `${100 * pairs[i][1]}%`;
    bar.style.background = nearby(DATA.colours, pairs[i][0]);
  });
  const { frames = 0, looks = 0, broken = 0, waiting = 0, rate, latency } = now.state;
  const still = silence() > 3;
  const texts = [frames.toLocaleString("en"), still || rate == null ? "–" : rate.toFixed(1),
    still || latency == null ? "–" : `${latency.toFixed(latency < 10 ? 1 : 0)} ms`, looks.toLocaleString("en"),
    waiting.toLocaleString("en"), broken.toLocaleString("en")];
  Object.values(counted).forEach((element, i) => { element.textContent = texts[i]; });
}

// ---- how it goes

const status = h("p", { class: "status", role: "status" }, "connecting");
const silence = () => (now.state.frames ? (performance.now() - now.at) / 1000 : 0);

function say() {
  const { ended, frames } = now.state;
  const quiet = Math.floor(silence());
  const [text, kind] = ended ? [ended, "note"]
    : !now.open ? ["no connection: s2vfast live does not run any more", "bad"]
      : !frames ? ["waiting for the first frame", "note"]
        : quiet >= 3 ? [`no line for ${quiet} s`, "bad"] : ["live", "good"];
  if (status.textContent !== text) status.textContent = text;
  status.className = `status ${kind}`;
}

const broken = h("ol", { class: "broken" });
const brokenTitle = h("h2");
const brokenCard = h("section", { class: "card wide", hidden: true }, brokenTitle, broken);

function complain() {
  const count = now.state.broken ?? 0;
  brokenCard.hidden = !count;
  brokenTitle.textContent = `${count === 1 ? "1 line was" : `${count.toLocaleString("en")} lines were`} no frames`;
  broken.replaceChildren(...now.broken.map(([line, reason]) => h("li", {}, `line ${line}: ${reason}`)));
}

// ---- the chart: probabilities over the last seconds, of the classes that have the most of them

const chips = Array.from({ length: bars.length }, () => {
  const chip = { number: null, text: h("span") };
  chip.dot = new Surface("", 18, (c) => {
    if (chip.number === null) return;
    c.fillStyle = nearby(DATA.colours, chip.number);
    c.fillRect(1, 6, 16, 6);
  });
  chip.element = h("span", { class: "key", hidden: true }, chip.dot.canvas, chip.text);
  return chip;
});
const said = h("p", { class: "status note" });
const chart = new Surface(`probabilities of classes over the last ${DATA.seconds} seconds`, 210, (c, w, t) => draw(c, w, t), {
  pointermove: (e) => point(e), pointerdown: (e) => point(e),
  pointerleave: () => { now.hover = null; chart.redraw(); },
});
const left = 44, right = 10, top = 8, bottom = 34;

function point(event) {
  const share = (chart.at(event)[0] - left) / (chart.canvas.clientWidth - left - right);
  now.hover = (clamp(share, 0, 1) - 1) * DATA.seconds;
  chart.redraw();
}

// The second that the right edge shows; it stands where nothing more comes.
function edge() {
  const more = now.state.ended || !now.open ? 0 : (performance.now() - now.at) / 1000;
  return now.second + more;
}

function draw(context, width, height) {
  const end = edge(), begin = end - DATA.seconds;
  const px = (t) => left + ((t - begin) / DATA.seconds) * (width - left - right);
  const py = (p) => height - bottom - p * (height - bottom - top);
  const line = (points) => {
    context.beginPath();
    points.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](x, y));
    context.stroke();
  };
  context.lineWidth = 1;
  context.strokeStyle = css("floor");
  context.fillStyle = css("soft");
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const p of [0, 0.25, 0.5, 0.75, 1]) {
    line([[left, py(p)], [width - right, py(p)]]);
    context.fillText(per(p), left - 6, py(p));
  }
  const every = nice(DATA.seconds / (width < 500 ? 3 : 6));
  for (let back = 0; back <= DATA.seconds; back += every) {
    line([[px(end - back), top], [px(end - back), height - bottom]]);
    context.textAlign = back ? "center" : "right";
    context.fillText(back ? `−${back}` : now.state.ended ? "end" : "now", back ? px(end - back) : width - right, height - bottom + 10);
  }
  context.textAlign = "center";
  context.fillText("seconds", (left + width - right) / 2, height - 8);
  const looks = now.looks.filter(([t]) => t >= begin);
  const total = new Map();
  for (const [, , pairs] of looks) for (const [number, p] of pairs) total.set(number, (total.get(number) ?? 0) + p);
  const shown = [...total].sort((a, b) => b[1] - a[1]).slice(0, chips.length).map(([number]) => number);
  // Two looks a pixel at most; which of them are drawn stays as they move.
  const stride = Math.max(1, Math.ceil(looks.length / (2 * width)));
  const drawn = looks.filter((_, i) => (i + now.dropped) % stride === 0);
  const span = drawn.length > 1 ? drawn[drawn.length - 1][0] - drawn[0][0] : 0;
  const gap = Math.max(2, (4 * span) / Math.max(drawn.length - 1, 1)); // seconds without a look that a line does not cross
  const value = (pairs, number) => pairs.find(([n]) => n === number)?.[1] ?? 0;
  context.lineWidth = 2;
  context.lineJoin = "round";
  for (const number of [...shown].reverse()) {
    context.strokeStyle = context.fillStyle = nearby(DATA.colours, number);
    let points = [], before = -Infinity;
    const flush = () => {
      if (points.length === 1) context.fillRect(points[0][0] - 1, points[0][1] - 1, 3, 3);
      else if (points.length) line(points);
    };
    for (const [t, , pairs] of drawn) {
      if (t - before > gap) { flush(); points = []; }
      points.push([px(t), py(value(pairs, number))]);
      before = t;
    }
    flush();
  }
  const latest = now.looks[now.looks.length - 1];
  chips.forEach((chip, i) => {
    const number = i < shown.length ? shown[i] : null;
    chip.element.hidden = number === null;
    if (number === null) return;
    if (chip.number !== number) { chip.number = number; chip.dot.redraw(); }
    chip.text.textContent = DATA.classes[number];
  });
  let text = looks.length || !now.looks.length ? "" : `no look in the last ${DATA.seconds} seconds`;
  if (now.hover !== null && latest) {
    const at = end + now.hover;
    const near = looks.reduce((best, look) => (!best || Math.abs(look[0] - at) < Math.abs(best[0] - at) ? look : best), null);
    if (near) {
      context.strokeStyle = css("soft");
      context.lineWidth = 1;
      line([[px(near[0]), top], [px(near[0]), height - bottom]]);
      text = `line ${near[1]}: ${near[2].slice(0, DATA.top).map(([n, p]) => `${DATA.classes[n]} ${per(p)}`).join(", ")}`;
    }
  }
  if (said.textContent !== text) said.textContent = text;
}

// ---- what comes

function receive(message) {
  if (now.session !== null && now.session !== message.session) { location.reload(); return; } // another stream's server
  now.session = message.session;
  if (message.reset) Object.assign(now, { looks: [], broken: [], dropped: 0 });
  now.state = message.reset ? message.state : { ...now.state, ...message.state };
  now.looks.push(...message.looks);
  const old = now.looks.findIndex(([t]) => t >= message.now - DATA.seconds);
  const gone = old < 0 ? now.looks.length : old;
  now.looks.splice(0, gone);
  now.dropped += gone;
  now.broken = [...now.broken, ...message.broken].slice(-8);
  now.second = message.now;
  now.at = performance.now();
  if (message.state.bodies) show(message.state.bodies);
  if (message.broken.length || message.reset) complain();
}

const refresh = () => { list(); say(); chart.redraw(); };
const source = new EventSource("events");
source.onopen = () => { now.open = true; refresh(); };
source.onerror = () => { now.open = false; refresh(); };
source.onmessage = (event) => {
  receive(JSON.parse(event.data));
  if (now.state.ended === "stopped") source.close();
  refresh();
};
setInterval(refresh, 250);

MAIN.classList.add("side");
MAIN.append(
  h("section", { class: "card", "aria-label": "skeleton" }, figure.canvas, legend, camera.views()),
  h("section", { class: "card" }, h("h2", {}, "Now"), answer, h("ol", { class: "bars" }, ...bars.map(({ row }) => row)),
    status, h("dl", {}, ...Object.entries(counted).flatMap(([name, element]) => [h("dt", {}, name), element]))),
  h("section", { class: "card wide" }, h("h2", {}, "Classes over time"),
    h("div", { class: "row" }, ...chips.map(({ element }) => element)), chart.canvas, said),
  brokenCard,
);
second.forEach((element) => { element.hidden = true; });
refresh();
