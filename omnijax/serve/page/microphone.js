// The microphone, and in words what can be wrong with it.

const WANTED = {
  channelCount: 1,
  echoCancellation: true,  // or the model would hear itself
  noiseSuppression: true,
  autoGainControl: true,
};

const FAULTS = {
  NotAllowedError: "This page may not use the microphone. Allow it in the browser's settings of "
    + "this site (beside the address), then press Talk again.",
  NotFoundError: "No microphone was found. Connect one, then press Talk again.",
  NotReadableError: "The microphone is in use or does not answer. Close other programs that use "
    + "it, then press Talk again.",
};

// heard(pcm, level): 20 ms at 24 kHz, 50 times a second. lost(): it was unplugged or taken away.
// Gives an object with close(). Throws an Error whose message says what to do.
export async function openMicrophone({heard, lost}) {
  // Browsers hide it from pages that others could have changed on their way.
  if (!navigator.mediaDevices) {
    throw new Error("The browser gives the microphone only to pages of https or of this machine "
      + "itself. Open this page as https://, or as http://localhost through a tunnel.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({audio: WANTED});
  } catch (fault) {
    throw new Error(FAULTS[fault.name] ?? `The microphone does not open: ${fault.message}.`);
  }
  const context = new AudioContext({latencyHint: "interactive"});
  await context.audioWorklet.addModule(new URL("capture.js", import.meta.url));
  await context.resume();
  const node = new AudioWorkletNode(context, "capture",
    {numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit"});
  node.port.onmessage = ({data}) => heard(data.pcm, data.level);
  context.createMediaStreamSource(stream).connect(node);
  const [track] = stream.getAudioTracks();
  track.onended = lost;
  return {
    close() {
      node.port.onmessage = track.onended = null;
      track.stop();
      return context.close();
    },
  };
}

// Tells speech from the room by loudness, for the latency readout: louder than -40 dBFS and than
// four times the quietest of late. loud(level) -> bool.
export function gate() {
  let floor = 1;
  return (level) => {
    floor = Math.min(level, floor * 1.005 + 1e-6);
    return level > Math.max(0.01, 4 * floor);
  };
}
