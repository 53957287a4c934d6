// Joints × segments as a heat map, with marks on some tokens; a click, a tap or the arrow keys choose one.

const VIRIDIS = ["440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"]
  .map((code) => [0, 2, 4].map((i) => parseInt(code.slice(i, i + 2), 16)));

// The colour of a value in [0, 1].
function heat(value) {
  const place = clamp(Number.isFinite(value) ? value : 0, 0, 1) * (VIRIDIS.length - 1);
  const i = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const mixed = VIRIDIS[i].map((low, k) => Math.round(low + (place - i) * (VIRIDIS[i + 1][k] - low)));
  return `rgb(${mixed.join(" ")})`;
}

class Grid {
  // value(joint, segment) → number; range() → {low, high, text}; marked(joint, segment) → whether it has a disc;
  // said(joint, segment) → words; picked(joint, segment).
  constructor({ joints, segments, segmentFrames, label, value, range, marked = () => false, said, picked }) {
    Object.assign(this, { joints, segments, segmentFrames, value, range, marked, said, picked });
    Object.assign(this, { chosen: null, column: 0 });
    this.status = h("p", { class: "status note", role: "status" });
    this.surface = new Surface(`${label}; the arrow keys choose a token`, () => joints.length * 18 + 80,
      (c, w, t) => this.draw(c, w, t), {
        class: "picks", tabindex: 0,
        pointermove: (e) => this.say(this.token(e)),
        pointerleave: () => this.say(this.chosen),
        click: (e) => { const token = this.token(e); if (token) this.pick(...token); },
        keydown: (e) => this.key(e),
      });
    this.canvas = this.surface.canvas;
  }

  pick(joint, segment) {
    this.chosen = [joint, segment];
    this.say(this.chosen);
    this.picked?.(joint, segment);
    this.surface.redraw();
  }

  say(token) {
    this.status.textContent = token ? this.said(...token) : "";
  }

  // Shows which segment the frame is of.
  follow(segment) {
    if (segment === this.column) return;
    this.column = segment;
    this.surface.redraw();
  }

  key(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    const [joint, segment] = this.chosen ?? [0, this.column];
    this.pick(clamp(joint + step[0], 0, this.joints.length - 1), clamp(segment + step[1], 0, this.segments - 1));
    event.preventDefault();
  }

  token(event) {
    const [x, y] = this.surface.at(event);
    const [segment, joint] = [Math.floor((x - this.left) / this.wide), Math.floor(y / 18)];
    return segment >= 0 && segment < this.segments && joint >= 0 && joint < this.joints.length ? [joint, segment] : null;
  }

  draw(context, width) {
    const { joints, segments } = this;
    const rows = joints.length * 18;
    context.font = "11px system-ui, sans-serif";
    this.left = Math.ceil(Math.max(...joints.map((name) => context.measureText(spoken(name)).width))) + 8;
    this.wide = (width - this.left - 4) / segments;
    const { low, high, text } = this.range();
    const gap = this.wide > 6 ? 1 : 0;
    context.textBaseline = "middle";
    for (let joint = 0; joint < joints.length; joint++) {
      context.textAlign = "right";
      context.fillStyle = css(this.chosen?.[0] === joint ? "text" : "soft");
      context.fillText(spoken(joints[joint]), this.left - 6, joint * 18 + 9);
      for (let segment = 0; segment < segments; segment++) {
        const x = this.left + segment * this.wide;
        context.fillStyle = heat((this.value(joint, segment) - low) / (high - low || 1));
        context.fillRect(x, joint * 18, this.wide - gap, 17);
        if (!this.marked(joint, segment)) continue;
        context.beginPath();
        context.arc(x + (this.wide - gap) / 2, joint * 18 + 8.5, Math.min(5, this.wide / 2 - 0.5), 0, 2 * Math.PI);
        context.fillStyle = "#fff";
        context.fill();
        context.lineWidth = 1.5;
        context.strokeStyle = "#000";
        context.stroke();
      }
    }
    context.lineWidth = 2;
    context.strokeStyle = css("mark");
    context.strokeRect(this.left + this.column * this.wide, 1, this.wide - gap, rows - 3);
    if (this.chosen) {
      const [x, y] = [this.left + this.chosen[1] * this.wide, this.chosen[0] * 18];
      for (const [colour, line] of [["#000", 4], ["#fff", 2]]) {
        context.lineWidth = line;
        context.strokeStyle = colour;
        context.strokeRect(x, y, this.wide - gap, 17);
      }
    }
    this.below(context, width, rows, low, high, text);
  }

  // Numbers of segments, their axis, and what the colours mean.
  below(context, width, rows, low, high, text) {
    context.fillStyle = css("soft");
    context.textAlign = "center";
    const every = Math.max(1, Math.ceil(24 / this.wide));
    for (let segment = 0; segment < this.segments; segment += every) {
      context.fillText(String(segment + 1), this.left + (segment + 0.5) * this.wide, rows + 8);
    }
    const frames = `${this.segmentFrames} frame${this.segmentFrames > 1 ? "s" : ""} each`;
    context.fillText(`segment (${frames})`, (this.left + width) / 2, rows + 24);
    const bar = Math.min(160, width * 0.4);
    for (let i = 0; i < bar; i++) {
      context.fillStyle = heat(i / bar);
      context.fillRect(i, rows + 40, 1.5, 10);
    }
    context.fillStyle = css("soft");
    context.textAlign = "left";
    context.fillText(short(low), 0, rows + 60);
    context.textAlign = "right";
    context.fillText(short(high), bar, rows + 60);
    context.textAlign = "left";
    context.fillText(text, 0, rows + 74, width);
  }
}
