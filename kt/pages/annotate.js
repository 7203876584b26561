// The judging page of `kt annotate`. Every text is set as text, never as markup; a choice shows as made only when the
// server has answered that it is on the disk.
"use strict";

const RULES = {
  completeness: "Which answer holds more of what a good answer to this question needs?",
  factuality: "Which answer says fewer things that are wrong?",
  logicality: "Which answer is better ordered and hangs together better?",
};
const CHOICES = [["A", "A better", "A", ["a", "1"]], ["tie", "Equal", "E", ["e", "2"]], ["B", "B better", "B", ["b", "3"]]];

const $ = (id) => document.getElementById(id);
const settings = JSON.parse(document.querySelector('meta[name="kt-settings"]').content);
const token = settings.token || location.hash.slice(1);
const state = { annotator: settings.annotator || kept("annotator"), criteria: [], judged: [], item: null };
let turn = Promise.resolve(); // what was pressed is done one after the other: a fast hand loses nothing

// ---- the server --------------------------------------------------------------------------------------------------

async function call(path, body) {
  const options = { headers: { "X-KT-Token": token } };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("kt annotate does not answer. What you judged before is kept. Start it again and open the address it prints.");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

const query = () => "?annotator=" + encodeURIComponent(state.annotator);

function inTurn(act) {
  turn = turn.then(act).then(
    () => { $("problem").hidden = true; },
    (error) => { $("problem").textContent = error.message; $("problem").hidden = false; },
  );
  return turn;
}

// ---- the views -----------------------------------------------------------------------------------------------------

function show(view) {
  for (const name of ["welcome", "work", "finished"]) $(name).hidden = name !== view;
}

function say(text) { $("status").textContent = text; }

async function start() {
  if (!state.annotator) {
    show("welcome");
    $("who").textContent = "";
    $("change").hidden = true;
    $("name").value = "";
    $("name").focus();
    return;
  }
  Object.assign(state, await call("api/start" + query()));
  keep("annotator", state.annotator);
  $("who").textContent = "Annotator: " + state.annotator;
  $("change").hidden = Boolean(settings.annotator);
  describeRules();
  await firstOpen();
}

const isDone = (number) => state.judged[number] === state.criteria.length;

async function firstOpen() {
  const number = state.judged.findIndex((_, place) => !isDone(place));
  if (number >= 0) await open(number);
  else finish();
}

function finish() {
  progress();
  show("finished");
  $("finished-title").focus();
}

async function open(number) {
  if (number < 0 || number >= state.judged.length) return;
  state.item = await call("api/item/" + number + query());
  const { question, answers, gold } = state.item;
  $("question").textContent = question;
  fill($("answer-a"), answers[0]);
  fill($("answer-b"), answers[1]);
  $("gold").hidden = gold === null;
  $("gold").open = false;
  $("gold-text").textContent = gold || "";
  $("place").textContent = `Item ${number + 1} of ${state.judged.length}`;
  $("previous").disabled = number === 0;
  $("next").disabled = number === state.judged.length - 1;
  drawCriteria();
  progress();
  show("work");
  window.scrollTo(0, 0);
  $("question").focus({ preventScroll: true });
}

function fill(place, text) {
  const empty = !text.trim();
  place.classList.toggle("empty", empty);
  place.textContent = empty ? "(an empty answer)" : text;
}

function progress() {
  const done = state.judged.filter((_, place) => isDone(place)).length;
  $("bar").max = state.judged.length;
  $("bar").value = done;
  $("count").textContent = `${done} of ${state.judged.length} judged`;
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function drawCriteria() {
  $("judging").replaceChildren(...state.criteria.map((name) => {
    const title = element("h3", { id: "c-" + name }, name[0].toUpperCase() + name.slice(1), element("span", { className: "mark" }));
    const rule = element("p", { id: "r-" + name, textContent: RULES[name] });
    const choices = element("div", { className: "choices" }, ...CHOICES.map(([choice, label, key]) => {
      const hint = element("kbd", { textContent: key });
      hint.setAttribute("aria-hidden", "true");
      const button = element("button", { type: "button", onclick: () => inTurn(() => judge(name, choice)) }, label, hint);
      button.dataset.choice = choice;
      return button;
    }));
    choices.setAttribute("role", "group");
    choices.setAttribute("aria-labelledby", "c-" + name);
    choices.setAttribute("aria-describedby", "r-" + name);
    const whole = element("div", { className: "criterion" }, title, rule, choices);
    whole.addEventListener("focusin", markCurrent);
    whole.addEventListener("focusout", () => queueMicrotask(markCurrent));
    whole.dataset.criterion = name;
    return whole;
  }));
  markChoices();
}

function markChoices() {
  for (const whole of $("judging").children) {
    const chosen = state.item.choices[whole.dataset.criterion];
    whole.querySelector(".mark").textContent = chosen ? "saved" : "";
    for (const button of whole.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.choice === chosen));
    }
  }
  markCurrent();
}

