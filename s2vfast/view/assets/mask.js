// A drawn mask: joints × segments over the motion behind it, and the same joints on the moving skeleton.

const { segment_frames: segmentFrames, segments, layout } = DATA;
const V = layout.joints.length;
const draws = DATA.draws.map((draw) => ({
  epoch: draw.epoch,
  scene: readScene(draw.scene, layout),
  motion: unpack(draw.motion), // [M, S, V]
  visible: unpack(draw.visible), // [r, M, S, V]
}));
const [masks, bodies] = draws[0].visible.shape;
const now = { draw: 0, mask: 0, body: 0 };

const token = (body, joint, segment) => (body * segments + segment) * V + joint;
const isVisible = (body, joint, segment) =>
  draws[now.draw].visible[now.mask * bodies * segments * V + token(body, joint, segment)] === 1;
const segmentOf = (frame) => Math.floor(frame / segmentFrames);

const grid = new Grid({
  joints: layout.joints, segments, segmentFrames,
  label: "heat map of motion, joints by segments, a disc on every visible token",
  value: (joint, segment) => draws[now.draw].motion[token(now.body, joint, segment)],
  range: () => ({
    low: 0,
    high: draws[now.draw].motion.reduce((a, b) => Math.max(a, b), 0),
    text: `motion: ${DATA.motion} (${layout.unit})`,
  }),
  marked: (joint, segment) => isVisible(now.body, joint, segment),
  said: (joint, segment) => `${spoken(layout.joints[joint])}, segment ${segment + 1} ` +
    `(frames ${segment * segmentFrames + 1} to ${(segment + 1) * segmentFrames}): ` +
    `${isVisible(now.body, joint, segment) ? "visible" : "masked"}, motion ` +
    `${short(draws[now.draw].motion[token(now.body, joint, segment)])} ${layout.unit}`,
  picked: (joint, segment) => {
    if (segmentOf(player.frame) !== segment) { player.play(false); player.show(segment * segmentFrames); }
    figure.hover = [now.body, joint];
    figure.surface.redraw();
  },
});

const camera = new Camera();
const figure = new Figure(draws[0].scene, layout, {
  camera, dim: true,
  height: (width) => clamp(width * 0.8, 280, innerHeight * 0.6),
  label: "skeleton; joints that are visible in this segment are large and filled",
  look: (body, joint, frame) => isVisible(body, joint, segmentOf(frame))
    ? { fill: css(`body${body}`), radius: 7 } : { fill: css("card"), radius: 4, ring: css("quiet") },
  picked: (body, joint) => { now.body = body; redraw(); grid.pick(joint, segmentOf(player.frame)); },
});
const player = new Player(figure.scene.frames, (frame) => { figure.show(frame); grid.follow(segmentOf(frame)); }, {
  named: (frame) => `frame ${frame + 1} of ${figure.scene.frames}, segment ${segmentOf(frame) + 1}`,
  rate: 15,
});

function redraw() {
  figure.scene = draws[now.draw].scene;
  const visible = draws[now.draw].visible.subarray(now.mask * bodies * segments * V).subarray(0, bodies * segments * V);
  const count = visible.subarray(now.body * segments * V, (now.body + 1) * segments * V).reduce((a, b) => a + b, 0);
  counted.textContent = `${count} of ${segments * V} tokens are visible.`;
  bodyChoice?.querySelector("select").selectedIndex !== undefined &&
    (bodyChoice.querySelector("select").value = now.body);
  grid.say(grid.chosen);
  grid.surface.redraw();
  figure.surface.redraw();
}

const counted = h("p", { class: "note" });
const changed = (name) => (value) => { now[name] = value; redraw(); };
const bodyChoice = bodies > 1 ? choice("body", ["1", "2"], 0, changed("body")) : null;
const choices = h("div", { class: "row" },
  choice("draw of epoch", draws.map((draw) => String(draw.epoch)), 0, changed("draw")),
  ...(masks > 1 ? [choice("mask", [...Array(masks).keys()].map((i) => `${i + 1} of ${masks}`), 0, changed("mask"))] : []),
  ...(bodyChoice ? [bodyChoice] : []));

const disc = (paint) => new Surface("", 18, (c) => { c.beginPath(); c.arc(9, 9, 5, 0, 7); paint(c); }).canvas;
const white = disc((c) => { c.fillStyle = "#fff"; c.fill(); c.lineWidth = 1.5; c.strokeStyle = "#000"; c.stroke(); });
const filled = disc((c) => { c.fillStyle = css("body0"); c.fill(); });
const hollow = disc((c) => { c.lineWidth = 2.5; c.strokeStyle = css("quiet"); c.stroke(); });
const keys = (...pairs) => h("div", { class: "row" },
  ...pairs.map(([mark, text]) => h("span", { class: "key" }, mark, text)));

MAIN.classList.add("two");
MAIN.append(
  h("section", { class: "card wide" }, choices, counted),
  h("section", { class: "card" }, h("h2", {}, "Tokens"), keys([white, "visible token"]), grid.canvas, grid.status),
  h("section", { class: "card" }, h("h2", {}, "Clip"), keys([filled, "visible joint"], [hollow, "masked joint"]),
    figure.canvas, player.element, camera.views()),
  h("section", { class: "card wide" }, h("h2", {}, "How it was drawn"), facts(DATA.facts)),
);
redraw();
