// Samples as 16 bits, little end first, in base64 and in WAV files.

export const RATE = 24000;

export function toBase64(pcm) {
  const bytes = new Uint8Array(pcm.buffer, pcm.byteOffset, pcm.byteLength);
  return btoa(String.fromCharCode(...bytes));
}

export function fromBase64(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}

export function toFloat(pcm) {
  return Float32Array.from(pcm, (sample) => sample / 32768);
}

// A WAV file, as a Blob, of pieces that follow each other.
export function wav(pieces) {
  const size = pieces.reduce((sum, piece) => sum + piece.byteLength, 0);
  const head = new DataView(new ArrayBuffer(44));
  const letters = (at, text) => [...text].forEach((c, i) => head.setUint8(at + i, c.charCodeAt(0)));
  letters(0, "RIFF");
  head.setUint32(4, 36 + size, true);
  letters(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true);  // PCM
  head.setUint16(22, 1, true);  // one channel
  head.setUint32(24, RATE, true);
  head.setUint32(28, 2 * RATE, true);
  head.setUint16(32, 2, true);
  head.setUint16(34, 16, true);
  letters(36, "data");
  head.setUint32(40, size, true);
  return new Blob([head, ...pieces], {type: "audio/wav"});
}
