// A confusion matrix, the accuracy of each class, and the sequences of the chosen cell.

const C = DATA.classes.length, sequences = DATA.sequences;
const labels = sequences && unpack(sequences.labels);
const measures = DATA.measures.map((measure) => ({
  ...measure, confusion: unpack(measure.confusion), predicted: measure.predicted && unpack(measure.predicted),
}));
let measure = measures[0];
let cell = null; // [true class, predicted class]

const count = (row, column) => measure.confusion[row * C + column];
const total = (row) => [...Array(C).keys()].reduce((sum, column) => sum + count(row, column), 0);
const percent = (value, of) => (of ? `${((100 * value) / of).toFixed(1)} %` : "no test sequence");

// ---- the matrix: a row a true class, its numbers in per cent of the row

const side = (width) => clamp(width, 240, 900);
const surface = new Surface("confusion matrix; arrow keys go from cell to cell", side, (context, width) => {
  const size = width / C;
  for (let row = 0; row < C; row++) {
    const of = total(row);
    for (let column = 0; column < C; column++) {
      const value = of ? count(row, column) / of : 0;
      context.globalAlpha = 1;
      context.fillStyle = css("floor");
      context.fillRect(column * size, row * size, size - (size > 6), size - (size > 6));
      context.globalAlpha = value ? 0.15 + 0.85 * value : 0;
      context.fillStyle = css(row === column ? "good" : "bad");
      context.fillRect(column * size, row * size, size - (size > 6), size - (size > 6));
      context.globalAlpha = 1;
      if (value && size >= 26) {
        context.textAlign = "center";
        haloed(context, String(count(row, column)), (column + 0.5) * size, (row + 0.5) * size + 4);
      }
    }
  }
  if (cell) {
    context.lineWidth = 2.5;
    context.strokeStyle = css("text");
    context.strokeRect(cell[1] * size + 1, cell[0] * size + 1, size - 2, size - 2);
  }
}, {
  class: "picks", tabindex: 0,
  click: (e) => {
    const [x, y] = surface.at(e), size = surface.canvas.clientWidth / C;
    choose(clamp(Math.floor(y / size), 0, C - 1), clamp(Math.floor(x / size), 0, C - 1));
  },
  keydown: (e) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[e.key];
    if (!step) return;
    e.preventDefault();
    const [row, column] = cell ?? [0, 0];
    choose(...(cell ? [clamp(row + step[0], 0, C - 1), clamp(column + step[1], 0, C - 1)] : [0, 0]));
  },
});

// ---- the chosen cell and its sequences

const LISTED = 200;
const said = h("div", { role: "status" }, h("p", { class: "note" }, "Click or tap a cell of the matrix or a class."));
const list = h("div", { class: "legend" });
const stage = sequences?.clips ? new Stage(new Animations(sequences.clips, sequences.layout), "the chosen sequence") : null;
const chosenName = h("p", { class: "note" });

function choose(row, column) {
  cell = [row, column];
  said.replaceChildren(facts([["true class", DATA.classes[row]], ["predicted", DATA.classes[column]],
    ["sequences", `${count(row, column)} of ${total(row)} (${percent(count(row, column), total(row))})`]]));
  const buttons = [];
  if (measure.predicted) {
    const [seeds, n] = measure.predicted.shape;
    for (let i = 0; i < n; i++) {
      if (labels[i] !== row) continue;
      let times = 0;
      for (let seed = 0; seed < seeds; seed++) times += measure.predicted[seed * n + i] === column;
      if (!times) continue;
      const text = sequences.names[i] + (seeds > 1 ? ` (${times} of ${seeds} seeds)` : "");
      buttons.push(h("button", { click: () => { stage?.show(i); chosenName.textContent = sequences.names[i]; } }, text));
    }
  }
  const more = buttons.length - LISTED;
  list.replaceChildren(...buttons.slice(0, LISTED), ...(more > 0 ? [h("p", { class: "note" }, `and ${more} more`)] : []));
  buttons[0]?.click();
  surface.redraw();
}

// ---- the classes, the worst first

const classes = h("div", { class: "legend" });
const numbers = h("p", {});

function update() {
  numbers.textContent = measure.accuracies.map(([name, value]) => `${name} ${value.toFixed(2)} %`).join("   ");
  const order = [...Array(C).keys()].filter(total).sort((a, b) => count(a, a) / total(a) - count(b, b) / total(b));
  classes.replaceChildren(...order.map((row) => h("button", { click: () => choose(row, row) },
    `${DATA.classes[row]}: ${percent(count(row, row), total(row))} of ${total(row)}`)));
  if (cell) choose(...cell);
  surface.redraw();
}

MAIN.classList.add("side");
MAIN.append(
  h("section", { class: "card" },
    h("div", { class: "row" }, choice("measure", measures.map((each) => each.name), 0, (i) => { measure = measures[i]; update(); })),
    numbers, surface.canvas,
    h("p", { class: "note" }, "A row is a true class, a column what was predicted. Green: right; red: wrong; the fuller, the larger the share of the row.")),
  h("section", { class: "card" }, h("h2", {}, "Chosen cell"), said, list, chosenName, ...(stage?.elements ?? []),
    ...(DATA.note ? [h("p", { class: "note" }, `No sequences: ${DATA.note}.`)] : [])),
  h("section", { class: "card wide" }, h("h2", {}, "Accuracy of each class, the worst first"), classes),
);
update();
