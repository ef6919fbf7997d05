// The loudspeaker: plays 24 kHz sound as it arrives, and knows how much of it was played.

import {RATE, toFloat} from "./pcm.js";

export class Speaker {
  // started(item): its first audible sample is played now. idle(): all is played. level(RMS): about
  // 47 times a second.
  static async open({started, idle, level}) {
    const context = new AudioContext({sampleRate: RATE, latencyHint: "interactive"});
    await context.audioWorklet.addModule(new URL("playback.js", import.meta.url));
    // Without the user's leave a page may not sound; a click or a key has just given it.
    await context.resume();
    return new Speaker(context, {started, idle, level});
  }

  constructor(context, {started, idle, level}) {
    this.context = context;
    this.unfinished = new Set();
    this.playedMs = 0;  // of all items together
    this.flushes = [];
    const options = {numberOfInputs: 0, outputChannelCount: [1]};
    this.node = new AudioWorkletNode(context, "playback", options);
    this.node.connect(context.destination);
    this.node.port.onmessage = ({data}) => {
      if (data.total !== undefined) this.playedMs = inMs(data.total);
      if (data.started !== undefined) started(data.started);
      else if (data.finished !== undefined) {
        this.unfinished.delete(data.finished);
        if (!this.busy) idle?.();
      } else if (data.flushed) this.flushes.shift()(data.flushed);
      else level(data.level);
    };
  }

  get busy() {
    return this.unfinished.size > 0;
  }

  play(item, pcm) {
    const sound = toFloat(pcm);
    this.unfinished.add(item);
    this.node.port.postMessage({sound, item}, [sound.buffer]);
  }

  // No more of this item comes.
  end(item) {
    this.node.port.postMessage({end: item});
  }

  // Silence, at once. Gives what was cut off, [{item, ms}], ms: how much of it was played. The
  // few milliseconds that are on their way through the device are still heard, so they count.
  async flush() {
    this.unfinished.clear();
    const flushed = await new Promise((resolve) => {
      this.flushes.push(resolve);
      this.node.port.postMessage({flush: true});
    });
    return flushed.map(({item, played}) => ({item, ms: inMs(played)}));
  }

  close() {
    this.node.port.onmessage = null;
    return this.context.close();
  }
}

function inMs(samples) {
  return Math.floor(samples * 1000 / RATE);
}
