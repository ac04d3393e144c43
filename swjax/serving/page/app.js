// The page: what is chosen, one or two streams of the same pictures, their words and timelines.

import { closeWebcam, loadFile, openWebcam, sendFile, sendWebcam } from "./capture.js";
import { openStream, reasonText } from "./socket.js";
import { Timeline } from "./timeline.js";

const $ = (id) => document.getElementById(id);
const MODE_TEXTS = {
  parallel: "parallel: sees and speaks at once",
  sequential: "sequential: sees, then speaks",
  interleaved: "interleaved: one sequence",
  offline: "offline: sees all, then speaks",
  recompute: "recompute: all again at each frame",
};

let token = takeToken();
let hello = null;
let running = null; // what can be stopped
let shown = []; // the lanes on the page

// The token may stand in the address; it is taken out of it, so that it is not shared with the address.
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token") ?? new URLSearchParams(location.search).get("token");
  if (given) {
    sessionStorage.setItem("swjax-token", given);
    history.replaceState(null, "", location.pathname);
  }
  return given ?? sessionStorage.getItem("swjax-token") ?? "";
}

function setState(state, text = "") {
  document.body.dataset.state = state;
  $("status").textContent = text;
  const isBusy = ["opening", "streaming", "ending"].includes(state);
  $("start").disabled = isBusy || !hello;
  $("stop").disabled = !isBusy;
  mayAsk();
}

// Questions go between frames: from the first that was seen until no picture follows.
function mayAsk() {
  const lanes = running ? shown.filter((lane) => lane.watching) : [];
  const isOpen = document.body.dataset.state === "streaming" && lanes.length > 0;
  for (const id of ["ask", "ask-now"]) $(id).disabled = !isOpen || lanes.some((lane) => lane.questions.length > hello.limits.max_questions);
}

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

