// Draws /openapi.json: paths, parameters, answers.
"use strict";

(async () => {
  let described;
  try {
    described = await api.json("/openapi.json");
  } catch (error) {
    const notice = document.getElementById("notice");
    notice.hidden = false;
    notice.textContent = error.status === 401
      ? "This server asks for a token: give it on the console first." : error.message;
    return;
  }
  const articles = [];
  for (const [path, ways] of Object.entries(described.paths)) {
    for (const [way, what] of Object.entries(ways)) {
      const rows = (what.parameters || []).map((of) => element("tr", {},
        element("td", {}, element("code", { textContent: of.name })),
        element("td", { textContent: of.in + (of.required ? ", required" : "") }),
        element("td", { class: "why", textContent: of.description || "" })));
      const answers = Object.entries(what.responses).map(([status, of]) => element("tr", {},
        element("td", {}, element("code", { textContent: status })),
        element("td", { textContent: "answer" }),
        element("td", { class: "why", textContent: of.description })));
      articles.push(element("article", { class: "card" },
        element("h2", {}, element("span", { class: "way", textContent: way.toUpperCase() }),
          element("code", { textContent: path })),
        element("pre", { textContent: what.description || what.summary }),
        element("table", {}, element("tbody", {}, ...rows, ...answers))));
    }
  }
  document.getElementById("paths").replaceChildren(...articles);
})();
