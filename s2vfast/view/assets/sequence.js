// One sequence: the skeleton, a slider over its frames, what is known of it.

const scene = readScene(DATA.scene, DATA.layout);
const camera = new Camera();
const status = h("p", { class: "status", role: "status" }, "Hover, click or tap a joint to name it.");
const figure = new Figure(scene, DATA.layout, {
  camera,
  height: (width) => clamp(width * 0.8, 300, innerHeight * 0.62),
  label: `skeleton of ${DATA.name}; drag or arrow keys turn it, plus and minus change its size`,
  picked: (body, joint) => {
    const at = ((body * scene.frames + figure.frame) * scene.joints + joint) * 3;
    const place = places.subarray(at, at + 3);
    status.textContent = `${spoken(DATA.layout.joints[joint])} (joint ${joint}` +
      `${scene.bodies > 1 ? `, body ${body + 1}` : ""}), frame ${figure.frame + 1}: ` +
      `x ${place[0].toFixed(3)}, y ${place[1].toFixed(3)}, z ${place[2].toFixed(3)} ${DATA.layout.unit}`;
  },
});
const places = unpack(DATA.scene.places); // as recorded, where the scene's are turned
const player = new Player(scene.frames, (frame) => figure.show(frame));

const key = (colour, text) => {
  const dot = new Surface("", 18, (c) => { c.fillStyle = css(colour); c.arc(9, 9, 6, 0, 7); c.fill(); });
  return h("span", { class: "key" }, dot.canvas, text);
};
const sided = DATA.layout.right.length > 0;
const bodies = [...Array(Math.min(scene.bodies, 2)).keys()].flatMap((body) => {
  const name = scene.bodies > 1 ? `body ${body + 1}` : "body";
  return [...(sided || scene.bodies > 1 ? [key(`body${body}`, name)] : []),
    ...(sided ? [key(`right${body}`, scene.bodies > 1 ? "its right side" : "right side")] : [])];
});

MAIN.classList.add("side");
MAIN.append(
  h("section", { class: "card", "aria-label": "animation" }, h("div", { class: "row" }, camera.views(), ...bodies),
    figure.canvas, player.element, status),
  h("section", { class: "card" }, h("h2", {}, "This sequence"), facts(DATA.facts),
    h("p", { class: "note" }, "Keys: space plays and pauses, ← → go a frame, Home and End to the ends. With the figure " +
      "focused the arrows turn it, + and − change its size.")),
);
