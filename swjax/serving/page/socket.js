// One stream over one WebSocket, by the protocol of docs/serving.md.

const REASONS = {
  end_token: "it has said all",
  token_limit: "cut off at the limit on words",
  capacity: "the server's memory for it is full",
  closed: "stopped",
};

export function reasonText(reason) {
  return REASONS[reason] ?? reason;
}

// Opens a socket and a stream. `on` has functions for the server's messages by their type, and `failed(text)`, which is
// called at most once, if the stream ends otherwise than by `ended`.
export function openStream(token, options, on) {
  const url = new URL("/ws", location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  if (token) url.searchParams.set("token", token);
  const socket = new WebSocket(url);
  let greeted = false;
  let over = false;

  function fail(text) {
    if (over) return;
    over = true;
    on.failed(text);
  }

  socket.addEventListener("message", ({ data }) => {
    const message = JSON.parse(data);
    if (message.type === "hello") {
      greeted = true;
      socket.send(JSON.stringify({ type: "open", ...options }));
    } else if (message.type === "error") {
      fail(message.message);
    } else {
      if (message.type === "ended") over = true;
      on[message.type]?.(message);
    }
  });
  socket.addEventListener("close", ({ code }) => {
    if (!greeted) fail("The server did not take the connection: it may be full, stopped, or out of reach.");
    else if (code === 1009) fail("A picture was larger than the server takes.");
    else fail(`The connection broke (code ${code}).`);
  });

  const say = (type, more = {}) =>
    socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify({ type, ...more }));
  return {
    send: (picture) => socket.readyState === WebSocket.OPEN && socket.send(picture),
    ask: (question, interrupt) => say("ask", { question, interrupt }),
    last: () => say("last"),
    finish: () => say("finish"),
    close: () => (socket.readyState === WebSocket.CONNECTING ? socket.close() : say("close")),
    get over() { return over; },
    get waiting() { return socket.bufferedAmount; },
  };
}
