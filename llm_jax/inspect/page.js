// Attention maps: a layer and a head are chosen, by the lists, the small maps or #head-LAYER-HEAD in the address (…-QUERY-KEY also chooses a weight).
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("attention-data").textContent);
  const at = (id) => document.getElementById(id);
  const T = data.length, size = (T * (T + 1)) / 2;
  const decoded = new Map();
  const state = { layer: data.first[0], head: data.first[1], query: T - 1, key: -1 };

  function weights(layer, head) {
    if (!decoded.has(layer)) decoded.set(layer, Uint8Array.from(atob(data.maps[layer]), (c) => c.charCodeAt(0)));
    return decoded.get(layer).subarray(head * size, (head + 1) * size);
  }
  const weight = (map, q, k) => (k > q ? 0 : map[(q * (q + 1)) / 2 + k] / 255);

  function colour(name) {
    const probe = at("probe");
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  }

  function draw(canvas, map) {
    canvas.width = canvas.height = T;
    const context = canvas.getContext("2d"), image = context.createImageData(T, T);
    const paper = colour("--paper"), ink = colour("--map"), out = colour("--wash");
    for (let q = 0; q < T; q++) for (let k = 0; k < T; k++) {
      const share = Math.sqrt(weight(map, q, k)), i = 4 * (q * T + k);
      for (let c = 0; c < 3; c++) image.data[i + c] = k > q ? out[c] : paper[c] + share * (ink[c] - paper[c]);
      image.data[i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  function number(value, digits = 2) { return value === null ? "–" : value.toFixed(digits); }

  function showHead() {
    const { layer, head } = state, name = data.layers[layer];
    draw(at("map"), weights(layer, head));
    at("layer").value = layer;
    at("head").value = head;
    const s = data.scores;
    at("scores").textContent = `Layer ${name}, head ${head}: previous token ${number(s.previous[layer][head])}, first token ${number(s.first[layer][head])}, ` +
      `induction ${number(s.induction[layer][head])}, entropy ${number(s.entropy[layer][head])} nats` +
      (data.windows[layer] === null ? "." : `; this layer sees ${data.windows[layer]} tokens, the query included.`);
    if (at("thumbs").dataset.layer !== String(layer)) thumbs(layer);
    for (const button of at("thumbs").children) button.setAttribute("aria-pressed", button.dataset.head === String(head));
    showQuery();
  }

  function thumbs(layer) {
    at("thumbs").dataset.layer = layer;
    at("thumbs").replaceChildren(...Array.from({ length: data.heads }, (_, head) => {
      const button = document.createElement("button"), canvas = document.createElement("canvas");
      button.type = "button";
      button.dataset.head = head;
      button.append(canvas, `head ${head}`);
      button.addEventListener("click", () => choose({ head }));
      draw(canvas, weights(layer, head));
      return button;
    }));
  }

  function showQuery() {
    const map = weights(state.layer, state.head), { query, key } = state;
    const row = Array.from({ length: query + 1 }, (_, k) => weight(map, query, k));
    for (const [k, chip] of [...at("queries").children].entries()) {
      const share = k <= query ? row[k] : 0;
      chip.style.setProperty("--v", Math.sqrt(share).toFixed(3));
      chip.setAttribute("aria-pressed", k === query);
      chip.lastElementChild.textContent = k > query ? "·" : share.toFixed(2);
    }
    const best = row.indexOf(Math.max(...row)), shown = key >= 0 && key <= query ? key : best;
    at("readout").textContent = `From ${query} “${data.tokens[query]}” to ${shown} “${data.tokens[shown]}”: weight ${row[shown].toFixed(3)}` +
      (shown === best ? ", the largest of this token." : `. The largest is ${row[best].toFixed(3)}, on ${best} “${data.tokens[best]}”.`);
    const frame = at("frame"), side = 100 / T;
    frame.style.cssText = `left:${shown * side}%;top:${query * side}%;width:${side}%;height:${side}%`;
  }

  function choose(change, remember = true) {
    Object.assign(state, change);
    if ("layer" in change || "head" in change) showHead(); else showQuery();
    if (remember) history.replaceState(null, "", `#head-${data.layers[state.layer]}-${state.head}`);
  }

  function cell(event) {
    const box = at("map").getBoundingClientRect();
    const part = (x, from, whole) => Math.min(T - 1, Math.max(0, Math.floor((T * (x - from)) / whole)));
    const query = part(event.clientY, box.top, box.height), key = part(event.clientX, box.left, box.width);
    return { query, key: Math.min(key, query) };
  }

  function fromAddress() {
    const found = location.hash.match(/^#head-(\d+)-(\d+)(?:-(\d+)-(\d+))?$/);
    if (!found) return false;
    const [layer, head, query, key] = [data.layers.indexOf(+found[1]), +found[2], found[3], found[4]];
    if (layer < 0 || head >= data.heads) return false;
    choose({ layer, head, ...(query !== undefined && +query < T ? { query: +query, key: Math.min(+key, +query) } : {}) }, false);
    at("attention").scrollIntoView();
    return true;
  }

  at("layer").replaceChildren(...data.layers.map((name, i) => new Option(name, i)));
  at("head").replaceChildren(...Array.from({ length: data.heads }, (_, i) => new Option(i, i)));
  at("layer").addEventListener("change", (event) => choose({ layer: +event.target.value }));
  at("head").addEventListener("change", (event) => choose({ head: +event.target.value }));
  at("queries").replaceChildren(...data.tokens.map((label, query) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "chip cold";
    chip.append(label, document.createElement("small"));
    chip.addEventListener("click", () => choose({ query, key: -1 }, false));
    return chip;
  }));
  at("map").addEventListener("mousemove", (event) => choose(cell(event), false));
  at("map").addEventListener("click", (event) => choose(cell(event), false));
  at("map").addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const query = Math.min(T - 1, Math.max(0, state.query + step[0]));
    choose({ query, key: Math.min(query, Math.max(0, (state.key < 0 ? query : state.key) + step[1])) }, false);
  });
  addEventListener("hashchange", fromAddress);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { at("thumbs").dataset.layer = ""; showHead(); });
  at("viewer").hidden = false;
  if (!fromAddress()) showHead();
})();
