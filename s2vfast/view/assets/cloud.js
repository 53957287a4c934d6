// One recording of points: the cloud, a slider over its frames, the skeleton in it where there is one.

class CloudFigure extends Figure {
  // cloud: a scene whose "joints" are points; scene, layout: of the skeleton, which may have no body.
  constructor(cloud, scene, layout, options) {
    super(scene, layout, options);
    this.cloud = cloud;
    this.empty = "no point in this frame";
  }

  draw(context, width, height) {
    const { cloud } = this, project = this.projection(width, height), count = cloud.joints;
    const drawn = [];
    for (let point = 0; point < count; point++) {
      const at = this.frame * count + point;
      if (!cloud.seen[at]) break; // the points of a frame come first
      drawn.push(project(...[0, 1, 2].map((k) => cloud.places[3 * at + k] - cloud.centre[k])));
    }
    drawn.sort((a, b) => a[2] - b[2]);
    const size = clamp(width / 300, 1.5, 4) * Math.sqrt(this.camera.zoom);
    for (const [x, y, depth] of drawn) {
      // What is near is strong.
      context.globalAlpha = clamp(0.6 + (0.4 * depth) / cloud.radius, 0.2, 1);
      context.fillStyle = css("body0");
      context.fillRect(x - size / 2, y - size / 2, size, size);
    }
    context.globalAlpha = 1;
    this.empty = drawn.length ? "" : "no point in this frame";
    super.draw(context, width, height);
  }
}

const cloud = readScene(DATA.cloud, DATA.layout);
const camera = new Camera();
const { centre, radius, half, frames } = cloud;
const nobody = { places: [], seen: [], bodies: 0, joints: 0 };
const scene = { ...(DATA.scene ? readScene(DATA.scene, DATA.layout) : nobody), centre, radius, half, frames };
const figure = new CloudFigure(cloud, scene, DATA.layout, {
  camera,
  height: (width) => clamp(width * 0.8, 300, innerHeight * 0.62),
  label: `points of ${DATA.name}; drag or arrow keys turn them, plus and minus change their size`,
  look: (body) => ({ fill: css("body1"), radius: 3 }),
});
const named = (frame) => `frame ${DATA.frames[frame] + 1}, ${DATA.counts[frame]} points`;
const player = new Player(frames, (frame) => figure.show(frame), { named, rate: DATA.rate });

MAIN.classList.add("side");
MAIN.append(
  h("section", { class: "card", "aria-label": "animation" }, h("div", { class: "row" }, camera.views()),
    figure.canvas, player.element),
  h("section", { class: "card" }, h("h2", {}, "This sequence"), facts(DATA.facts),
    h("p", { class: "note" }, "Keys: space plays and pauses, ← → go a frame, Home and End to the ends. With the figure " +
      "focused the arrows turn it, + and − change its size.")),
);
