// The sound of both sides as bars that move to the left: the user's upwards, the model's downwards,
// so that it shows who spoke while the other did.

const TICK_MS = 50;  // one bar
const PITCH = 5;  // CSS pixels from bar to bar
const BARS = 512;
const SIDES = ["user", "model"];

// Loudness as the share of the height: -54 dBFS and less is nothing, -6 dBFS all.
function height(level) {
  return Math.max(0, Math.min(1, (20 * Math.log10(level + 1e-9) + 54) / 48));
}

export class Waves {
  constructor(canvas) {
    this.canvas = canvas;
    this.bars = {user: new Float32Array(BARS), model: new Float32Array(BARS)};
    this.cuts = [];  // ticks at which the model was interrupted
    this.tick = this.now();
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  now() {
    return Math.floor(performance.now() / TICK_MS);
  }

  // Bars of the time since the last one are silent.
  advance() {
    const now = this.now();
    for (let tick = Math.max(this.tick + 1, now - BARS + 1); tick <= now; tick++) {
      for (const side of SIDES) this.bars[side][tick % BARS] = 0;
    }
    this.tick = now;
  }

  add(side, level) {
    this.advance();
    const at = this.tick % BARS;
    this.bars[side][at] = Math.max(this.bars[side][at], height(level));
  }

  cut() {
    this.cuts.push(this.now());
    if (this.cuts.length > 64) this.cuts.shift();
  }

  draw() {
    this.advance();
    const {canvas} = this;
    const style = getComputedStyle(canvas);
    const scale = devicePixelRatio;
    const [width, tall] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(tall * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(tall * scale);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, tall);
    const middle = tall / 2;
    // Bars move between ticks, too, unless the user prefers that things don't.
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const part = calm ? 0 : (performance.now() / TICK_MS) % 1;
    const place = (tick) => width - (this.tick - tick + part) * PITCH;
    const shown = Math.min(BARS - 1, Math.ceil(width / PITCH) + 1);
    pen.fillStyle = style.getPropertyValue("--edge");
    pen.fillRect(0, middle - 0.5, width, 1);
    for (const side of SIDES) {
      pen.fillStyle = style.getPropertyValue(`--${side}`);
      pen.beginPath();
      for (let tick = this.tick - shown; tick <= this.tick; tick++) {
        const long = this.bars[side][((tick % BARS) + BARS) % BARS] * (middle - 10);
        if (long < 1) continue;
        pen.roundRect(place(tick), side === "user" ? middle - 2 - long : middle + 2, 3, long, 1.5);
      }
      pen.fill();
    }
    pen.fillStyle = style.getPropertyValue("--bad");
    for (const tick of this.cuts) pen.fillRect(place(tick), middle + 2, 1.5, middle - 8);
  }
}
