// Many short sequences, each in a range of its own, and a place that plays the chosen one.

class Animations {
  constructor(entry, layout) {
    this.layout = layout;
    for (const name of ["stored", "low", "step"]) this[name] = unpack(entry[name]);
    [, this.frames, this.joints] = this.stored.shape;
  }

  scene(i) {
    const size = this.frames * this.joints * 3, values = new Float32Array(size);
    const seen = new Uint8Array(this.frames * this.joints);
    for (let k = 0; k < size; k++) {
      const stored = this.stored[i * size + k];
      if (!stored) continue;
      seen[Math.floor(k / 3)] = 1;
      values[k] = this.low[i] + (stored - 1) * this.step[i];
    }
    return readScene({ places: Object.assign(values, { shape: [1, this.frames, this.joints, 3] }), seen }, this.layout);
  }
}

class Stage {
  constructor(animations, label) {
    Object.assign(this, { animations, label, figure: null });
    this.place = h("div");
    const F = animations.frames;
    this.player = new Player(F, (frame) => this.figure?.show(frame),
      { rate: 12, named: (f) => `picture ${f + 1} of ${F}` });
    this.elements = [this.place, ...(F > 1 ? [this.player.element] : [])];
  }

  show(i) {
    if (!this.figure) {
      this.figure = new Figure(this.animations.scene(i), this.animations.layout,
        { camera: new Camera(), small: true, height: 240, label: this.label });
      this.place.append(this.figure.canvas);
    }
    this.figure.scene = this.animations.scene(i);
    this.figure.surface.redraw();
  }
}
