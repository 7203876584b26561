// The page of `kt report`. All data stand in the page; every text is set as text, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);

// ---- in short ----------------------------------------------------------------------------------------------------

function drawFigures() {
  const facts = data.items.reduce((sum, item) => sum + item.facts.length, 0);
  const kept = data.items.reduce((sum, item) => sum + item.kept.length, 0);
  const pairs = data.items.reduce((sum, item) => sum + (item.better ? Object.keys(item.worse).length : 0), 0);
  const told = [[data.items.length, "items"], [facts, "facts"], [kept, "difficult facts"],
    [data.items.filter((item) => item.fine[1]).length, "fine-grained answers"], [pairs, "better and worse answers paired"],
    [data.items.filter((item) => item.why.length).length, "items with a rejected step"]];
  $("figures").replaceChildren(...told.map(([count, name]) => element("div", {}, element("b", { textContent: number.format(count) }), element("span", { textContent: name }))));
}

// ---- items -------------------------------------------------------------------------------------------------------

const FILTERS = {
  "all items": () => true,
  "something rejected": (item) => item.why.length > 0,
  "all three pairs": (item) => item.better && Object.keys(item.worse).length === 3,
  "a pair missing": (item) => !item.better || Object.keys(item.worse).length < 3,
  "one fact only": (item) => item.facts.length === 1,
  "no fine-grained answer": (item) => !item.fine[1],
};
const hardest = (item) => Math.max(-1, ...(item.ppl || []));
const ORDERS = {
  "as in the file": null,
  "most facts first": (a, b) => b.facts.length - a.facts.length,
  "hardest fact first": (a, b) => hardest(b) - hardest(a),
  "longest answer first": (a, b) => b.answer.length - a.answer.length,
};

function itemBrowser() {
  const list = browser("", data.items, {
    what: "items",
    hash: "#item=",
    keep: () => FILTERS[$("filter").value],
    order: () => ORDERS[$("order").value],
    words: (item) => [item.id, item.question, item.answer, ...item.facts, ...item.fine, item.better, ...(item.worse.factuality ? item.worse.factuality.facts : [])],
    about: (item) => [sentence(item.facts.length, "fact") + (item.why.length ? " · rejected: " + item.why.map(([step]) => step).join(", ") : "")],
    draw: drawItem,
  });
  fill("filter", Object.keys(FILTERS), list.search);
  fill("order", Object.keys(ORDERS), list.search);
  list.begin(FILTERS["all three pairs"]);
}

function drawItem(item) {
  const parts = [element("p", { className: "id", textContent: item.id }), element("h3", { textContent: item.question })];
  parts.push(...item.why.map(([step, reason]) => element("p", { className: "why", textContent: `rejected at ${step}: ${reason}` })));
  parts.push(heading("Answer"), element("p", { className: "text", textContent: item.answer }));
  if (item.facts.length) parts.push(...drawFacts(item));
  if (item.fine[0]) {
    parts.push(heading("Fine-grained question", "from the difficult facts"), element("p", { className: "text", textContent: item.fine[0] }));
    parts.push(heading("Fine-grained answer"), element("p", { className: "text", textContent: item.fine[1] || "(rejected)" }));
  }
  for (const [aspect, remark, draw] of PAIRS) {
    if (item.better && item.worse[aspect]) parts.push(...drawPair(item, aspect, remark, draw));
  }
  return parts;
}

const lot = (value) => "h" + (1 + data.scale.filter((edge) => value > edge).length);
const short = (value) => value >= 1000 ? number.format(Math.round(value)) : value.toPrecision(3);

function drawFacts(item) {
  const kept = new Set(item.kept);
  const facts = item.facts.map((fact, place) => {
    const value = item.ppl ? item.ppl[place] : null;
    const mark = kept.has(place) ? element("span", { className: "difficult", textContent: "difficult" }) : null;
    const said = element("span", { className: "ppl", textContent: value === null ? "" : short(value) }, mark);
    const line = element("li", { className: value === null ? "" : lot(value) }, element("span", { className: "place", textContent: place + 1 }), element("span", { textContent: fact }), said);
    return line;
  });
  const made = [heading("Facts", item.ppl ? "coloured by perplexity under the model; the difficult ones go on to stage I" : "the difficult ones go on to stage I"), element("ol", { className: "facts" }, ...facts)];
  if (data.scale.length) {
    const edges = ["", ...data.scale.map(short)];
    const spans = edges.map((edge, n) => element("span", { className: "h" + (n + 1), textContent: n === 0 ? `up to ${edges[1]}` : `over ${edge}` }));
    made.push(element("p", { className: "legend" }, "perplexity:", ...spans));
  }
  return made;
}

// ---- pairs -------------------------------------------------------------------------------------------------------

const PAIRS = [
  ["completeness", "facts are missing", drawMissing],
  ["factuality", "every fact is wrong", drawWrong],
  ["logicality", "facts out of order: the numbers are their right places", drawMoved],
];

function drawPair(item, aspect, remark, draw) {
  const worse = item.worse[aspect];
  const list = element("ul", { className: "plain" }, ...draw(item, worse));
  const text = worse.text ? element("p", { className: "text", textContent: worse.text }) : null;
  return [heading(aspect[0].toUpperCase() + aspect.slice(1), remark), element("div", { className: "pair" },
    element("div", {}, element("h5", { textContent: "Better answer" }), element("p", { className: "text", textContent: item.better })),
    element("div", {}, element("h5", { textContent: text ? "Worse answer, and the facts it was made of" : "Worse answer" }), text, list))];
}

