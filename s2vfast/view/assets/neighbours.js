// A query and its nearest neighbours, all turned by one camera and played by one clock.

const camera = new Camera();
const items = DATA.items.map((item) => ({ ...item, scene: readScene(item.scene, DATA.layout) }));
// Long and short sequences start together and repeat, each at its own length; time is in frames of the recordings.
const length = Math.max(...items.map((item) => item.scene.frames * item.every));

function tile(item, i) {
  const figure = new Figure(item.scene, DATA.layout, {
    camera, small: true, height: 190,
    label: `animation of ${item.name}, ${item.class}; drag or arrow keys turn all figures`,
  });
  item.figure = figure;
  const said = i === 0 ? [] : [
    h("p", { class: "note" }, `similarity ${item.similarity.toFixed(3)}`),
    h("p", { class: `note ${item.right ? "good" : "bad"}` }, item.right ? "✓ same class" : "✗ another class"),
  ];
  return h("article", { class: "card" }, h("h2", {}, i === 0 ? "Query" : `Neighbour ${i}`), figure.canvas,
    h("p", { class: "note" }, item.name), h("p", {}, item.class), ...said);
}

const right = items.slice(1).filter((item) => item.right).length;
const tiles = h("div", { class: "tiles" }, ...items.map(tile));
const player = new Player(length, (frame) => {
  for (const item of items) item.figure.show(Math.floor((frame % (item.scene.frames * item.every)) / item.every));
}, { named: (frame) => `frame ${frame + 1} of ${length}` });

MAIN.append(
  h("section", { class: "card" },
    h("p", {}, `${right} of ${items.length - 1} neighbours have the query's class, ${items[0].class}.`),
    player.element, camera.views(),
    h("p", { class: "note" }, "Cosine similarity, from −1 to 1. Each figure fills its tile; shorter sequences repeat.")),
  tiles,
);
