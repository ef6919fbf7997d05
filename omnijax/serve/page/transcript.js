// What was said, typed and drawn by both sides.

const NAMES = {user: "You", model: "Model"};
// Pictures of fewer pixels a side are shown larger, pixel by pixel.
export const TINY = 96;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;

export class Transcript {
  // Who reads the end goes on to see the end; who has scrolled up is left alone.
  constructor(log, empty) {
    this.log = log;
    this.empty = empty;
    let following = true, last = 0;
    log.onscroll = () => {
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
      if (atEnd) following = true;
      else if (log.scrollTop < last) following = false;
      last = log.scrollTop;
    };
    this.sizes = new ResizeObserver(() => {
      if (following) log.scrollTop = log.scrollHeight;
    });
    this.sizes.observe(log);
  }

  // A new turn of "user" or "model".
  add(who) {
    this.empty.hidden = true;
    return new Turn(this, who);
  }

  clear() {
    for (const player of this.log.querySelectorAll("audio")) URL.revokeObjectURL(player.src);
    this.log.replaceChildren(this.empty);
    this.empty.hidden = false;
  }
}

class Turn {
  constructor(transcript, who) {
    this.text = "";
    this.words_ = element("p", {className: "words"});
    this.note_ = element("p", {className: "note", hidden: true});
    this.article = element("article", {className: `turn ${who}`},
      element("h3", {textContent: NAMES[who]}), this.words_, this.note_);
    // A screen reader waits until the turn is whole, else it would read single words.
    this.article.ariaBusy = "true";
    transcript.log.append(this.article);
    transcript.sizes.observe(this.article);
  }

  // More words. atMs: where in the turn's sound they begin.
  words(text, atMs = 0) {
    this.text += text;
    const span = element("span", {textContent: text});
    span.dataset.at = atMs;
    this.words_.append(span);
    return this;
  }

  note(text) {
    this.note_.textContent = text;
    this.note_.hidden = false;
    return this;
  }

  // url: a data URL. A click saves it.
  picture(url, alt, name) {
    const image = element("img", {alt});
    image.onload = () => {
      const side = Math.max(image.naturalWidth, image.naturalHeight);
      image.classList.toggle("tiny", side <= TINY);
      image.width = side <= TINY ? image.naturalWidth * Math.floor(192 / side) : image.naturalWidth;
    };
    image.src = url;
    const link = element("a", {href: url, download: name, title: "Save the picture"}, image);
    this.article.insertBefore(link, this.note_);
    return this;
  }

  // blob: a sound that can be heard again.
  sound(blob) {
    const player = element("audio", {controls: true, src: URL.createObjectURL(blob)});
    player.ariaLabel = "The spoken answer";
    this.article.insertBefore(player, this.note_);
    return this;
  }

  // Interrupted after ms of its sound: the words that begin later were not heard.
  cut(ms) {
    for (const span of this.words_.children) {
      span.classList.toggle("unheard", Number(span.dataset.at) >= ms);
    }
    return this.note(`interrupted after ${seconds(ms)}`).done();
  }

  done() {
    this.article.ariaBusy = "false";
    return this;
  }

  remove() {
    this.article.remove();
  }
}
