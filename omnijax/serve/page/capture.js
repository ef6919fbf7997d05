// The worklet behind the microphone: resamples what it hears to 24 kHz and posts it in pieces of
// 20 ms, {pcm: Int16Array, level: RMS in [0, 1]}.

const RATE = 24000;
const PIECE = 480;
// Zero crossings of the filter on either side, and its corner as a share of the lower Nyquist
// frequency: flat to 9.5 kHz, and less than -70 dB of what would fold back.
const CROSSINGS = 24;
const CORNER = 0.9;
const KAISER_BETA = 8;

function divisor(a, b) {
  return b ? divisor(b, a % b) : a;
}

// The modified Bessel function of order zero, by its series.
function bessel(x) {
  let term = 1, sum = 1;
  for (let k = 1; term > 1e-12 * sum; k++) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

// One windowed sinc for each of the `up` places that an output can have between two inputs.
function filters(up, down) {
  const scale = Math.max(1, down / up);
  const half = Math.ceil(CROSSINGS * scale);
  const corner = CORNER / scale;
  const table = [];
  for (let phase = 0; phase < up; phase++) {
    const taps = new Float32Array(2 * half);
    let sum = 0;
    for (let j = 0; j < taps.length; j++) {
      const t = j - half + 1 - phase / up;
      const x = Math.PI * corner * t;
      const window = bessel(KAISER_BETA * Math.sqrt(Math.max(0, 1 - (t / half) ** 2)));
      taps[j] = (x ? Math.sin(x) / x : 1) * window;
      sum += taps[j];
    }
    table.push(taps.map((tap) => tap / sum));
  }
  return {table, half};
}

// Streaming: what comes out does not depend on how the input was cut into blocks.
class Resampler {
  constructor(from, to) {
    const common = divisor(from, to);
    this.up = to / common;
    this.down = from / common;
    Object.assign(this, filters(this.up, this.down));
    this.input = new Float32Array(4 * this.half + 1024);
    this.filled = this.half - 1;  // silence before the beginning
    this.at = this.half - 1;
    this.phase = 0;
  }

  push(block, emit) {
    if (this.filled + block.length > this.input.length) {
      const larger = new Float32Array(2 * (this.filled + block.length));
      larger.set(this.input);
      this.input = larger;
    }
    this.input.set(block, this.filled);
    this.filled += block.length;
    for (; this.at + this.half < this.filled; ) {
      const taps = this.table[this.phase];
      const first = this.at - this.half + 1;
      let sum = 0;
      for (let j = 0; j < taps.length; j++) sum += taps[j] * this.input[first + j];
      emit(sum);
      this.phase += this.down;
      this.at += Math.floor(this.phase / this.up);
      this.phase %= this.up;
    }
    // A very low rate can leave `at` beyond what is there: only what is there can be dropped.
    const used = Math.min(this.at - this.half + 1, this.filled);
    this.input.copyWithin(0, used, this.filled);
    this.filled -= used;
    this.at -= used;
  }
}

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate, RATE);
    this.clear();
  }

  clear() {
    this.pcm = new Int16Array(PIECE);
    this.filled = 0;
    this.power = 0;
  }

  process([[heard]]) {
    if (heard) this.resampler.push(heard, (sample) => this.add(sample));
    return true;
  }

  add(sample) {
    const clipped = Math.max(-1, Math.min(1, sample));
    this.pcm[this.filled++] = Math.round(clipped * 32767);
    this.power += clipped * clipped;
    if (this.filled < PIECE) return;
    const level = Math.sqrt(this.power / PIECE);
    this.port.postMessage({pcm: this.pcm, level}, [this.pcm.buffer]);
    this.clear();
  }
}

registerProcessor("capture", Capture);