async function connect() {
  try {
    const answer = await fetch("/hello", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
    if (answer.status === 401) {
      $("token-form").hidden = false;
      $("token").focus();
      $("about").textContent = "not connected";
      if (token) showError("The server does not know this token.");
      return;
    }
    if (!answer.ok) throw new Error(await answer.text());
    hello = await answer.json();
  } catch (error) {
    $("about").textContent = "not connected";
    showError(`The server cannot be asked: ${error.message}`);
    return;
  }
  $("token-form").hidden = true;
  showError("");
  showHello();
  setState("idle", "Choose a video and press Start.");
}

function showHello() {
  const seconds = hello.pictures_per_frame / hello.fps;
  $("about").textContent =
    `${hello.model} · a frame of ${hello.pictures_per_frame} pictures every ${seconds} s · ${hello.defaults.variant}`;
  $("question").placeholder = hello.defaults.question;
  $("question").maxLength = hello.limits.max_question_characters;
  $("ask").maxLength = hello.limits.max_question_characters;
  $("wait_k").placeholder = hello.defaults.wait_k;
  $("wait_k").max = hello.limits.max_wait_k;
  $("max_tail").placeholder = hello.defaults.max_tail;
  $("max_tail").max = hello.limits.max_tail;
  if (token) $("metrics").href = `/metrics?token=${encodeURIComponent(token)}`;
  const modes = [...new Set([hello.defaults.mode, ...Object.values(hello.modes).flat()])];
  const options = (names, texts = {}) => names.map((name) => new Option(texts[name] ?? name, name));
  $("mode").replaceChildren(...options(modes, MODE_TEXTS));
  $("other").replaceChildren(...options(modes));
  $("other").value = modes.find((mode) => mode !== hello.defaults.mode) ?? modes[0];
  $("variant").replaceChildren(new Option("as the mode needs", ""), ...options(Object.keys(hello.modes)));
}

// The design that the model was trained with, unless the mode needs another.
function variantFor(mode) {
  if ($("variant").value) return $("variant").value;
  const { variant } = hello.defaults;
  return hello.modes[variant].includes(mode) ? variant : Object.keys(hello.modes).find((one) => hello.modes[one].includes(mode));
}

function optionsFor(mode, isLive) {
  const number = (id) => ($(id).value === "" ? null : Number($(id).value));
  return {
    question: $("question").value.trim() || null,
    mode,
    variant: variantFor(mode),
    wait_k: number("wait_k"),
    max_tail: number("max_tail"),
    when_behind: isLive ? $("when_behind").value : null,
    temperature: number("temperature"),
    repetition_penalty: number("repetition_penalty"),
    watches_on: true,
  };
}

const scale = () => 2 ** Number($("zoom").value);

// A lane is one stream with its words and its timeline.
function makeLane(mode) {
  const answer = document.createElement("article");
  answer.className = "answer";
  answer.innerHTML = '<h3><span class="name"></span><span class="state"></span></h3><p class="said" aria-live="polite"></p>';
  const line = document.createElement("div");
  line.className = "lane";
  line.innerHTML = '<h3></h3><p class="figures"></p><div class="scroll" tabindex="0" role="group"></div>';
  $("answers").append(answer);
  $("timelines").append(line);
  const name = `${mode} (${variantFor(mode)})`;
  answer.querySelector(".name").textContent = line.querySelector("h3").textContent = name;
  line.querySelector(".scroll").setAttribute("aria-label", `timeline of ${name}`);
  return {
    mode, line,
    said: answer.querySelector(".said"),
    state: answer.querySelector(".state"),
    figures: line.querySelector(".figures"),
    timeline: new Timeline(line.querySelector(".scroll"), scale()),
    openedAt: 0,
    stream: null,
    watching: false, // whether it may be asked
    questions: [""], // the first is that of the controls
    answering: 0,
  };
}

async function start() {
  const isWebcam = document.querySelector("[name=source]:checked").value === "webcam";
  const video = $("video");
  showError("");
  if (!isWebcam && !$("file").files.length) {
    showError("Choose a video file first, or take the webcam.");
    $("file").focus();
    return;
  }
  const speed = isWebcam ? 1 : Number($("speed").value);
  setState("opening", "Opening the video ...");
  $("hint").hidden = true;
  const stopping = new AbortController();
  const modes = [$("mode").value, ...($("compare").checked ? [$("other").value] : [])];
  $("answers").replaceChildren();
  $("timelines").replaceChildren();
  const lanes = modes.map(makeLane);
  shown = lanes;
  let pressed = 0;
  let sentCount = 0;
  running = {
    // The webcam's end lets the answers end; a second time, or with a file, they are given up.
    stop() {
      pressed += 1;
      stopping.abort();
      for (const lane of lanes) lane.watching = false;
      if (isWebcam && pressed === 1 && sentCount >= hello.pictures_per_frame) {
        for (const lane of lanes) lane.stream?.finish();
        setState("ending", "The answer ends; press Stop again to give it up.");
      } else {
        for (const lane of lanes) lane.stream?.close();
      }
    },
  };
  try {
    if (isWebcam) await openWebcam(video);
    else {
      video.pause();
      video.currentTime = 0;
    }
    const { ended } = await openLanes(lanes, isWebcam || speed > 0, stopping);
    setState("streaming", "Streaming.");
    const sentAt = [];
    const began = performance.now();
    for (const lane of lanes) lane.begin(began, sentAt);
    const streams = lanes.map((lane) => lane.stream);
    let toldLast = false;
    const send = (picture, isLast) => {
      for (const lane of lanes) {
        if (isLast && !toldLast) {
          lane.stream.last();
          lane.watching = false;
          mayAsk();
        }
        lane.stream.send(picture);
        lane.timeline.add({ kind: "sent", at: (performance.now() - began) / 1000 });
      }
      toldLast ||= isLast;
      sentAt.push(performance.now());
      sentCount += 1;
      if (streams.every((stream) => stream.over)) stopping.abort();
    };
    if (isWebcam) await sendWebcam(video, hello, send, stopping.signal);
    else await sendFile(video, hello, speed, streams, send, stopping.signal);
    await ended;
    setState("ended", pressed ? "Stopped." : "The answer has ended.");
  } catch (error) {
    stopping.abort();
    for (const lane of lanes) lane.stream?.close();
    showError(error.message);
    setState("failed");
  } finally {
    if (isWebcam) closeWebcam(video);
    else video.pause();
    running = null;
  }
}

// Open the streams of all lanes; resolves when all have a row; `ended` resolves when all have ended.
async function openLanes(lanes, isLive, stopping) {
  const ends = [];
  const opened = lanes.map((lane) => new Promise((resolve, reject) => {
    ends.push(new Promise((finish, fail) => {
      const failed = (text) => {
        lane.state.textContent = "failed";
        stopping.abort();
        reject(new Error(text));
        fail(new Error(text));
      };
      lane.begin = (began, sentAt) => Object.assign(lane, { began, sentAt });
      lane.at = (message) => (lane.openedAt - lane.began) / 1000 + message.wall_s;
      lane.stream = openStream(token, optionsFor(lane.mode, isLive), {
        failed,
        waiting: ({ place }) => {
          lane.state.textContent = `in line, place ${place}`;
          setState("opening", "All rows of the server are taken; waiting for one.");
        },
        opened: ({ wall_s }) => {
          lane.openedAt = performance.now() - 1000 * wall_s;
          lane.state.textContent = "watching";
          resolve();
        },
        seen: (message) => {
          const last = hello.pictures_per_frame * (message.index + 1) - 1;
          const from = ((lane.sentAt[last] ?? performance.now()) - lane.began) / 1000;
          lane.timeline.add({ kind: "seen", index: message.index, kept: message.kept, at: Math.max(from, lane.at(message)), from });
          lane.figures.textContent = lane.timeline.figures();
          if (message.index === 0) {
            lane.watching = true;
            mayAsk();
          }
        },
        asked: (message) => {
          lane.timeline.add({ kind: "asked", question: lane.questions[message.index], at: lane.at(message) });
        },
        word: (message) => {
          if (message.question !== lane.answering) {
            lane.answering = message.question;
            const question = document.createElement("q");
            question.className = "asked";
            question.textContent = lane.questions[message.question];
            lane.said.append(question);
          }
          const word = document.createElement("span");
          word.className = "word";
          word.textContent = message.text;
          lane.said.append(word);
          lane.said.scrollTop = lane.said.scrollHeight;
          lane.timeline.add({ kind: "word", ...message, after: message.after_frame, at: lane.at(message) });
          lane.figures.textContent = lane.timeline.figures();
        },
        limited: ({ message }) => { lane.state.textContent = message; },
        ended: (message) => {
          if (lane.began) lane.timeline.add({ kind: "end", at: lane.at(message) });
          lane.figures.textContent = lane.timeline.figures();
          lane.state.textContent = reasonText(message.reason);
          lane.watching = false;
          mayAsk();
          resolve();
          finish();
        },
      });
    }));
  }));
  const all = Promise.all(ends);
  all.catch(() => {}); // told below, or where the ends are awaited
  await Promise.all(opened);
  return { ended: all }; // a promise of its own would be awaited here
}

async function choose(file) {
  showError("");
  try {
    await loadFile($("video"), file);
    $("hint").hidden = true;
  } catch (error) {
    showError(error.message);
  }
}

$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running && hello) start();
});
$("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("ask").value.trim();
  if (!question) return;
  for (const lane of shown.filter((one) => one.watching)) {
    lane.questions.push(question);
    lane.stream.ask(question, $("interrupt").checked);
  }
  $("ask").value = "";
  mayAsk();
});
$("stop").addEventListener("click", () => running?.stop());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.stop();
});
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("swjax-token", token);
  connect();
});
$("file").addEventListener("change", () => $("file").files.length && choose($("file").files[0]));
for (const radio of document.querySelectorAll("[name=source]")) {
  radio.addEventListener("change", () => {
    const isWebcam = document.querySelector("[name=source]:checked").value === "webcam";
    $("file-field").hidden = isWebcam;
    $("speed").disabled = isWebcam;
  });
}
$("compare").addEventListener("change", () => { $("other").disabled = !$("compare").checked; });
$("zoom").addEventListener("input", () => {
  for (const lane of shown) lane.timeline.zoom(scale());
});
$("theme").addEventListener("click", () => {
  const isDark = getComputedStyle(document.documentElement).getPropertyValue("--back").trim() === "#0e1113";
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
});
const screen = $("screen");
for (const kind of ["dragover", "dragleave", "drop"]) {
  screen.addEventListener(kind, (event) => {
    event.preventDefault();
    screen.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length && !running) {
      $("file").files = event.dataTransfer.files;
      choose(event.dataTransfer.files[0]);
    }
  });
}

connect();
