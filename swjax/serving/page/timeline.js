// One stream's timeline: pictures sent, frames seen, questions asked and words spoken, over seconds since the first picture was sent.

const SVG = "http://www.w3.org/2000/svg";
const TOP = 20;
const ROWS = { sent: TOP + 12, seen: TOP + 28, word: TOP + 62 };
const WORD_LINES = 4;
const LINE = 14;
const HEIGHT = ROWS.word + WORD_LINES * LINE + 8;
const LEFT = 12;

function make(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const MAP = 16; // pixels on the longer side of a map of tokens

function countKept(kept) {
  return [...kept.join("")].filter((token) => token === "1").length;
}

// A map of a frame's tokens: a square for each that was kept.
function mapOf(kept, left, top) {
  const side = MAP / Math.max(kept.length, kept[0].length);
  const square = (row, column) => `M${left + column * side} ${top + row * side}h${side}v${side}h${-side}z`;
  return kept.flatMap((tokens, row) => [...tokens].map((token, column) => (token === "1" ? square(row, column) : ""))).join("");
}

export class Timeline {
  constructor(scroll, scale) {
    this.scroll = scroll;
    this.scale = scale; // pixels of a second
    this.marks = [];
    this.svg = make("svg", { class: "timeline", height: HEIGHT, role: "img" });
    scroll.replaceChildren(this.svg);
    this.clear();
  }

  // Marks are {kind, at, ...} with times in seconds; `from` of a frame is when its last picture was sent.
  add(mark) {
    this.marks.push(mark);
    this.draw(mark);
    const stuck = this.scroll.scrollLeft + this.scroll.clientWidth >= this.scroll.scrollWidth - 40;
    this.stretch(mark.at);
    if (stuck) this.scroll.scrollLeft = this.scroll.scrollWidth;
  }

  zoom(scale) {
    const middle = (this.scroll.scrollLeft + this.scroll.clientWidth / 2) / this.scale;
    this.scale = scale;
    this.clear();
    for (const mark of this.marks) this.draw(mark);
    this.stretch(Math.max(0, ...this.marks.map((mark) => mark.at)));
    this.scroll.scrollLeft = middle * scale - this.scroll.clientWidth / 2;
  }

  clear() {
    this.grid = make("g", { class: "grid" });
    this.seconds = -1;
    this.width = 0;
    this.svg.replaceChildren(this.grid);
    this.stretch(0);
  }

  x(seconds) {
    return LEFT + seconds * this.scale;
  }

  // Make room for a time, with a line for every second, or fewer where they would be too near.
  stretch(at) {
    const width = Math.max(this.scroll.clientWidth, this.x(at) + 90);
    if (width <= this.width) return;
    this.width = width;
    this.svg.setAttribute("width", width);
    const every = [0.1, 0.2, 0.5, 1, 2, 5, 10].find((step) => step * this.scale >= 50) ?? 10;
    for (let index = this.seconds + 1; this.x(index * every) < width; index += 1) {
      const x = this.x(index * every);
      this.grid.append(make("line", { x1: x, x2: x, y1: TOP - 4, y2: HEIGHT }));
      this.grid.append(make("text", { x: x + 3, y: 12 }, `${+(index * every).toFixed(1)} s`));
      this.seconds = index;
    }
  }

  draw(mark) {
    const x = this.x(mark.at);
    if (mark.kind === "sent") {
      this.svg.append(make("circle", { class: "sent", cx: x, cy: ROWS.sent, r: 3 }));
    } else if (mark.kind === "seen") {
      const from = this.x(Math.min(mark.from, mark.at));
      const group = make("g", { class: "seen" });
      const lost = mark.kept ? `, ${countKept(mark.kept)} of ${mark.kept.join("").length} tokens kept` : "";
      group.append(make("title", {}, `frame ${mark.index}: seen ${(mark.at - mark.from).toFixed(3)} s after it was sent${lost}`));
      group.append(make("rect", { x: from, y: ROWS.seen - 5, width: Math.max(3, x - from), height: 10, rx: 2 }));
      group.append(make("text", { x: (from + x) / 2, y: ROWS.seen + 18 }, mark.index));
      if (mark.kept) group.append(make("path", { class: "kept", d: mapOf(mark.kept, (from + x) / 2 + 8, ROWS.seen + 8) }));
      this.svg.append(group);
    } else if (mark.kind === "word") {
      const y = ROWS.word + (mark.index % WORD_LINES) * LINE;
      const group = make("g", { class: "word" });
      group.append(make("title", {}, `${mark.at.toFixed(3)} s, after frame ${mark.after}`));
      group.append(make("line", { x1: x, x2: x, y1: y - 4, y2: y + 8 }));
      group.append(make("text", { x: x + 4, y: y + 6 }, mark.text.trim() || "·"));
      this.svg.append(group);
    } else if (mark.kind === "asked") {
      const group = make("g", { class: "asked" });
      group.append(make("title", {}, mark.question));
      group.append(make("line", { x1: x, x2: x, y1: TOP, y2: HEIGHT }));
      group.append(make("text", { x: x + 3, y: ROWS.sent + 4 }, "?"));
      this.svg.append(group);
    } else {
      this.svg.append(make("line", { class: "end", x1: x, x2: x, y1: TOP, y2: HEIGHT }));
    }
  }

  // What the marks say, in words.
  figures() {
    const of = (kind) => this.marks.filter((mark) => mark.kind === kind);
    const [seen, words, [end]] = [of("seen"), of("word"), of("end")];
    const parts = [`${seen.length} frames seen`, `${words.length} words`];
    if (seen.length) {
      const lags = seen.map((mark) => Math.max(0, mark.at - mark.from));
      parts.push(`seen ${(lags.reduce((sum, lag) => sum + lag, 0) / lags.length).toFixed(2)} s after it was sent, on average`);
      if (words.length) parts.push(`first word ${Math.max(0, words[0].at - seen[0].from).toFixed(2)} s after its frame`);
    }
    if (end) parts.push(`ended at ${end.at.toFixed(2)} s`);
    return parts.join(" · ");
  }
}
