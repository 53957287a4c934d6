// A confusion matrix, the accuracy of each class, and the sequences of the chosen cell.

const C = DATA.classes.length, sequences = DATA.sequences;
const labels = sequences && unpack(sequences.labels);
const measures = DATA.measures.map((measure) => ({
  ...measure, confusion: unpack(measure.confusion), predicted: measure.predicted && unpack(measure.predicted),
}));
let measure = measures[0];
let cell = null; // [true class, predicted class]; chosen from the start

const count = (row, column) => measure.confusion[row * C + column];
const total = (row) => [...Array(C).keys()].reduce((sum, column) => sum + count(row, column), 0);
const percent = (value, of) => (of ? `${((100 * value) / of).toFixed(1)} %` : "no test sequence");

// ---- the matrix: a row a true class, its numbers in per cent of the row

// Names stand beside the rows where there is room for them; columns have the same order.
const margin = (width) => (width >= 560 && C <= 60 ? 150 : 0);
const cellSize = (width) => (width - margin(width)) / C;

const surface = new Surface("confusion matrix; arrow keys go from cell to cell",
  (width) => clamp(cellSize(width) * C, 240, 1100), (context, width) => {
    const left = margin(width), size = cellSize(width), gap = size > 6 ? 1 : 0;
    context.textAlign = "right";
    context.fillStyle = css("soft");
    for (let row = 0; left && size >= 9 && row < C; row++) {
      context.fillText(DATA.classes[row], left - 6, (row + 0.5) * size + 4, left - 8);
    }
    context.textAlign = "center";
    for (let row = 0; row < C; row++) {
      const of = total(row);
      for (let column = 0; column < C; column++) {
        const value = of ? count(row, column) / of : 0, x = left + column * size, y = row * size;
        context.globalAlpha = 1;
        context.fillStyle = css("floor");
        context.fillRect(x, y, size - gap, size - gap);
        context.globalAlpha = value ? 0.15 + 0.85 * value : 0;
        context.fillStyle = css(row === column ? "good" : "bad");
        context.fillRect(x, y, size - gap, size - gap);
        context.globalAlpha = 1;
        if (value && size >= 22) haloed(context, String(count(row, column)), x + size / 2, y + size / 2 + 4);
      }
    }
    if (cell) {
      context.lineWidth = 2.5;
      context.strokeStyle = css("text");
      context.strokeRect(left + cell[1] * size + 1, cell[0] * size + 1, size - 2, size - 2);
    }
  }, {
    class: "picks", tabindex: 0,
    click: (e) => {
      const [x, y] = surface.at(e), width = surface.canvas.clientWidth, size = cellSize(width);
      choose(clamp(Math.floor(y / size), 0, C - 1), clamp(Math.floor((x - margin(width)) / size), 0, C - 1));
    },
    keydown: (e) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[e.key];
      if (!step) return;
      e.preventDefault();
      choose(clamp(cell[0] + step[0], 0, C - 1), clamp(cell[1] + step[1], 0, C - 1));
    },
  });

// ---- the chosen cell and its sequences

const LISTED = 200;
const said = h("div", { role: "status" });
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
  choose(...(cell ?? commonest()));
}

// The commonest mistake: where one begins to look.
function commonest() {
  let best = [0, 0], most = 0;
  for (let row = 0; row < C; row++) {
    for (let column = 0; column < C; column++) {
      if (row !== column && count(row, column) > most) [best, most] = [[row, column], count(row, column)];
    }
  }
  return best;
}

MAIN.classList.add("side");
MAIN.append(
  h("section", { class: "card" },
    h("div", { class: "row" }, choice("measure", measures.map((each) => each.name), 0, (i) => { measure = measures[i]; update(); })),
    numbers, surface.canvas,
    h("p", { class: "note" }, "A row is a true class, a column what was predicted. Green: right; red: wrong; the fuller, the larger the share of the row. Click or tap a cell, or a class below.")),
  h("section", { class: "card" }, h("h2", {}, "Chosen cell"), said, list, chosenName, ...(stage?.elements ?? []),
    ...(DATA.note ? [h("p", { class: "note" }, `No sequences: ${DATA.note}.`)] : [])),
  h("section", { class: "card wide" }, h("h2", {}, "Accuracy of each class, the worst first"), classes),
);
update();
