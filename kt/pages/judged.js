// Answers side by side: what each method answered, and what judges, checkers and people said of it.

const ANY = { comparison: "any comparison", criterion: "any criterion", judge: "any judge", outcome: "any outcome" };
const OUTCOMES = {
  "win": (verdict) => verdict.outcome === "win",
  "tie": (verdict) => verdict.outcome === "tie",
  "lose": (verdict) => verdict.outcome === "lose",
  "only the place decided": (verdict) => verdict.verdicts.length && verdict.verdicts[0] === verdict.verdicts[1] && verdict.verdicts[0] !== "tie",
  "decided without the judge": (verdict) => !["judge", "person", ""].includes(verdict.decided_by),
  "no verdict": (verdict) => verdict.outcome === "rejected",
};
const MARKS = 12;
const compared = (verdict) => verdict.pair;
const different = (values) => [...new Set(values)];

function judgedBrowser(all) {
  const verdicts = all.flatMap((item) => item.verdicts);
  for (const verdict of verdicts) verdict.pair = `${verdict.one} : ${verdict.other}`;
  const choices = {
    comparison: different(verdicts.map(compared)),
    criterion: different(verdicts.map((verdict) => verdict.criterion)),
    judge: different(verdicts.map((verdict) => verdict.judge)),
    outcome: verdicts.length ? Object.keys(OUTCOMES) : [],
  };
  const chosen = (name) => $("judged-" + name).value;
  const several = different(all.map((item) => item.place)).length > 1;
  const shown = { pair: null };

  // What the four choices ask of a verdict, read once a search: there are tens of thousands of verdicts.
  function wanted() {
    const tests = [];
    for (const [name, of] of [["comparison", compared], ["criterion", (verdict) => verdict.criterion], ["judge", (verdict) => verdict.judge]]) {
      const value = chosen(name);
      if (value !== ANY[name]) tests.push((verdict) => of(verdict) === value);
    }
    if (chosen("outcome") !== ANY.outcome) tests.push(OUTCOMES[chosen("outcome")]);
    return { none: !tests.length, fits: (verdict) => tests.every((test) => test(verdict)) };
  }

  const list = browser("judged-", all, {
    what: "items",
    hash: "#answers=",
    keep: () => { const { none, fits } = wanted(); return (item) => none || item.verdicts.some(fits); },
    order: () => null,
    words: (item) => [item.id, item.question, item.gold, ...Object.values(item.answers), ...item.verdicts.flatMap((verdict) => verdict.said),
      ...Object.values(item.scores).flat().map((score) => score.said), ...Object.values(item.facts).flat().flatMap((fact) => [fact.fact, fact.said])],
    about: (item) => [...(several ? [item.place + " "] : []), ...item.verdicts.filter(wanted().fits).slice(0, MARKS).map(mark)],
    draw,
  });

  for (const [name, values] of Object.entries(choices)) {
    fill("judged-" + name, [ANY[name], ...values], () => { shown.pair = null; list.search(); list.redraw(); });
    $("judged-" + name).closest("label").hidden = values.length < 2;
  }
  $("judged").hidden = !all.length;
  list.begin((item) => item.verdicts.some((verdict) => verdict.decided_by === "judge"));

  function mark(verdict, n, shown) {
    const said = `${verdict.criterion}: ${verdict.outcome} (${compared(verdict)}, ${verdict.judge})`;
    const same = n && shown[n - 1].judge === verdict.judge && compared(shown[n - 1]) === compared(verdict);
    const sign = { win: "+", tie: "=", lose: "−", rejected: "?" }[verdict.outcome];
    const properties = { className: `outcome ${verdict.outcome}${same ? "" : " first"}`, title: said, role: "img", ariaLabel: said };
    return element("span", { ...properties, textContent: verdict.criterion[0].toUpperCase() + sign });
  }

  function draw(item) {
    const names = Object.keys(item.answers);
    const pairs = different(item.verdicts.map(compared));
    const found = item.verdicts.find(wanted().fits);
    const pair = pairs.includes(shown.pair) ? shown.pair : found ? compared(found) : pairs[0];
    const own = item.verdicts.filter((verdict) => compared(verdict) === pair);
    const who = own.length ? [own[0].one, own[0].other] : names;
    const parts = [element("p", { className: "id", textContent: several ? `${item.place} · ${item.id}` : item.id }), element("h3", { textContent: item.question })];
    parts.push(...item.why.map(([name, reason]) => element("p", { className: "why", textContent: `the facts of ${name}'s answer are not known: ${reason}` })));
    if (pairs.length > 1) parts.push(drawTabs(item, pairs, pair));
    parts.push(element("details", { className: "gold" }, element("summary", { textContent: "Gold answer" }), element("p", { className: "text", textContent: item.gold })));
    parts.push(beside(who, (name) => drawAnswer(item, name)));
    if (own.length) parts.push(heading("Verdicts", "each judge saw the answers in both orders"), ...own.map(drawVerdict));
    if (who.some((name) => item.scores[name])) parts.push(heading("Scores of single answers"), beside(who, (name) => drawScores(name, item.scores[name] || [])));
    if (who.some((name) => item.facts[name])) parts.push(heading("Facts of each answer, checked"), beside(who, (name) => drawFactChecks(name, item.facts[name])));
    return parts;
  }

  function drawTabs(item, pairs, pair) {
    return element("p", { className: "tabs", role: "group", ariaLabel: "Comparison" }, ...pairs.map((name) => {
      const button = element("button", { type: "button", textContent: name, onclick: () => { shown.pair = name; $("judged-item").replaceChildren(...draw(item)); } });
      button.setAttribute("aria-pressed", String(name === pair));
      return button;
    }));
  }
}

