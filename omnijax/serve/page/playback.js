// The worklet behind the loudspeaker. It plays items (one utterance each) in the order in which
// their sound arrives, and counts the samples of each that were really played: what an interrupted
// speaker has said is known here only.
//
// In:  {sound: Float32Array, item}   {end: item}: no more of it comes   {flush: true}: silence now
// Out: {started: item}: its first audible sample   {finished: item, total}
//      {level: RMS, total: samples played}, every 512 samples
//      {flushed: [{item, played}]}: what was cut off, and after how many samples

const REPORT = 512;
const AUDIBLE = 0.003;  // -50 dBFS
// Sound waits this long before it starts, so that what follows may be late by as much. Each gap
// that is heard all the same makes the wait longer.
const FIRST_WAIT = 0.04 * sampleRate;
const LONGER = 0.02 * sampleRate;
const LONGEST = 0.2 * sampleRate;

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.queue = [];  // [{item, wave, at}]
    this.items = new Map();  // of those not finished: item -> {played, ended, sounded}
    this.lead = FIRST_WAIT;
    this.wait = 0;
    this.running = false;
    this.flushing = false;
    this.total = 0;
    this.reported = 0;
    this.power = 0;
    this.port.onmessage = ({data}) => this.receive(data);
  }

  receive({sound, item, end, flush}) {
    if (sound) {
      const known = this.items.has(item);
      if (!known) this.items.set(item, {played: 0, ended: false, sounded: false});
      if (!this.queue.length && !this.running) {
        if (known) this.lead = Math.min(this.lead + LONGER, LONGEST);  // this was a gap
        this.wait = this.lead;
      }
      this.queue.push({item, wave: sound, at: 0});
    }
    if (end !== undefined && this.items.has(end)) {
      this.items.get(end).ended = true;
      if (!this.queue.some((piece) => piece.item === end)) this.finish(end);
    }
    if (flush) {
      if (this.items.size) this.flushing = true;
      else this.port.postMessage({flushed: []});
    }
  }

  process(inputs, [[out]]) {
    if (this.queue.length && !this.running) {
      this.wait -= out.length;
      this.running = this.wait <= 0;
    }
    if (this.running) this.fill(out);
    if (this.flushing) this.flush(out);
    this.report(out);
    return true;
  }

  fill(out) {
    let filled = 0;
    while (filled < out.length && this.queue.length) {
      const piece = this.queue[0];
      const state = this.items.get(piece.item);
      const some = piece.wave.subarray(piece.at, piece.at + out.length - filled);
      if (!state.sounded && some.some((sample) => Math.abs(sample) > AUDIBLE)) {
        state.sounded = true;
        this.port.postMessage({started: piece.item});
      }
      out.set(some, filled);
      filled += some.length;
      piece.at += some.length;
      state.played += some.length;
      this.total += some.length;
      if (piece.at < piece.wave.length) continue;
      this.queue.shift();
      const over = state.ended && !this.queue.some((other) => other.item === piece.item);
      if (over) this.finish(piece.item);
    }
    this.running = this.queue.length > 0;
  }

  finish(item) {
    this.items.delete(item);
    this.port.postMessage({finished: item, total: this.total});
  }

  // The block at hand fades out, as a wave that is cut clicks; it counts as played.
  flush(out) {
    for (let i = 0; i < out.length; i++) out[i] *= 1 - (i + 1) / out.length;
    const flushed = Array.from(this.items, ([item, {played}]) => ({item, played}));
    this.port.postMessage({flushed});
    this.queue = [];
    this.items.clear();
    this.running = this.flushing = false;
  }

  report(out) {
    for (const sample of out) this.power += sample * sample;
    this.reported += out.length;
    if (this.reported < REPORT) return;
    const level = Math.sqrt(this.power / this.reported);
    this.port.postMessage({level, total: this.total});
    this.reported = this.power = 0;
  }
}

registerProcessor("playback", Playback);
