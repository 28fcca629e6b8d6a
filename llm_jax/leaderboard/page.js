// The table's order, ranks and shades; the figure; and the items on which two models differ.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const { models, columns } = data;
  const minus = (text) => text.replace("-", "−");
  const percent = (value) => minus((100 * value).toFixed(1));
  const shown = (column, value) => (value === null ? "?" : column.bits ? minus(value.toFixed(3)) : percent(value));
  const groups = columns.filter((c) => c.group && !c.bits);
  const state = { against: data.against, columns: groups.length ? "groups" : "tasks", metric: "score", sort: -1, up: false };
  const hasScores = columns.some((c) => !c.bits), hasBits = columns.some((c) => c.bits);
  if (!hasScores) state.metric = "bits";

  function made(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }
  function options(select, entries, chosen) {
    select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
    if (chosen !== undefined) select.value = chosen;
  }

  // -- the table --
  function visible(column) {
    if (column.bits !== (state.metric === "bits")) return false;
    if (state.columns === "groups") return column.group;
    if (state.columns === "both") return true;
    if (state.columns === "tasks") return !column.group;
    const group = columns.find((c) => c.group && c.title === state.columns && c.bits === column.bits);
    return column === group || (!column.group && Boolean(group) && group.tasks.includes(column.title));
  }
  // Positive where the first model is the better one; 0 where no difference is shown.
  function sign(column, difference) {
    if (!difference || difference[1] === null || (difference[1] <= 0 && difference[2] >= 0)) return 0;
    return (difference[0] > 0) === column.higher ? 1 : -1;
  }
  function words(column, i, j) {
    const difference = column.differences[i][j], by = sign(column, difference), unit = column.bits ? " bits/byte" : " points";
    if (!difference) return "";
    const [value, low, high, more, less] = difference, size = (x) => shown(column, Math.abs(x));
    const counts = column.group ? "" : `; of the items on which they differ, ${column.higher ? more : less} for ${models[i].name} and ${column.higher ? less : more} for ${models[j].name}`;
    if (!by) return `${column.title}: no difference shown between ${models[i].name} and ${models[j].name}: ${shown(column, value)} (${shown(column, low)} to ${shown(column, high)})${unit}${counts}.`;
    const ends = value > 0 ? [low, high] : [high, low];
    return `${column.title}: ${models[i].name} is ${by > 0 ? "better" : "worse"} than ${models[j].name} by ${size(value)} (${size(ends[0])} to ${size(ends[1])})${unit}${counts}.`;
  }
  function showTable() {
    const seen = columns.map(visible), body = at("table").tBodies[0];
    if (state.sort < 0 || !seen[state.sort]) { state.sort = seen.indexOf(true); state.up = false; }
    const sorted = columns[state.sort];
    for (const element of at("table").querySelectorAll("[data-c]")) element.hidden = !seen[element.dataset.c];
    for (const head of at("table").tHead.rows[0].cells) head.removeAttribute("aria-sort");
    if (!sorted) return;
    const descending = sorted.higher !== state.up; // better first, unless turned round
    at("table").tHead.querySelector(`[data-c="${state.sort}"]`).setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = [...body.rows];
    for (const row of rows) {
      const i = +row.dataset.m;
      row.classList.toggle("chosen", i === state.against);
      const own = sorted.cells[i];
      row.cells[0].textContent = own ? (own[3] === own[4] ? own[3] : `${own[3]}–${own[4]}`) : "";
      for (const cell of row.querySelectorAll("td[data-c]")) {
        const column = columns[cell.dataset.c], by = i === state.against ? 0 : sign(column, column.differences[i][state.against]);
        cell.classList.toggle("better", by > 0);
        cell.classList.toggle("worse", by < 0);
        if (column.cells[i]) cell.title = i === state.against ? "" : words(column, i, state.against);
      }
    }
    const value = (row) => { const own = sorted.cells[row.dataset.m]; return own ? own[0] : descending ? -Infinity : Infinity; };
    body.append(...rows.sort((a, b) => (descending ? value(b) - value(a) : value(a) - value(b)) || a.dataset.m - b.dataset.m));
  }
  at("table").tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th[data-c]");
    if (!head) return;
    const c = +head.dataset.c;
    state.up = state.sort === c && !state.up;
    state.sort = c;
    showTable();
    if (at("score").querySelector(`[value="${c}"]`)) { at("score").value = c; showChart(); }
  });
  at("table").tBodies[0].addEventListener("click", (event) => {
    const row = event.target.closest("tr"), cell = event.target.closest("td[data-c]"), name = event.target.closest("th button");
    if (name) { state.against = +row.dataset.m; at("against").value = state.against; showTable(); }
    if (cell && +row.dataset.m !== state.against) {
      const column = columns[cell.dataset.c];
      at("readout").textContent = words(column, +row.dataset.m, state.against);
      if (!column.group && data.items[column.title]) { at("task").value = column.title; at("first").value = row.dataset.m; at("second").value = state.against; showItems(); }
    }
  });

  // -- score against compute --
  const svg = (tag, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  function short(value) {
    if (value >= 1e15) { const e = Math.floor(Math.log10(value) + 1e-9); const d = value / 10 ** e; return `${Math.abs(d - 1) < 1e-6 ? "" : +d.toPrecision(3) + "×"}10${[...String(e)].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join("")}`; }
    for (const [limit, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (value >= limit) return `${+(value / limit).toPrecision(3)}${unit}`;
    return String(+value.toPrecision(3));
  }
  function steps(low, high, count) {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
    const found = [];
    for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + 1e-9; value += step) found.push(value);
    return found;
  }
  function showChart() {
    const column = columns[at("score").value], cost = at("cost").value, chart = at("chart");
    const points = models.map((model, i) => ({ name: model.name, x: model[cost], cell: column && column.cells[i] })).filter((p) => p.x && p.cell);
    const gone = models.filter((model, i) => !(model[cost] && column && column.cells[i])).map((model) => model.name);
    at("chart-note").textContent = `Bars are 95% intervals${column && column.chance !== null ? "; the dashed line is chance" : ""}.` + (gone.length ? ` Not shown, as it isn't known: ${gone.join(", ")}.` : "");
    chart.replaceChildren();
    if (!points.length) return;
    const [left, right, top, bottom] = [70, 870, 20, 370];
    const logs = points.map((p) => Math.log10(p.x)), pad = Math.max(0.15, 0.08 * (Math.max(...logs) - Math.min(...logs)));
    const [x0, x1] = [Math.min(...logs) - pad, Math.max(...logs) + 2.2 * pad];
    const values = points.flatMap((p) => p.cell.slice(0, 3)).filter((v) => v !== null).concat(column.chance === null ? [] : [column.chance]);
    const room = 0.06 * (Math.max(...values) - Math.min(...values)) || 0.05;
    const [y0, y1] = [Math.min(...values) - room, Math.max(...values) + room];
    const X = (v) => left + ((Math.log10(v) - x0) / (x1 - x0)) * (right - left), Y = (v) => bottom - ((v - y0) / (y1 - y0)) * (bottom - top);
    for (const v of steps(y0, y1, 6)) chart.append(svg("line", { x1: left, x2: right, y1: Y(v), y2: Y(v) }), svg("text", { x: left - 8, y: Y(v) + 4, "text-anchor": "end", class: "tick" }, column.bits ? v.toFixed(2) : minus((100 * v).toFixed(0))));
    const wide = x1 - x0 > 2.2;
    for (let e = Math.floor(x0); e <= x1; e++) for (const f of wide ? [1] : [1, 2, 5]) {
      const v = f * 10 ** e, lx = Math.log10(v);
      if (lx >= x0 && lx <= x1) chart.append(svg("line", { x1: X(v), x2: X(v), y1: top, y2: bottom }), svg("text", { x: X(v), y: bottom + 18, "text-anchor": "middle", class: "tick" }, short(v)));
    }
    if (column.chance !== null) chart.append(svg("line", { x1: left, x2: right, y1: Y(column.chance), y2: Y(column.chance), class: "guess" }));
    chart.append(svg("text", { x: (left + right) / 2, y: bottom + 40, "text-anchor": "middle", class: "tick" }, at("cost").selectedOptions[0].text), svg("text", { x: left, y: top - 6, class: "tick" }, `${column.title}, ${column.bits ? "bits per byte" : column.group ? "centred mean, %" : "%"}`));
    for (const p of points) {
      const [value, low, high] = p.cell;
      if (low !== null) chart.append(svg("line", { x1: X(p.x), x2: X(p.x), y1: Y(low), y2: Y(high), class: "bar" }));
      const end = X(p.x) > right - 160;
      chart.append(svg("circle", { cx: X(p.x), cy: Y(value), r: 5 }), svg("text", { x: X(p.x) + (end ? -10 : 10), y: Y(value) - 8, "text-anchor": end ? "end" : "start" }, p.name));
    }
  }

  // -- two models, item by item --
  const quoted = (word) => (/^[\w.:\/@%+=#-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);
  function showItems() {
    const name = at("task").value, of = data.items[name], i = +at("first").value, j = +at("second").value;
    const column = columns.find((c) => !c.group && c.title === name && c.bits === (of.metric === "bits_per_byte"));
    at("items").replaceChildren();
    if (i === j) { at("difference").textContent = "Choose two different models."; return; }
    const key = i < j ? `${i} ${j}` : `${j} ${i}`, ids = of.pairs[key] || [], count = of.counts[key] || 0;
    at("difference").textContent = `${words(column, i, j)} ${ids.length < count ? `The ${ids.length} clearest of ${count} such items:` : ids.length ? "" : "They answer every item alike."}`;
    at("items").append(...ids.filter((id) => of.items[id]).map((id) => item(name, of, id, [i, j])));
  }
  function item(name, of, id, pair) {
    const texts = of.items[id], answers = pair.map((m) => of.answers[m][id]);
    const box = made("div", { class: "item" }, made("h3", {}, `${name}, item ${id}`));
    if (texts.context) box.append(made("div", { class: "text" }, texts.context));
    if (texts.choices.length) {
      const body = made("tbody");
      texts.choices.forEach((choice, c) => {
        const line = made("tr", c === texts.gold ? { class: "right" } : {}, made("td", {}, texts.contexts ? `${texts.contexts[c]}${choice}` : choice));
        for (const answer of answers) {
          const scores = answer.scores, best = scores && scores[c] === Math.max(...scores);
          line.append(made("td", { class: `n${best ? ` picked${c === texts.gold ? "" : " wrong"}` : ""}` }, scores ? minus(scores[c].toFixed(3)) : of.metric === "bits_per_byte" && c === texts.gold ? `${answer.value.toFixed(3)} bits/byte` : ""));
        }
        body.append(line);
      });
      box.append(made("table", {}, made("thead", {}, made("tr", {}, made("th", {}, of.metric === "bits_per_byte" ? "right answer" : `choices, ${of.metric.replaceAll("_", " ")}`), ...pair.map((m) => made("th", { class: "n" }, models[m].name)))), body));
    } else if (texts.text) box.append(made("h3", {}, "reference"), made("div", { class: "text" }, texts.text));
    pair.forEach((m, k) => { if (answers[k].text !== undefined) box.append(made("h3", {}, `${models[m].name}: ${answers[k].value ? "right" : "wrong"}`), made("div", { class: "text" }, answers[k].text)); });
    if (!texts.choices.length || answers[0].scores === undefined && of.metric !== "bits_per_byte") box.append(made("div", { class: "open" }, ...pair.map((m, k) => made("span", {}, `${models[m].name}: ${answers[k].value === 1 ? "right" : answers[k].value === 0 ? "wrong" : answers[k].value}`))));
    const lines = made("div", { class: "open" }, "open in inspect:");
    for (const m of pair) {
      const line = `${models[m].inspect} sample=${quoted(`${data.words[name] || name}#${id}`)}${data.keys[name] || ""}`, button = made("button", { type: "button" }, "copy");
      button.addEventListener("click", async () => { await navigator.clipboard.writeText(line); button.textContent = "copied"; });
      lines.append(made("span", {}, made("code", {}, line), button));
    }
    box.append(lines);
    return box;
  }

  // -- controls --
  const names = models.map((model, i) => [i, model.name]);
  options(at("against"), names, state.against);
  options(at("shown"), [...(groups.length ? [["groups", "groups"]] : []), ["tasks", "tasks"], ["both", "groups and tasks"], ...groups.filter((g) => g.title !== "all").map((g) => [g.title, `tasks of ${g.title}`])], state.columns);
  at("metric").value = state.metric;
  at("metric").parentElement.hidden = !(hasScores && hasBits);
  at("against").addEventListener("change", () => { state.against = +at("against").value; showTable(); });
  at("shown").addEventListener("change", () => { state.columns = at("shown").value; showTable(); });
  at("metric").addEventListener("change", () => { state.metric = at("metric").value; showTable(); });
  at("controls").hidden = false;
  options(at("score"), columns.map((column, c) => [c, column.title + (column.bits ? ", bits per byte" : "")]), 0);
  if (!models.every((model) => model.flops)) at("cost").value = "parameters";
  for (const id of ["score", "cost"]) at(id).addEventListener("change", showChart);
  at("axes").hidden = !columns.length;
  const tasks = [...new Set(columns.filter((c) => !c.group).map((c) => c.title))].filter((name) => data.items[name]);
  if (models.length > 1 && tasks.length) {
    options(at("task"), tasks.map((name) => [name, name]));
    options(at("first"), names, 0);
    options(at("second"), names, 1);
    for (const id of ["task", "first", "second"]) at(id).addEventListener("change", showItems);
    at("choices").hidden = false;
    showItems();
  } else at("pairs").hidden = true;
  showTable();
  showChart();
})();
