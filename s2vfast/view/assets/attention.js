// An encoder's tokens on one sequence: of a chosen one, what is like it and what it attends to.

const { segment_frames: segmentFrames, segments, layout } = DATA;
const V = layout.joints.length, L = segments * V;
const scene = readScene(DATA.scene, layout);
const above = unpack(DATA.similarity); // [M, L * (L - 1) / 2]
const attention = DATA.attention.map((entry) =>
  ({ ...entry, weights: unpack(entry.weights), largest: unpack(entry.largest) }));
const salience = DATA.salience && unpack(DATA.salience); // [M, L]
const now = { body: DATA.body, joint: DATA.token % V, segment: Math.floor(DATA.token / V), what: 0 };

const measures = [
  "cosine similarity of features",
  ...attention.map(({ block, head }) =>
    `attention, block ${block + 1}, ${head === null ? "mean over heads" : `head ${head + 1}`}`),
  ...(salience ? ["salience, whichever token is chosen"] : []),
];
const isSalience = () => now.what > attention.length;

function similarity(body, i, j) {
  if (i === j) return 1;
  const [a, b] = i < j ? [i, j] : [j, i];
  return above[(body * L * (L - 1)) / 2 + (a * (2 * L - a - 1)) / 2 + b - a - 1];
}

function value(joint, segment) {
  const [from, to] = [now.segment * V + now.joint, segment * V + joint];
  if (isSalience()) return salience[now.body * L + to];
  if (now.what === 0) return similarity(now.body, from, to);
  const { weights, largest } = attention[now.what - 1];
  const row = now.body * L + from;
  return (weights[row * L + to] / 255) * largest[row];
}

// From the least to the most of the chosen token's row.
function range() {
  let [low, high] = [Infinity, -Infinity];
  for (let segment = 0; segment < segments; segment++) {
    for (let joint = 0; joint < V; joint++) {
      low = Math.min(low, value(joint, segment));
      high = Math.max(high, value(joint, segment));
    }
  }
  if (isSalience()) return { low, high, text: "salience, between 0 and 1" };
  return { low: now.what ? 0 : low, high, text: now.what ? "attention weight (a row sums to 1)" : "cosine similarity" };
}
let limits = range();

const segmentOf = (frame) => Math.floor(frame / segmentFrames);
const worth = (joint, segment) => (value(joint, segment) - limits.low) / (limits.high - limits.low || 1);

const grid = new Grid({
  joints: layout.joints, segments, segmentFrames,
  label: "heat map, joints by segments, of the chosen token's similarity or attention to all others",
  value, range: () => limits,
  said: (joint, segment) => `to ${spoken(layout.joints[joint])}, segment ${segment + 1} ` +
    `(frames ${segment * segmentFrames + 1} to ${(segment + 1) * segmentFrames}): ${short(value(joint, segment))}`,
  picked: (joint, segment) => {
    Object.assign(now, { joint, segment });
    if (segmentOf(player.frame) !== segment) { player.play(false); player.show(segment * segmentFrames); }
    redraw();
  },
});
grid.chosen = [now.joint, now.segment];

const camera = new Camera();
const figure = new Figure(scene, layout, {
  camera, dim: true,
  height: (width) => clamp(width * 0.8, 280, innerHeight * 0.6),
  label: "skeleton, its joints in the colours of the heat map; a click or tap on one chooses it",
  look: (body, joint, frame) => {
    if (body !== now.body) return { fill: css("quiet"), radius: 3 };
    const chosen = joint === now.joint && segmentOf(frame) === now.segment;
    return { fill: heat(worth(joint, segmentOf(frame))), radius: 7, ring: css(chosen ? "mark" : "quiet") };
  },
  picked: (body, joint) => {
    now.body = body;
    if (bodyChoice) bodyChoice.querySelector("select").value = body;
    grid.pick(joint, segmentOf(player.frame));
  },
});
const player = new Player(scene.frames, (frame) => { figure.show(frame); grid.follow(segmentOf(frame)); }, {
  named: (frame) => `frame ${frame + 1} of ${scene.frames}, segment ${segmentOf(frame) + 1}`,
  rate: 15,
});

function redraw() {
  limits = range();
  chosen.textContent = `Chosen: ${spoken(layout.joints[now.joint])}, segment ${now.segment + 1}` +
    `${scene.bodies > 1 ? `, body ${now.body + 1}` : ""}. A click or tap on a joint or a cell chooses another.`;
  grid.surface.redraw();
  figure.surface.redraw();
}

const chosen = h("p", { class: "note", role: "status" });
const bodyChoice = scene.bodies > 1
  ? choice("body", ["1", "2"], now.body, (body) => { now.body = body; redraw(); }) : null;

MAIN.classList.add("two");
MAIN.append(
  h("section", { class: "card wide" }, h("div", { class: "row" },
    choice("show", measures, 0, (i) => { now.what = i; redraw(); grid.say(grid.chosen); }),
    ...(bodyChoice ? [bodyChoice] : [])), chosen),
  h("section", { class: "card" }, h("h2", {}, "To all tokens"), grid.canvas, grid.status),
  h("section", { class: "card" }, h("h2", {}, "On the skeleton"), figure.canvas, player.element, camera.views()),
);
player.play(false);
player.show(now.segment * segmentFrames);
redraw();
