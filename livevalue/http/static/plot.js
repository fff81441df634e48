// The silence curve as SVG: what each horizon is worth after so many days without an event.
"use strict";

const plot = {
  width: 460, height: 250, left: 58, right: 12, top: 12, bottom: 28,

  // Linear between knots, the last value holds: as `scoring.documents.at`.
  at(days, curve, day) {
    if (day <= days[0]) return curve[0];
    const right = days.findIndex((knot) => knot > day);
    if (right < 0) return curve[curve.length - 1];
    const share = (day - days[right - 1]) / (days[right] - days[right - 1]);
    return curve[right - 1] + (curve[right] - curve[right - 1]) * share;
  },

  // silence: of the document; now: days since its as_of; money: formats a number.
  draw(into, silence, now, money) {
    const names = Object.keys(silence.expected);
    const days = silence.days;
    const last = Math.max(days[days.length - 1], 1);
    const most = Math.max(...names.flatMap((name) => silence.expected[name]), 1e-9);
    const { step, high } = this.scale(most);
    const inner = this.width - this.left - this.right;
    const tall = this.height - this.top - this.bottom;
    // Days as their root: the first weeks hold most of the fall.
    const x = (day) => this.left + inner * Math.sqrt(Math.min(day, last) / last);
    const y = (value) => this.top + tall * (1 - value / high);
    const svg = this.svg("svg", { viewBox: `0 0 ${this.width} ${this.height}`, role: "img",
      "aria-label": `Value over ${last} days of silence` });

    for (let value = 0; value <= high * 1.0001; value += step) {
      svg.append(this.line("grid", this.left, y(value), this.width - this.right, y(value)));
      svg.append(this.text(this.left - 8, y(value) + 4, "end", this.short(value, step)));
    }
    const marks = [0, 7, 30, 90, 180, 365].filter((day) => day <= last);
    for (const day of marks) {
      const anchor = day === last ? "end" : "middle";
      svg.append(this.text(x(day), this.height - 8, anchor, day === last ? `${day} days` : day));
    }
    names.forEach((name, i) => {
      const points = [];
      for (let at = 0; at <= 160; at += 1) {
        const day = last * (at / 160) ** 2;
        points.push(`${x(day).toFixed(1)},${y(this.at(days, silence.expected[name], day)).toFixed(1)}`);
      }
      svg.append(this.svg("polyline", { class: `curve s${i}`, points: points.join(" ") }));
    });
    if (now > 0) {
      svg.append(this.line("now", x(now), this.top, x(now), this.height - this.bottom));
      const late = x(now) > this.width - 90;
      svg.append(this.text(x(now) + (late ? -6 : 6), this.height - this.bottom - 6, late ? "end" : "start", "now"));
    }
    const hair = this.line("hair", 0, this.top, 0, this.height - this.bottom);
    hair.setAttribute("visibility", "hidden");
    svg.append(hair);

    const said = element("output");
    const tell = (day) => {
      const active = silence.p_active[names[names.length - 1]];
      const worth = names.map((name) => `${name} ${money(this.at(days, silence.expected[name], day))}`);
      const share = Math.round(100 * this.at(days, active, day));
      said.textContent = `day ${Math.round(day)}: ${worth.join(" · ")} · active ${share}%`;
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const share = ((event.clientX - box.left) / box.width * this.width - this.left) / inner;
      const day = last * Math.min(Math.max(share, 0), 1) ** 2;
      hair.setAttribute("x1", x(day));
      hair.setAttribute("x2", x(day));
      hair.setAttribute("visibility", "visible");
      tell(day);
    });
    svg.addEventListener("pointerleave", () => {
      hair.setAttribute("visibility", "hidden");
      tell(Math.max(now, 0));
    });
    tell(Math.max(now, 0));
    into.replaceChildren(svg, said);
  },

  // Three to five round steps up to at least `most`.
  scale(most) {
    const power = 10 ** Math.floor(Math.log10(most));
    const step = [0.2, 0.5, 1, 2, 5].map((of) => of * power).find((of) => most / of <= 5) || power;
    return { step, high: Math.ceil(most / step - 1e-9) * step };
  },

  short(value, step) {
    if (step < 1) return value.toFixed(Math.min(Math.ceil(-Math.log10(step)), 6));
    return new Intl.NumberFormat(undefined, { notation: value >= 1e5 ? "compact" : "standard" })
      .format(value);
  },

  line(kind, x1, y1, x2, y2) { return this.svg("line", { class: kind, x1, y1, x2, y2 }); },

  text(x, y, anchor, content) {
    const made = this.svg("text", { x, y, "text-anchor": anchor });
    made.textContent = content;
    return made;
  },

  svg(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  },
};
