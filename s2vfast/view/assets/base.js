"use strict";
// What all pages share: the numbers, elements, the theme, canvases, the player.

const DATA = JSON.parse(document.getElementById("data").textContent);
const MAIN = document.getElementById("main");

// A typed array with its shape, from {shape, dtype, data} or, quantised, {..., scale, offset}.
function unpack(entry) {
  const text = atob(entry.data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const kinds = { uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array };
  let values = new kinds[entry.dtype](bytes.buffer);
  if (entry.scale !== undefined) values = Float32Array.from(values, (v) => v * entry.scale + entry.offset);
  values.shape = entry.shape;
  return values;
}

// An element; attributes that are functions listen to that event. Text goes in as text, never as HTML.
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function choice(label, options, chosen, changed) {
  const select = h("select", { change: () => changed(Number(select.value)) },
    ...options.map((text, i) => h("option", { value: i }, text)));
  select.value = chosen;
  return h("label", {}, label, select);
}

function facts(rows) {
  return h("dl", {}, ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const spoken = (name) => name.replaceAll("_", " ");
const nearby = (list, i) => list[((i % list.length) + list.length) % list.length];

// Four digits at most, as short as they may be.
function short(value) {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
  return String(Number(value.toPrecision(3)));
}

// The largest of 1, 2, 5 times a power of ten that is at most `value`.
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * (value >= 5 * power ? 5 : value >= 2 * power ? 2 : 1);
}

// ---- theme: the system's, until the button is pressed

const dark = matchMedia("(prefers-color-scheme: dark)");
const surfaces = new Set();
let colours = null;

function css(name) {
  colours ??= getComputedStyle(document.documentElement);
  return colours.getPropertyValue(`--${name}`).trim();
}

function themed() {
  colours = null;
  const is = document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  themeButton.textContent = is === "dark" ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", `switch to the ${is === "dark" ? "light" : "dark"} theme`);
  for (const surface of surfaces) surface.redraw();
}

const themeButton = h("button", {
  class: "theme",
  click: () => {
    const is = document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
    document.documentElement.dataset.theme = is === "dark" ? "light" : "dark";
    themed();
  },
});
document.querySelector("header").append(themeButton);
dark.addEventListener("change", themed);
addEventListener("DOMContentLoaded", themed);

// ---- a canvas as wide as its place; draw(context, width, height) runs when size, theme or content change

class Surface {
  constructor(label, height, draw, attributes = {}) {
    // Without a label it is an ornament, beside words that say the same.
    const named = label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" };
    this.canvas = h("canvas", { ...named, ...attributes });
    this.height = height; // a number, or a function of the width
    this.draw = draw;
    this.waiting = false;
    surfaces.add(this);
    new ResizeObserver(() => this.redraw()).observe(this.canvas);
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      const width = this.canvas.clientWidth;
      if (!width) return;
      const height = Math.round(typeof this.height === "function" ? this.height(width) : this.height);
      const ratio = devicePixelRatio || 1;
      if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
        this.canvas.style.height = `${height}px`;
        this.canvas.width = Math.round(width * ratio);
        this.canvas.height = Math.round(height * ratio);
      }
      const context = this.canvas.getContext("2d");
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, width, height);
      context.font = "12px system-ui, sans-serif";
      this.draw(context, width, height);
    });
  }

  // Where an event is, in the canvas's own pixels.
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }
}

// Text that can be read on whatever is below it.
function haloed(context, text, x, y) {
  context.lineWidth = 4;
  context.lineJoin = "round";
  context.strokeStyle = css("halo");
  context.strokeText(text, x, y);
  context.fillStyle = css("text");
  context.fillText(text, x, y);
}

// ---- play, pause, slide, step

class Player {
  // frames: how many; shown(frame) draws one; named(frame) says it; rate: frames a second at speed 1.
  constructor(frames, shown, { named = (f) => `frame ${f + 1} of ${frames}`, rate = 30 } = {}) {
    Object.assign(this, { frames, shown, named, rate, frame: 0, place: 0, speed: 1, playing: false });
    this.button = h("button", { click: () => this.play(!this.playing), disabled: frames < 2 });
    this.slider = h("input", {
      type: "range", min: 0, max: frames - 1, value: 0, "aria-label": "frame", disabled: frames < 2,
      input: () => { this.play(false); this.show(Number(this.slider.value)); },
    });
    this.said = h("output", { "aria-live": "off" });
    const speeds = [0.1, 0.25, 0.5, 1, 2];
    this.element = h("div", { class: "player" }, this.button, this.slider, this.said,
      choice("speed", speeds.map((s) => `× ${s}`), speeds.indexOf(1), (i) => { this.speed = speeds[i]; }));
    document.addEventListener("keydown", (event) => this.key(event));
    this.play(frames > 1 && !matchMedia("(prefers-reduced-motion: reduce)").matches);
    this.show(0);
  }

  show(frame) {
    this.frame = ((frame % this.frames) + this.frames) % this.frames;
    this.place = this.frame;
    this.said.value = this.named(this.frame);
    this.slider.value = this.frame;
    this.slider.setAttribute("aria-valuetext", this.named(this.frame));
    this.shown(this.frame);
  }

  play(playing) {
    this.button.textContent = playing ? "Pause" : "Play";
    if (playing && !this.playing) {
      let before = null;
      const tick = (now) => {
        if (!this.playing) return;
        const place = this.place + (before === null ? 0 : ((now - before) / 1000) * this.rate * this.speed);
        before = now;
        if (Math.floor(place) !== this.frame) this.show(Math.floor(place));
        this.place = place % this.frames;
        requestAnimationFrame(tick);
      };
      requestAnimationFrame(tick);
    }
    this.playing = playing;
  }

  key(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|BUTTON|TEXTAREA)$/.test(event.target.tagName)) return;
    const step = { ArrowLeft: -1, ArrowRight: 1, ",": -1, ".": 1 }[event.key];
    if (event.key === " ") this.play(!this.playing && this.frames > 1);
    else if (step) { this.play(false); this.show(this.frame + step); }
    else if (event.key === "Home" || event.key === "End") {
      this.play(false);
      this.show(event.key === "Home" ? 0 : this.frames - 1);
    } else return;
    event.preventDefault();
  }
}
