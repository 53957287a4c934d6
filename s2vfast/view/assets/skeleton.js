// Skeletons in three dimensions, drawn flat: turned by drag, arrow keys or the buttons of `views`.

// One camera may serve several figures. Angles in radians: 0, 0 is the recording's own view.
class Camera {
  constructor(yaw = 0.35, pitch = 0.15) {
    this.home = [yaw, pitch];
    this.figures = [];
    this.set(yaw, pitch, 1);
  }

  set(yaw, pitch, zoom = this.zoom) {
    Object.assign(this, { yaw, pitch: clamp(pitch, -0.2, Math.PI / 2), zoom: clamp(zoom, 0.5, 6) });
    for (const figure of this.figures) figure.surface.redraw();
  }

  views() {
    const button = (text, yaw, pitch) => h("button", { click: () => this.set(yaw, pitch, 1) }, text);
    const zoom = (text, label, by) =>
      h("button", { "aria-label": label, click: () => this.set(this.yaw, this.pitch, this.zoom * by) }, text);
    return h("div", { class: "row", role: "group", "aria-label": "view" }, button("Front", 0, 0),
      button("Side", Math.PI / 2, 0), button("Top", 0, Math.PI / 2), button("Oblique", ...this.home),
      zoom("−", "smaller", 1 / 1.25), zoom("+", "larger", 1.25));
  }
}

// The arrays of a page's scene, turned so that x is right, y up and z towards who looks.
function readScene(raw, layout) {
  const open = (entry) => (entry.dtype ? unpack(entry) : entry);
  const places = open(raw.places), seen = open(raw.seen); // [M, F, V, 3], [M, F, V]
  const [bodies, frames, joints] = places.shape;
  const basis = layout.basis;
  for (let i = 0; i < places.length; i += 3) {
    const [a, b, c] = [places[i], places[i + 1], places[i + 2]];
    for (let k = 0; k < 3; k++) places[i + k] = basis[k][0] * a + basis[k][1] * b + basis[k][2] * c;
  }
  const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
  for (let i = 0; i < seen.length; i++) {
    if (!seen[i]) continue;
    for (let k = 0; k < 3; k++) {
      low[k] = Math.min(low[k], places[3 * i + k]);
      high[k] = Math.max(high[k], places[3 * i + k]);
    }
  }
  const centre = low.map((l, k) => (l + high[k]) / 2 || 0);
  let radius = 1e-3;
  for (let i = 0; i < seen.length; i++) {
    if (!seen[i]) continue;
    radius = Math.max(radius, Math.hypot(places[3 * i] - centre[0], places[3 * i + 2] - centre[2]));
  }
  return { places, seen, bodies, frames, joints, centre, radius, half: Math.max((high[1] - low[1]) / 2 || 0, 1e-3) };
}

class Figure {
  // look(body, joint, frame) → {fill, radius, ring}; picked(body, joint) when a joint is clicked or tapped.
  constructor(scene, layout, { camera = new Camera(), height = 420, label, look, picked, small = false, dim = false }) {
    Object.assign(this, { scene, layout, camera, look, picked, small, dim, frame: 0, hover: null, on: [] });
    this.empty = "no body in this frame";
    camera.figures.push(this);
    this.surface = new Surface(label, height, (c, w, t) => this.draw(c, w, t), {
      class: "turns", tabindex: 0,
      pointerdown: (e) => this.down(e), pointermove: (e) => this.move(e), pointerup: (e) => this.up(e),
      pointercancel: () => { this.start = null; },
      pointerleave: () => { this.hover = null; this.surface.redraw(); },
      keydown: (e) => this.key(e),
    });
    this.canvas = this.surface.canvas;
  }

  show(frame) {
    this.frame = Math.min(frame, this.scene.frames - 1);
    this.surface.redraw();
  }

  down(event) {
    this.start = [event.clientX, event.clientY, this.camera.yaw, this.camera.pitch];
    this.moved = false;
    this.canvas.setPointerCapture(event.pointerId);
  }

  move(event) {
    if (!this.start) {
      this.hover = this.nearest(event, 14);
      this.surface.redraw();
      return;
    }
    const [dx, dy] = [event.clientX - this.start[0], event.clientY - this.start[1]];
    this.moved ||= Math.hypot(dx, dy) > 5;
    if (this.moved) this.camera.set(this.start[2] + dx * 0.01, this.start[3] + dy * 0.01);
  }

  up(event) {
    if (this.start && !this.moved) {
      this.hover = this.nearest(event, 24);
      if (this.hover) this.picked?.(...this.hover);
      this.surface.redraw();
    }
    this.start = null;
  }

  key(event) {
    const { yaw, pitch, zoom } = this.camera;
    const turns = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    if (turns) this.camera.set(yaw + turns[0], pitch + turns[1]);
    else if (event.key === "+" || event.key === "-") this.camera.set(yaw, pitch, zoom * (event.key === "+" ? 1.25 : 0.8));
    else return;
    event.preventDefault();
  }

