// Pictures of a file or of the webcam at the model's rate, drawn through a canvas.

const SMALL_AREA = 256 * 256; // up to here pictures are sent without loss
const MOST_UNSENT = 256 * 1024;
// As the server's decoder: what a file promises may be a little more than it shows.
const TOLERANCE_S = 0.0011;

function sleep(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

function once(target, event, signal) {
  return new Promise((resolve, reject) => {
    target.addEventListener(event, resolve, { once: true, signal });
    target.addEventListener("error", () => reject(new Error(mediaError(target))), { once: true, signal });
    signal?.addEventListener("abort", resolve, { once: true });
  });
}

function mediaError(video) {
  return `The browser cannot play this video${video.error?.message ? ` (${video.error.message})` : ""}.`;
}

export async function loadFile(video, file) {
  URL.revokeObjectURL(video.src);
  video.srcObject = null;
  video.src = URL.createObjectURL(file);
  await once(video, "loadeddata");
}

export async function openWebcam(video) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error("The browser gives the webcam only to pages from localhost or over https.");
  }
  video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } }, audio: false });
  await video.play();
}

export function closeWebcam(video) {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}

// A canvas with room for the pictures: no larger than four times what the model looks at, as it would be wasted.
function makeCanvas(video, hello) {
  const area = video.videoWidth * video.videoHeight;
  const most = Math.min(4 * hello.max_pixels, hello.limits.max_picture_pixels);
  const shrink = Math.min(1, Math.sqrt(most / area));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.floor(video.videoWidth * shrink));
  canvas.height = Math.max(1, Math.floor(video.videoHeight * shrink));
  return canvas;
}

function draw(video, canvas) {
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  const type = canvas.width * canvas.height <= SMALL_AREA ? "image/png" : "image/jpeg";
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The picture could not be encoded."))), type, 0.92);
  });
}

// Calls `send(picture, isLastFrame)` for each picture of the file, at a speed; 0 is as fast as it is taken in.
export async function sendFile(video, hello, speed, streams, send, signal) {
  const canvas = makeCanvas(video, hello);
  const perFrame = hello.pictures_per_frame;
  const all = Math.ceil((video.duration - TOLERANCE_S) * hello.fps);
  const count = all - (all % perFrame);
  if (!(count > 0)) throw new Error(`The video is shorter than one frame (${perFrame / hello.fps} s).`);
  if (speed) {
    video.playbackRate = speed;
    video.currentTime = 0;
    await video.play();
  }
  for (let number = 0; number < count && !signal.aborted; number += 1) {
    const due = number / hello.fps;
    if (speed) {
      while (video.currentTime < due && !video.ended && !signal.aborted) await sleep(8);
    } else {
      video.currentTime = Math.min(due + 0.001, video.duration);
      await once(video, "seeked", signal);
      while (streams.some((one) => one.waiting > MOST_UNSENT) && !signal.aborted) await sleep(8);
    }
    if (!signal.aborted) send(await draw(video, canvas), number >= count - perFrame);
  }
  if (signal.aborted) video.pause();
}

// The same for the webcam, until it is stopped; nobody knows before which frame is the last.
export async function sendWebcam(video, hello, send, signal) {
  const canvas = makeCanvas(video, hello);
  const began = performance.now();
  for (let number = 0; !signal.aborted; number += 1) {
    await sleep(Math.max(0, began + (1000 * number) / hello.fps - performance.now()));
    if (!signal.aborted) send(await draw(video, canvas), false);
  }
}
