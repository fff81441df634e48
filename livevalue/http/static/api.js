// Asks the server: JSON with the token, and the updates stream. No library.
"use strict";

const api = {
  // Kept for this tab only; never in an address, where logs would hold it.
  get token() { return sessionStorage.getItem("livevalue-token") || ""; },
  set token(text) { sessionStorage.setItem("livevalue-token", text); },

  headers() { return this.token ? { Authorization: `Bearer ${this.token}` } : {}; },

  // The answer, or an Error with `status` and the server's own message.
  async json(path) {
    return (await this.ask(path)).json();
  },

  async ask(path, signal) {
    let answer;
    try {
      answer = await fetch(path, { headers: this.headers(), signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw Object.assign(new Error("The server does not answer: is `livevalue serve` running?"),
        { status: 0 });
    }
    if (answer.ok) return answer;
    const said = await answer.json().catch(() => ({}));
    throw Object.assign(new Error(said.message || `The server answers ${answer.status}.`),
      { status: answer.status });
  },

  // Calls on(event, data) for each event until the stream ends. EventSource would do, but it
  // cannot send a token.
  async listen(path, on, opened) {
    const answer = await this.ask(path);
    opened();
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const text of events) {
        let name = "message";
        const data = [];
        for (const line of text.split("\n")) {
          if (line.startsWith("event: ")) name = line.slice(7);
          else if (line.startsWith("data: ")) data.push(line.slice(6));
        }
        if (data.length) on(name, JSON.parse(data.join("\n")));
      }
    }
  },
};

// Elements with text: what users wrote is only ever text, never markup.
function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("data-")) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}
