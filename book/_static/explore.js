/* The explorer: the heat maps of the paper and of this book, cell by cell.

   The element with id "explore" names in data-from the folder of the files that decoupled/explore.py writes: scripts
   that call exploreData(name, data), loaded when they are first shown. The fragment of the address is MAP or
   MAP/SOURCE/ALPHA/DECAY, perhaps with /torch at its end; links with data-explore lead to such an address. A page
   without that element is left alone. Every class begins with "explore-"; colours and theme are in explore.css. */
(() => {
  "use strict";

  const SOURCES = { paper: "The paper", ours: "This book" };
  const FIRST = "grids-adamw";
  const EDGE = { left: 66, right: 10, top: 10, bottom: 46, gap: 6 }; // of a picture, CSS pixels
  const TURN_MS = 900;

  function set(node, attributes) {
    for (const [key, value] of Object.entries(attributes)) {
      node.setAttribute(key, key === "class" ? value.replace(/\S+/g, "explore-$&") : value);
    }
  }

  // A new element at the end of `parent`: of HTML or, inside a picture, of SVG.
  function make(parent, name, attributes = {}, text = "") {
    const space = name === "svg" ? "http://www.w3.org/2000/svg" : parent.namespaceURI;
    const node = document.createElementNS(space, name);
    set(node, attributes);
    node.append(text);
    parent.append(node);
    return node;
  }

  function plain(x) {
    const short = Number(x.toPrecision(3));
    return short === 0 || (short >= 0.001 && short < 1e5) ? String(short) : short.toExponential();
  }

  const signed = (x) => x.toFixed(2).replace(/^-(0\.00)$/, "$1").replace("-", "−");
  const mean = (values) => values.reduce((sum, x) => sum + x, 0) / values.length;

  const loaded = {};
  const waiting = {};

  function load(folder, name) {
    loaded[name] ??= new Promise((done, failed) => {
      waiting[name] = done;
      const script = make(document.head, "script", { src: `${folder}${name}.js` });
      script.onerror = () => failed(new Error(`${script.src} could not be loaded.`));
    });
    return loaded[name];
  }

  /* --- the numbers of a map; its scale is decay per step over the decay of the axis: 1 unless that is normalized --- */

  const symbol = (map) => (map.normalized ? "λ_norm" : map.decoupled ? "λ" : "λ′");
  const inTorch = (map, { alpha, decay }) => (map.decoupled ? (decay * map.scale) / alpha : decay);
  const octaves = (map, alpha) => (map.decoupled ? Math.log2(map.scale / alpha) : 0); // torch's unit moves a row by

  function prepare(map) {
    const known = map.cells.filter((cell) => cell.state === "value").sort((a, b) => a.error - b.error);
    known.forEach((cell, k) => { cell.rank = k + 1; });
    map.ringed = map.cells.length >= 80 ? 10 : 3; // ten as in the paper
    map.known = known.length;
    map.best = known[0];
    map.low = known.length ? known[0].error : 0;
    map.high = map.low * map.reach;
    map.logs = map.decays.filter((decay) => decay > 0).map(Math.log2);
    map.step = map.logs.length > 1 ? Math.min(...map.logs.slice(1).map((x, k) => x - map.logs[k])) : 1;
    return map;
  }

  function says(cell) {
    if (cell.error === null) return { missing: cell.keys ? "could not be read" : "no number", diverged: "diverged" }[cell.state];
    return (cell.state === "bound" ? "at least " : "") + `${cell.error.toFixed(2)} %`;
  }

  function colour(map, cell, colours) {
    const at = cell.state === "bound" ? 1 : Math.min(1, (cell.error - map.low) / (map.high - map.low));
    const place = at * (colours.length - 1);
    const k = Math.min(colours.length - 2, Math.floor(place));
    return colours[k].map((x, i) => Math.round(x + (colours[k + 1][i] - x) * (place - k)));
  }

  /* --- the picture of a map --- */

  // Where everything lies: `turn` is 0 in the paper's unit and 1 in torch's.
  function place(map, width, turn) {
    const rows = map.alphas.length;
    const height = Math.round(Math.min(64, Math.max(24, 300 / rows)));
    const shift = (alpha) => turn * octaves(map, alpha);
    const shifts = map.alphas.map(shift);
    const low = Math.min(...map.logs) + Math.min(...shifts) - map.step / 2;
    const high = Math.max(...map.logs) + Math.max(...shifts) + map.step / 2;
    const zero = map.decays.includes(0);
    const inside = width - EDGE.left - EDGE.right - (zero ? EDGE.gap : 0);
    const cell = inside / ((high - low) / map.step + (zero ? 1 : 0));
    const start = EDGE.left + (zero ? cell + EDGE.gap : 0);
    const across = (log) => start + ((log - low) / map.step) * cell;
    return {
      width, height, cell, start, zero, low, high, across,
      bottom: EDGE.top + rows * height,
      x: (alpha, decay) => (decay > 0 ? across(Math.log2(decay) + shift(alpha)) : EDGE.left + cell / 2),
      y: (alpha) => EDGE.top + (rows - 0.5 - map.alphas.indexOf(alpha)) * height,
    };
  }

  function ticks({ low, high, across }) {
    for (const [factors, every] of [[[1, 2, 5], 1], [[1, 3], 1], [[1], 1], [[1], 2], [[1], 3]]) {
      const found = [];
      for (let power = -12; power <= 6; power += every) found.push(...factors.map((factor) => Number(`${factor}e${power}`)));
      const inside = found.filter((x) => Math.log2(x) >= low && Math.log2(x) <= high);
      const places = inside.map((x) => across(Math.log2(x)));
      if (places.every((x, k) => k === 0 || x - places[k - 1] > 36)) return inside;
    }
    return [];
  }

  class Picture {
    constructor(parent, source, map, colours, on) {
      Object.assign(this, { source, map, cells: new Map() });
      const name = `${SOURCES[source]}: ${map.title}`;
      make(parent, "p", { class: "title" }, name);
      this.svg = make(parent, "svg", { role: "grid", "aria-label": `${name}, ${map.metric}` });
      this.clip = make(make(make(this.svg, "defs"), "clipPath", { id: `explore-clip-${source}` }), "rect");
      const over = make(this.svg, "g", { "aria-hidden": "true", class: "over" });
      this.ridge = make(over, "g", { "clip-path": `url(#explore-clip-${source})` });
      this.numbers = make(over, "g", { class: "numbers" });
      this.cursor = make(over, "g");
      this.axes = make(over, "g");
      for (const alpha of [...map.alphas].reverse()) {
        const row = make(this.svg, "g", { role: "row" });
        for (const decay of map.decays) {
          const cell = map.cells.find((one) => one.alpha === alpha && one.decay === decay);
          this.cells.set(cell, this.draw(row, cell, colours));
        }
      }
      this.svg.append(over); // above the cells
      const scale = make(parent, "p", { class: "scale" });
      make(scale, "span", {}, `${map.low.toFixed(1)} %`);
      const stops = colours.map((rgb) => `rgb(${rgb})`);
      make(scale, "span", { class: "bar" }).style.background = `linear-gradient(to right, ${stops})`;
      make(scale, "span", {}, `${map.high.toFixed(1)} % or more`);
      const readout = make(parent, "p", { class: "readout" });
      this.readout = make(readout, "span");
      make(readout, "button", { type: "button" }, "Details").addEventListener("click", on.details); // far down, on a phone
      this.slope = make(parent, "p", { class: "slope" });
      make(parent, "p", { class: "made" }, map.made);
      // on the box: Chromium lets Tab stop at a picture that listens itself
      const listen = (type, react) => parent.addEventListener(type, (event) => {
        const node = event.target.closest("[role=gridcell]");
        if (node) react([...this.cells.keys()].find((cell) => this.cells.get(cell).node === node), event);
      });
      listen("pointerover", (cell) => on.preview(this, cell));
      listen("focusin", (cell) => on.preview(this, cell));
      listen("click", (cell) => on.select(this, cell));
      listen("keydown", (cell, event) => this.key(cell, event, on));
      this.svg.addEventListener("pointerleave", () => on.preview());
    }

    draw(row, cell, colours) {
      const node = make(row, "g", { role: "gridcell", class: "cell" });
      const box = make(node, "rect", { class: "box" });
      const parts = { node, box };
      if (cell.error === null) {
        parts.cross = make(node, "path", { class: "cross" });
        return parts;
      }
      const [r, g, b] = colour(this.map, cell, colours);
      box.style.fill = `rgb(${r}, ${g}, ${b})`;
      const ink = 0.2126 * r + 0.7152 * g + 0.0722 * b < 120 ? "pale" : "deep";
      parts.text = make(this.numbers, "text", { class: ink }, (cell.state === "bound" ? ">" : "") + cell.error.toFixed(1));
      parts.text.style.stroke = box.style.fill; // a halo: the ridge runs below
      if (cell.rank <= this.map.ringed) {
        parts.rings = ["casing", cell.rank === 1 ? "ring best" : "ring"].map((name) => make(node, "rect", { class: name }));
        if (cell.rank === 1) parts.dot = make(node, "circle", { class: "dot", r: 3.2 });
      }
      return parts;
    }

    // Everything at its place, for a width in CSS pixels and a turn between 0 (paper) and 1 (torch).
    lay(width, turn) {
      const { map, svg, slope } = this;
      const at = (this.place = place(map, width, turn));
      const [w, h, high] = [at.cell, at.height, at.bottom + EDGE.bottom];
      set(svg, { viewBox: `0 0 ${width} ${high}`, width, height: high });
      set(this.clip, { x: at.start, y: EDGE.top, width: width - EDGE.right - at.start, height: at.bottom - EDGE.top });
      const numbers = w >= 38;
      const ring = Math.max(2, Math.min(w, h) / 2 - 3);
      const [half, tall] = numbers ? [w / 2 - 4, Math.min(22, h / 2 - 4)] : [ring, ring]; // around the number
      for (const [cell, parts] of this.cells) {
        const transform = `translate(${at.x(cell.alpha, cell.decay).toFixed(3)} ${at.y(cell.alpha)})`;
        set(parts.node, { transform });
        set(parts.box, { x: -w / 2, y: -h / 2, width: w, height: h });
        if (parts.text) set(parts.text, { transform, y: 4, display: numbers ? "inline" : "none" });
        if (parts.cross) set(parts.cross, { d: cell.state === "diverged" ? "M-4 -4L4 4M-4 4L4 -4" : "M-4 0H4" });
        for (const node of parts.rings ?? []) {
          set(node, { x: -half, y: -tall, width: 2 * half, height: 2 * tall, rx: Math.min(ring, 6) });
        }
        if (parts.dot) set(parts.dot, numbers ? { cx: half - 6, cy: 6 - tall } : { cx: 0, cy: 0 });
      }
      this.axis(at, turn);
      this.point();
      slope.textContent = "No ridge: too few learning rates tell a best decay";
      if (!map.ridge) return;
      this.line(at, map.ridge);
      const [value, low, top] = map.ridge.slope.map((x) => x !== null && x - (map.decoupled ? turn : 0));
      slope.textContent = `Slope of the ridge: ${signed(value)}`;
      if (low !== false) slope.append(` (95 % interval ${signed(low)} to ${signed(top)})`);
      slope.dataset.slope = value;
    }

    line(at, { alphas, best, line }) {
      this.ridge.replaceChildren();
      const point = (alpha, decay) => `${at.x(alpha, decay).toFixed(2)} ${at.y(alpha)}`;
      const bars = alphas.map((alpha, k) => (best[k] ? `M${point(alpha, best[k])}m0 -5v10` : "")).join("");
      const points = alphas.map((alpha, k) => point(alpha, line[k])).join(" ");
      for (const layer of ["casing", "line"]) {
        make(this.ridge, "path", { class: `best-${layer}`, d: bars });
        make(this.ridge, "polyline", { class: `ridge-${layer}`, points });
      }
    }

    axis(at, turn) {
      const { map, axes } = this;
      axes.replaceChildren();
      for (const alpha of map.alphas) {
        make(axes, "text", { class: "alpha", x: EDGE.left - 6, y: at.y(alpha) + 4 }, plain(alpha));
      }
      const label = (x, value) => {
        make(axes, "path", { class: "tick", d: `M${x} ${at.bottom}v4` });
        make(axes, "text", { class: "decay", x, y: at.bottom + 17, "data-decay": value }, plain(value));
      };
      if (at.zero) label(EDGE.left + at.cell / 2, 0);
      for (const value of ticks(at)) label(at.across(Math.log2(value)), value);
      const name = (transform, text) => make(axes, "text", { class: "decay", transform }, text);
      const unit = turn > 0.5 ? "torch's weight_decay" : `decay ${symbol(map)}`;
      name(`translate(${(EDGE.left + at.width - EDGE.right) / 2} ${at.bottom + 38})`, unit);
      name(`translate(9 ${(EDGE.top + at.bottom) / 2}) rotate(-90)`, "learning rate α");
    }

    // The frame around the cell that the panel describes.
    point(cell = this.active) {
      this.active = cell;
      this.cursor.replaceChildren();
      this.readout.parentNode.style.visibility = cell ? "visible" : "hidden";
      if (!cell) return;
      this.readout.textContent = `α ${plain(cell.alpha)}, ${symbol(this.map)} ${plain(cell.decay)}: ${says(cell)} `;
      const [w, h] = [this.place.cell + 2, this.place.height + 2];
      const [x, y] = [this.place.x(cell.alpha, cell.decay) - w / 2, this.place.y(cell.alpha) - h / 2];
      for (const layer of ["casing", "frame"]) {
        make(this.cursor, "rect", { class: `cursor-${layer}`, x, y, width: w, height: h, rx: 2 });
      }
    }

    // What a screen reader says of each cell, where Tab arrives, and which is selected.
    name(selected, torch) {
      const stop = selected ?? this.map.best ?? this.map.cells[0];
      for (const [cell, { node }] of this.cells) {
        const decay = torch ? `weight decay ${plain(inTorch(this.map, cell))}` : `decay ${plain(cell.decay)}`;
        const rank = cell.rank === 1 ? ", best" : cell.rank <= this.map.ringed ? `, rank ${cell.rank}` : "";
        set(node, {
          "aria-label": `alpha ${plain(cell.alpha)}, ${decay}: ${says(cell)}${rank}`,
          "aria-selected": cell === selected, tabindex: cell === stop ? 0 : -1,
        });
      }
    }

    key(cell, event, on) {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const { alphas, decays } = this.map;
      const [row, column] = [alphas.indexOf(cell.alpha), decays.indexOf(cell.decay)];
      const to = {
        ArrowUp: [row + 1, column], ArrowDown: [row - 1, column], ArrowLeft: [row, column - 1],
        ArrowRight: [row, column + 1], Home: [row, 0], End: [row, decays.length - 1], Enter: [row, column], " ": [row, column],
      }[event.key];
      if (!to) return;
      event.preventDefault();
      if (event.key === "Enter" || event.key === " ") on.select(this, cell);
      for (const [next, { node }] of this.cells) {
        if (next.alpha !== alphas[to[0]] || next.decay !== decays[to[1]]) continue;
        this.cells.get(cell).node.setAttribute("tabindex", -1);
        node.setAttribute("tabindex", 0);
        node.focus();
      }
    }
  }

  /* --- the panel: everything about one cell --- */

  function curves(parent, map, cell) {
    const average = ({ runs }) => {
      const good = runs.filter((run) => run.diverged === null).map((run) => run.curve);
      return good.length ? good[0].map((_, k) => mean(good.map((curve) => curve[k]))) : [];
    };
    const seeds = cell.runs.map((run) => run.curve);
    const rival = map.best && map.best !== cell ? average(map.best) : [];
    const all = [...seeds, rival].flat().filter((x) => x !== null);
    const epochs = Math.max(...seeds.map((curve) => curve.length));
    if (!all.length || epochs < 2) return;
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const box = { width: 340, height: 210, left: 40, right: 332, top: 8, bottom: 176 };
    const x = (k) => box.left + (k / (epochs - 1)) * (box.right - box.left);
    const y = (v) => box.top + ((high - v) / (high - low || 1)) * (box.bottom - box.top);
    const figure = make(parent, "figure", { class: "curves" });
    const who = seeds.length > 1 ? `${seeds.length} seeds (thin) and their mean` : "one seed";
    const words = `Training loss (nats) after each epoch, ${who}${rival.length ? "; dashed: the map's best cell" : ""}.`;
    const svg = make(figure, "svg", { viewBox: `0 0 ${box.width} ${box.height}`, role: "img", "aria-label": words });
    const step = [0.05, 0.1, 0.2, 0.5, 1].find((one) => (high - low) / one <= 5) ?? (high - low) / 4;
    for (let v = Math.ceil(low / step) * step; v <= high; v += step) {
      make(svg, "path", { class: "rule", d: `M${box.left} ${y(v)}H${box.right}` });
      make(svg, "text", { class: "alpha", x: box.left - 5, y: y(v) + 4 }, Number(v.toFixed(2)));
    }
    const every = Math.max(1, Math.round(epochs / 5));
    for (let k = every; k <= epochs; k += every) {
      make(svg, "text", { class: "decay", x: Math.min(x(k - 1), box.right - 3), y: box.bottom + 15 }, k);
    }
    make(svg, "text", { class: "decay", x: (box.left + box.right) / 2, y: box.bottom + 30 }, "epoch");
    const draw = (curve, name) => {
      const points = curve.flatMap((v, k) => (v === null ? [] : `${x(k).toFixed(1)},${y(v).toFixed(1)}`)).join(" ");
      make(svg, "polyline", { class: `curve-${name}`, points });
    };
    draw(rival, "rival");
    if (seeds.length > 1) for (const curve of seeds) draw(curve, "run");
    draw(seeds.length > 1 ? average(cell) : seeds[0], "mean");
    make(figure, "figcaption", {}, words);
  }

  function table(parent, runs) {
    const node = make(make(parent, "div", { class: "table" }), "table");
    const head = make(make(node, "thead"), "tr");
    for (const name of ["seed", "test, %", "validation, %", "train loss"]) make(head, "th", { scope: "col" }, name);
    const body = make(node, "tbody");
    const show = (x, digits) => (x === null ? "–" : x.toFixed(digits));
    for (const { seed, test, val, loss, diverged } of runs) {
      const row = make(body, "tr");
      const first = diverged === null ? show(test, 2) : `diverged at step ${diverged}`;
      for (const text of [seed, first, show(val, 2), show(loss, 3)]) make(row, "td", {}, text);
    }
  }

  function command(parent, line) {
    const box = make(parent, "div", { class: "command" });
    const code = make(make(box, "pre"), "code", {}, line);
    const button = make(box, "button", { type: "button" }, "Copy");
    button.addEventListener("click", async () => {
      let copied = true;
      try {
        await navigator.clipboard.writeText(line);
      } catch { // not allowed here: leave the text selected
        getSelection().selectAllChildren(code);
        copied = document.execCommand("copy");
      }
      button.textContent = copied ? "Copied" : "Selected";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  function panel(parent, source, map, cell, reading, address) {
    parent.replaceChildren();
    const headline = make(parent, "p", { class: "headline" });
    make(headline, "strong", {}, says(cell));
    headline.append(` ${map.metric} · ${SOURCES[source]}, ${map.title}`);
    const main = make(parent, "div", { class: "main" });
    const left = make(main, "div");
    const list = make(left, "dl");
    const say = (name, value) => {
      make(list, "dt", {}, name);
      make(list, "dd", {}, value);
    };
    say("learning rate α", plain(cell.alpha));
    say(`decay ${symbol(map)}`, plain(cell.decay));
    if (map.normalized) say("decay per step λ", plain(cell.decay * map.scale));
    say("torch's weight_decay", plain(inTorch(map, cell)));
    const above = cell.rank > 1 ? `, ${(cell.error - map.low).toFixed(2)} points above the best` : "";
    if (cell.rank) say("rank", `${cell.rank} of ${map.known} cells${above}`);
    if (cell.runs) {
      say("seeds", cell.runs.length + (cell.runs.length > 1 && cell.rank ? "; the error above is the mean" : ""));
      table(left, cell.runs);
      curves(main, map, cell);
    } else if (source === "paper" && cell.error !== null) {
      const exact = `Read off the colour of the cell in the paper's figure. Such a reading repeats to about ${reading.toFixed(3)} points; how exact the colours are is not known.`;
      const bound = "The cell has the colour at the end of the paper's scale: its error is this or more.";
      make(left, "p", {}, cell.rank ? exact : bound);
      make(left, "p", {}, "The paper gives no seeds and no curves of its cells; each counts as one run.");
    }
    if (cell.keys) {
      const [runs, whose] = cell.keys.length > 1 ? ["these runs", "their"] : ["this run", "its"];
      make(parent, "p", { class: "again" }, source === "paper"
        ? "To train this cell by the paper's own protocol, which takes a GPU:"
        : `To train ${runs} again, in a store of ${whose} own:`);
      command(parent, `${map.command} ${cell.keys.join(" ")}`);
    } else {
      make(parent, "p", { class: "again" }, "No planned run of this book has the settings of this cell.");
    }
    make(make(parent, "p"), "a", { href: address, class: "link" }, "Link to this cell");
  }

  /* --- the whole --- */

  function radios(parent, name, legend, options, chosen, changed) {
    const box = make(parent, "fieldset");
    make(box, "legend", {}, legend);
    for (const [value, text] of options) {
      const label = make(box, "label");
      const input = make(label, "input", { type: "radio", name, value });
      input.checked = value === chosen;
      input.addEventListener("change", () => changed(value));
      make(label, "span", {}, text);
    }
    return [...box.querySelectorAll("input")];
  }

  function note(map, torch) {
    if (!torch) return "As the paper writes it: λ′ is the factor of L2 in the gradient, λ the part of a weight that a step takes.";
    if (!map.decoupled) return "For Adam and SGD with L2, torch's weight_decay is the paper's λ′ itself: nothing moves, the slope stays.";
    const other = map.name === "SGDW" ? " (torch has no SGDW; this is the unit of its AdamW.)" : "";
    return `torch's AdamW multiplies weight_decay by the learning rate, so weight_decay = λ/α: every row moves by −log α, and the slope of the ridge falls by exactly one.${other}`;
  }

  async function begin() {
    const root = document.getElementById("explore");
    if (!root) return;
    window.exploreData = (name, data) => waiting[name]?.(data);
    const folder = root.dataset.from ?? "explore/";
    const complain = (parent, error) => make(parent, "p", { class: "error" }, error.message);
    let index;
    try {
      index = await load(folder, "index");
    } catch (error) {
      complain(root, error); // below the text for readers without scripts
      return;
    }
    const colours = index.colours.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
    const state = { id: FIRST, source: null, cell: null, torch: false };
    const groupOf = (id) => index.groups.findIndex((group) => group.maps.some((map) => map.id === id));
    let [pictures, choices, turn, frame] = [[], [], 0, 0];

    root.replaceChildren();
    const controls = make(root, "div", { class: "controls" });
    const figure = make(make(controls, "label", { class: "figure" }, "figure of the paper"), "select");
    index.groups.forEach((group, k) => make(figure, "option", { value: k }, group.title));
    const choice = make(controls, "div");
    const unit = [["paper", "the paper's λ"], ["torch", "torch's weight_decay"]];
    const units = radios(controls, "explore-unit", "decay axis", unit, "paper", (name) => {
      state.torch = name === "torch";
      rename();
      spin();
    });
    const notes = make(controls, "p", { class: "note" });
    const pair = make(root, "div", { class: "pair" });
    const status = make(root, "p", { class: "status", role: "status", "aria-live": "polite" });
    const details = make(root, "section", { class: "panel", "aria-label": "The cell" });

    function address() {
      const cell = state.cell ? [state.source, state.cell.alpha, state.cell.decay] : [];
      return `#${[state.id, ...cell, ...(state.torch ? ["torch"] : [])].join("/")}`;
    }

    function show(source, cell) {
      for (const picture of pictures) picture.point(picture.source === source ? cell : null);
      panel(details, source, pictures.find((one) => one.source === source).map, cell, index.reading, address());
    }

    const on = {
      details: () => details.scrollIntoView({ block: "start" }),
      preview: (picture, cell) => (picture ? show(picture.source, cell) : show(state.source, state.cell)),
      select(picture, cell) {
        Object.assign(state, { source: picture.source, cell });
        rename();
        show(picture.source, cell);
        const spoken = picture.cells.get(cell).node.getAttribute("aria-label");
        status.textContent = `${SOURCES[picture.source]}, ${picture.map.title}, ${spoken}. Details below.`;
      },
    };

    // Names, note and address after a change of the selection or of the unit.
    function rename(write = true) {
      for (const picture of pictures) picture.name(picture.source === state.source ? state.cell : null, state.torch);
      notes.textContent = note(pictures[0].map, state.torch);
      for (const input of units) input.checked = (input.value === "torch") === state.torch;
      if (write) history.replaceState(null, "", address());
    }

    function lay() {
      for (const picture of pictures) picture.lay(Math.max(240, picture.svg.parentNode.clientWidth), turn);
    }

    function spin() {
      cancelAnimationFrame(frame);
      const [from, to, start] = [turn, Number(state.torch), performance.now()];
      const still = matchMedia("(prefers-reduced-motion: reduce)").matches || from === to;
      const next = (now) => {
        const part = still ? 1 : Math.min(1, Math.max(0, now - start) / TURN_MS);
        turn = from + (to - from) * (part < 0.5 ? 2 * part * part : 1 - 2 * (1 - part) ** 2);
        lay();
        if (part < 1) frame = requestAnimationFrame(next);
      };
      next(start);
    }

    async function open(id, wanted = {}) {
      state.id = id;
      const { maps } = index.groups[groupOf(id)];
      figure.value = groupOf(id);
      if (!choices.some((input) => input.value === id)) {
        choice.replaceChildren();
        const names = maps.map((map) => [map.id, map.label]);
        choices = radios(choice, "explore-map", "map", names, id, (name) => open(name, { write: true }));
      }
      for (const input of choices) input.checked = input.value === id; // the same buttons: they keep the focus
      const { sources } = maps.find((map) => map.id === id);
      let data;
      try {
        data = await Promise.all(sources.map((source) => load(folder, `${source}-${id}`)));
      } catch (error) {
        pictures = [];
        for (const part of [pair, details]) part.replaceChildren();
        complain(pair, error);
        return;
      }
      if (state.id !== id) return; // another map was chosen meanwhile
      pair.replaceChildren();
      pictures = [];
      for (const source of Object.keys(SOURCES)) {
        const box = make(pair, "div", { class: "map" });
        const map = data[sources.indexOf(source)];
        if (map) pictures.push(new Picture(box, source, prepare(map), colours, on));
        else make(box, "p", { class: "made" }, `${SOURCES[source]} has no such map.`);
      }
      const { source, map } = pictures.find((one) => one.source === wanted.source) ?? pictures.at(-1);
      const cell = map.cells.find((one) => one.alpha === wanted.alpha && one.decay === wanted.decay);
      Object.assign(state, { source, cell: cell ?? map.best ?? map.cells[0] });
      lay();
      rename(Boolean(wanted.write));
      show(state.source, state.cell);
    }

    // Follows the fragment of the page's address; false if it does not speak of a map.
    function follow(fragment) {
      const [id, source, alpha, decay] = fragment.slice(1).split("/");
      if (groupOf(id) < 0) return false;
      state.torch = fragment.endsWith("/torch");
      open(id, { source, alpha: Number(alpha), decay: Number(decay) }).then(spin);
      root.scrollIntoView({ block: "start" });
      return true;
    }

    figure.addEventListener("change", () => open(index.groups[figure.value].maps[0].id, { write: true }));
    addEventListener("hashchange", () => follow(location.hash));
    for (const link of document.querySelectorAll("a[data-explore]")) {
      link.href = `#${link.dataset.explore}`;
      link.addEventListener("click", () => location.hash === link.hash && follow(link.hash)); // no change of the address
    }
    new ResizeObserver(lay).observe(pair);
    if (!follow(location.hash)) open(groupOf(FIRST) < 0 ? index.groups[0].maps[0].id : FIRST);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