function drawMissing(item, worse) {
  const left = new Set(worse.places);
  return item.facts.map((fact, place) => element("li", {}, left.has(place) ? fact : element("del", { textContent: fact })));
}

function drawWrong(item, worse) {
  return worse.facts.map((fact, place) => element("li", {}, ...difference(item.facts[place] || "", fact)));
}

function drawMoved(item, worse) {
  return worse.places.map((from, to) => element("li", {}, element("span", { className: from === to ? "stays" : "moved", textContent: from + 1 }), item.facts[from]));
}

// Words taken out and put in, by the longest common subsequence; facts are sentences, so the table stays small.
function difference(before, after) {
  const a = before.split(/\s+/).slice(0, 400), b = after.split(/\s+/).slice(0, 400);
  const common = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) common[i][j] = a[i] === b[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
  }
  const runs = [];
  const add = (tag, word) => { const last = runs.at(-1); if (last && last[0] === tag) last[1].push(word); else runs.push([tag, [word]]); };
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { add("", a[i]); i++; j++; }
    else if (i < a.length && (j >= b.length || common[i + 1][j] >= common[i][j + 1])) add("del", a[i++]);
    else add("ins", b[j++]);
  }
  return runs.flatMap(([tag, words]) => [tag ? element(tag, { textContent: words.join(" ") }) : words.join(" "), " "]);
}

// ---- tables, charts, provenance --------------------------------------------------------------------------------------

function drawTables() {
  for (const table of data.tables) {
    const numeric = table.columns.map((_, n) => table.rows.every((row) => typeof row[n] !== "string"));
    const bounds = new Set(table.bounded.flatMap((n) => [n + 1, n + 2]));
    const places = table.columns.map((_, n) => n).filter((n) => !bounds.has(n));
    const rows = table.rows.map((row) => element("tr", {}, ...places.map((n) => drawCell(row, n, numeric[n], table.bounded.includes(n)))));
    const head = element("tr", {}, ...places.map((n) => element("th", { className: numeric[n] ? "number" : "", scope: "col", textContent: table.columns[n] })));
    const made = element("table", {}, element("caption", { textContent: table.title }), element("thead", {}, head), element("tbody", {}, ...rows));
    made.dataset.name = table.name;
    const wide = places.length > 5 || table.bounded.length > 1;
    $("tables").append(element("div", { className: wide ? "table wide" : "table" }, made, table.note ? element("p", { className: "note", textContent: table.note }) : null));
  }
}

function drawCell(row, n, numeric, bounded) {
  const cell = element("td", { className: numeric ? "number" : "" }, ...(typeof row[n] === "number" ? drawNumber(row[n]) : [row[n] ?? ""]));
  if (bounded && row[n + 1] !== null && row[n + 1] !== undefined) {
    cell.append(" ", element("span", { className: "interval" }, "[", ...drawNumber(row[n + 1]), ", ", ...drawNumber(row[n + 2]), "]"));
  }
  return cell;
}

// A number whole, as it stands in the run's files; what goes beyond three decimals is set small.
function drawNumber(value) {
  const [whole, rest] = number.format(value).split(".");
  if (!rest || rest.length <= 3) return [rest ? `${whole}.${rest}` : whole];
  return [`${whole}.${rest.slice(0, 3)}`, element("small", { textContent: rest.slice(3) })];
}

function drawCharts() {
  $("no-charts").textContent = data.no_charts;
  $("no-charts").hidden = !data.no_charts;
  $("charts").hidden = !data.charts.length && !data.no_charts;
  const ink = "currentColor";
  const axis = { labelColor: ink, titleColor: ink, tickColor: ink, domainColor: ink, gridOpacity: 0.15, gridColor: ink, labelFontSize: 12, titleFontSize: 12 };
  const config = { axis, legend: { labelColor: ink, titleColor: ink, orient: "top", labelFontSize: 12 },
    view: { stroke: null }, range: { category: ["#d9733f", "#4c86d8", "#4aa36b", "#a06cc9", "#b59a2d"] }, bar: { color: "#4c86d8" }, font: "system-ui, DejaVu Sans, sans-serif" };
  const plots = data.charts.map(({ title, ...spec }) => {
    const plot = element("div", { className: "plot" });
    $("plots").append(element("div", { className: spec.usermeta ? "wide" : "" }, element("h3", { textContent: title }), plot));
    return [plot, { ...spec, description: title, config }];
  });
  drawInTurn(plots);
}

// One chart at a time, so that the page answers between them.
async function drawInTurn(plots) {
  for (const [plot, spec] of plots) {
    await new Promise((done) => setTimeout(done, 0));
    await vegaEmbed(plot, spec, { renderer: "svg", actions: false, ast: true }).catch((error) => { plot.textContent = String(error); });
  }
}

function drawProvenance() {
  for (const { place, manifest } of data.provenance) {
    const what = manifest.kind || manifest.step || "";
    const body = element("pre", { textContent: JSON.stringify(manifest, null, 2) });
    $("provenance").append(element("details", {}, element("summary", { textContent: (place === "." ? data.title : place) + (what && what !== place ? ` (${what})` : "") }), body));
  }
}

// ---- start -------------------------------------------------------------------------------------------------------

$("items").hidden = !data.items.length;
$("figures").hidden = !data.items.length;
$("tables").hidden = !data.tables.length;
drawFigures();
drawTables();
drawProvenance();
drawCharts();
itemBrowser();
judgedBrowser(data.judged);
for (const link of document.querySelectorAll("nav a")) link.hidden = $(link.hash.slice(1)).hidden;