  nearest(event, reach) {
    const [x, y] = this.surface.at(event);
    let best = null;
    for (const [body, joint, px, py] of this.on) {
      const distance = Math.hypot(px - x, py - y);
      if (distance < reach) [best, reach] = [[body, joint], distance];
    }
    return best;
  }

  // (x, y, z) from the scene's centre → [x, y on the canvas, nearness].
  projection(width, height) {
    const { scene, camera } = this;
    const [cy, sy, cp, sp] = [Math.cos(camera.yaw), Math.sin(camera.yaw), Math.cos(camera.pitch), Math.sin(camera.pitch)];
    const tall = scene.half * Math.abs(cp) + scene.radius * Math.abs(sp);
    const scale = Math.min(width / 2 / scene.radius, height / 2 / tall) * 0.9 * camera.zoom;
    return (x, y, z) => {
      const [a, c] = [x * cy + z * sy, z * cy - x * sy];
      return [width / 2 + a * scale, height / 2 - (y * cp - c * sp) * scale, y * sp + c * cp];
    };
  }

  draw(context, width, height) {
    const { scene, layout } = this;
    const project = this.projection(width, height);
    this.floor(context, project, width, height);
    const points = [];
    for (let body = 0; body < scene.bodies; body++) {
      for (let joint = 0; joint < scene.joints; joint++) {
        const at = (body * scene.frames + this.frame) * scene.joints + joint;
        if (!scene.seen[at]) { points.push(null); continue; }
        const place = [0, 1, 2].map((k) => scene.places[3 * at + k] - scene.centre[k]);
        points.push([...project(...place), body, joint]);
      }
    }
    const bones = [];
    for (let body = 0; body < scene.bodies; body++) {
      for (const [joint, parent] of layout.bones) {
        const [a, b] = [points[body * scene.joints + joint], points[body * scene.joints + parent]];
        const side = layout.right.includes(joint) ? "right" : "body";
        if (a && b) bones.push([a, b, (a[2] + b[2]) / 2, `${side}${body % 2}`]);
      }
    }
    bones.sort((a, b) => a[2] - b[2]);
    context.lineCap = "round";
    for (const [a, b, , colour] of bones) {
      context.strokeStyle = css(this.dim ? "quiet" : colour);
      context.lineWidth = this.small ? 2 : 4;
      context.beginPath();
      context.moveTo(a[0], a[1]);
      context.lineTo(b[0], b[1]);
      context.stroke();
    }
    const there = points.filter(Boolean).sort((a, b) => a[2] - b[2]);
    for (const [x, y, , body, joint] of there) {
      const look = this.look?.(body, joint, this.frame) ?? { fill: css(`${layout.right.includes(joint) ? "right" : "body"}${body % 2}`), radius: this.small ? 2 : 5 };
      context.beginPath();
      context.arc(x, y, look.radius, 0, 2 * Math.PI);
      context.fillStyle = look.fill;
      context.fill();
      context.lineWidth = look.ring ? 2.5 : 1;
      context.strokeStyle = look.ring ?? css("halo");
      if (!this.small || look.ring) context.stroke();
    }
    this.on = there.map(([x, y, , body, joint]) => [body, joint, x, y]);
    if (!there.length && this.empty) {
      context.textAlign = "center";
      haloed(context, this.empty, width / 2, height / 2);
    }
    if (this.hover && !this.small) this.name(context, width, ...this.hover);
  }

  // A square grid on the ground, whose step the caption can name.
  floor(context, project, width, height) {
    const { scene } = this;
    const step = nice(scene.radius / 1.5), lines = Math.max(1, Math.ceil(scene.radius / step));
    context.strokeStyle = css("floor");
    context.lineWidth = 1;
    context.beginPath();
    for (let i = -lines; i <= lines; i++) {
      for (const [from, to] of [[[i, -lines], [i, lines]], [[-lines, i], [lines, i]]]) {
        context.moveTo(...project(from[0] * step, -scene.half, from[1] * step).slice(0, 2));
        context.lineTo(...project(to[0] * step, -scene.half, to[1] * step).slice(0, 2));
      }
    }
    context.stroke();
    if (this.small) return;
    context.textAlign = "left";
    context.fillStyle = css("soft");
    context.fillText(`ground grid: ${short(step)} ${this.layout.unit}`, 4, height - 6);
  }

  name(context, width, body, joint) {
    const found = this.on.find(([b, j]) => b === body && j === joint);
    if (!found) return;
    const text = spoken(this.layout.joints[joint]) + (this.scene.bodies > 1 ? `, body ${body + 1}` : "");
    const left = found[2] > width / 2;
    context.textAlign = left ? "right" : "left";
    haloed(context, text, found[2] + (left ? -10 : 10), found[3] - 8);
  }
}