// The criterion that a key judges: the one that has the focus, or the first not judged, or the first.
function current() {
  const focused = document.activeElement.closest(".criterion");
  return focused ? focused.dataset.criterion : state.criteria.find((name) => !state.item.choices[name]) || state.criteria[0];
}

function markCurrent() {
  if (!state.item) return;
  const now = current();
  for (const whole of $("judging").children) whole.classList.toggle("now", whole.dataset.criterion === now);
}

// ---- judging -----------------------------------------------------------------------------------------------------

async function judge(criterion, choice) {
  const item = state.item;
  const wasDone = isDone(item.number);
  const saved = await call("api/judgement", { annotator: state.annotator, id: item.id, criterion, choice });
  item.choices = saved.choices;
  state.judged[item.number] = Object.keys(saved.choices).length;
  markChoices();
  progress();
  const label = CHOICES.find(([name]) => name === choice)[1];
  say(`Saved: ${criterion}, ${label}. ${state.judged[item.number]} of ${state.criteria.length} criteria.`);
  if (wasDone || !isDone(item.number)) {
    moveFocus(criterion);
  } else if ($("go-on").checked) {
    await goOn(item.number);
  } else {
    $("next").focus();
  }
}

// From a button whose criterion is judged, the focus goes to the next open criterion; elsewhere it stays.
function moveFocus(criterion) {
  const open = state.criteria.find((name) => !state.item.choices[name]);
  const from = document.activeElement.closest(".criterion");
  if (from && from.dataset.criterion === criterion && open) {
    document.querySelector(`.criterion[data-criterion="${open}"] button`).focus();
  }
}

async function goOn(number) {
  const later = state.judged.findIndex((_, place) => place > number && !isDone(place));
  if (later >= 0) await open(later);
  else await firstOpen();
}

// ---- keys ----------------------------------------------------------------------------------------------------------

const KEYS = { n: () => open(state.item.number + 1), p: () => open(state.item.number - 1), u: firstOpen };
for (const [choice, , , keys] of CHOICES) {
  for (const key of keys) KEYS[key] = () => judge(current(), choice);
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input:not([type=checkbox]), textarea");
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || typing || $("help").open || !$("keys").checked) return;
  if (event.key === "?") { help(); return; }
  const act = KEYS[event.key.toLowerCase()];
  if (!act || $("work").hidden) return;
  event.preventDefault();
  inTurn(() => ($("work").hidden ? undefined : act()));
});

function help() { $("help").showModal(); }

function describeRules() {
  $("rules").replaceChildren(...state.criteria.flatMap((name) => [
    element("dt", { textContent: name }), element("dd", { textContent: RULES[name] }),
  ]));
}

// For a reload of this tab, conveniences only: the judgements themselves are kept by the server.
function keep(name, value) { try { sessionStorage.setItem("kt-annotate-" + name, value); } catch { /* not allowed here */ } }
function kept(name) { try { return sessionStorage.getItem("kt-annotate-" + name); } catch { return null; } }

for (const name of ["keys", "go-on"]) {
  $(name).checked = kept(name) !== "false";
  $(name).addEventListener("change", () => { keep(name, String($(name).checked)); markKeys(); });
}
function markKeys() { document.body.classList.toggle("no-keys", !$("keys").checked); }

$("name-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.annotator = $("name").value.trim();
  inTurn(start).then(() => { if (!$("problem").hidden) state.annotator = null; });
});
$("change").addEventListener("click", () => inTurn(() => { state.annotator = null; return start(); }));
$("skip").addEventListener("click", (event) => { event.preventDefault(); $("judging").focus(); }); // the URL holds the token
$("previous").addEventListener("click", () => inTurn(KEYS.p));
$("next").addEventListener("click", () => inTurn(KEYS.n));
$("first-open").addEventListener("click", () => inTurn(firstOpen));
$("again").addEventListener("click", () => inTurn(() => open(0)));
$("help-button").addEventListener("click", help);
markKeys();
inTurn(start);