const sentence = (count, one) => `${number.format(count)} ${one}${count === 1 ? "" : "s"}`;

const beside = (names, draw) => element("div", { className: "pair" }, ...names.map((name) => element("div", { className: "answer" }, ...draw(name))));

function drawAnswer(item, name) {
  const text = item.answers[name], empty = !text.trim();
  const figures = Object.entries(item.metrics[name] || {}).map(([metric, value]) => `${metric} ${number.format(value)}`);
  const about = [sentence(text.split(/\s+/).filter(Boolean).length, "word"), ...figures].join(" · ");
  return [element("h5", { textContent: name }), element("p", { className: "id", textContent: about }),
    element("p", { className: empty ? "text empty" : "text", textContent: empty ? "(an empty answer)" : text })];
}

function drawScores(name, scores) {
  const rows = scores.map((score) => {
    const value = element("b", { textContent: score.score === null ? "no score" : `${score.score} of 10` });
    return element("li", {}, `${score.criterion}: `, value, score.said ? element("q", { textContent: score.said }) : null);
  });
  return [element("h5", { textContent: name }), element("ul", { className: "scores" }, ...rows)];
}

function drawFactChecks(name, facts) {
  if (!facts) return [element("h5", { textContent: name }), element("p", { className: "empty", textContent: "not known" })];
  const right = facts.filter((fact) => fact.verdict === "correct").length;
  const about = facts.length ? `${right} of ${sentence(facts.length, "fact")} correct` : "no facts";
  return [element("h5", { textContent: name }), element("p", { className: "id", textContent: about }), element("ul", { className: "checks" }, ...facts.map(drawCheck))];
}

const CHECKED = { correct: "✓ correct", incorrect: "✗ incorrect", rejected: "? no verdict" };

function drawCheck(fact) {
  const [sign, ...said] = CHECKED[fact.verdict].split(" ");
  const mark = element("span", { className: "sign", textContent: sign, title: said.join(" ") });
  mark.setAttribute("aria-label", said.join(" "));
  mark.setAttribute("role", "img");
  const from = fact.passages && fact.passages.length ? element("small", { textContent: "from " + fact.passages.join(", ") }) : null;
  return element("li", { className: fact.verdict }, mark, element("span", {}, fact.fact, fact.said ? element("q", { textContent: fact.said }) : null, from));
}

// A verdict in words: who won, and what the judge said in either order, with who stood where.
function drawVerdict(verdict) {
  const won = { win: `${verdict.one} wins`, lose: `${verdict.other} wins`, tie: "tie", rejected: "no verdict" }[verdict.outcome];
  const why = { judge: "", person: " (a person)" }[verdict.decided_by] ?? (verdict.decided_by ? ` (not asked: ${verdict.decided_by})` : "");
  const title = element("p", { className: "decided" }, element("b", { textContent: verdict.criterion }), " ",
    element("span", { className: "outcome " + verdict.outcome, textContent: won }), ` ${verdict.judge}${why}`);
  if (verdict.outcome === "rejected") return element("div", { className: "verdict" }, title, element("p", { textContent: verdict.said[0] }));
  if (verdict.decided_by !== "judge") return element("div", { className: "verdict" }, title);
  const orders = [[verdict.one, verdict.other], [verdict.other, verdict.one]].map(([a, b], turn) => {
    const letter = verdict.verdicts[turn];
    const named = { A: `A, ${a}, is better`, B: `B, ${b}, is better`, tie: "equal" }[letter];
    return element("div", {}, element("p", { className: "id", textContent: `A ${a}, B ${b}` }), element("p", {}, element("b", { textContent: named })),
      verdict.said[turn] ? element("blockquote", { textContent: verdict.said[turn] }) : null);
  });
  return element("div", { className: "verdict" }, title, element("div", { className: "orders" }, ...orders));
}

