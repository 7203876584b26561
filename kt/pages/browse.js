// A list to search, filter and leaf through, a page at a time, beside the one that is open. Used for items and for answers.

const PAGE = 50;
const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 6 });

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function heading(title, remark) {
  return element("h4", {}, title + " ", remark ? element("small", { textContent: remark }) : null);
}

function fill(id, names, changed) {
  $(id).append(...names.map((name) => element("option", { value: name, textContent: name })));
  $(id).addEventListener("change", changed);
}

// `prefix` begins the ids of the list's elements; `keep` and `order` choose; `words` gives the texts to search; `about`
// says a line about one; `draw` fills the place of the open one; `hash` names it in the address.
function browser(prefix, all, { keep, order, words, about, draw, hash, what }) {
  const at = (name) => $(prefix + name);
  const view = { found: all, page: 0, open: null };
  const haystacks = new Map();

  function haystack(one) {
    if (!haystacks.has(one)) haystacks.set(one, words(one).filter(Boolean).join("\n").toLowerCase());
    return haystacks.get(one);
  }

  // The texts are put together beforehand, a few at a time, so that the first search answers at once.
  function prepare(from) {
    for (const one of all.slice(from, from + 100)) haystack(one);
    if (from + 100 < all.length) setTimeout(prepare, 0, from + 100);
  }

  function search() {
    const asked = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = keep(), sorted = order();
    const found = all.filter((one) => kept(one) && asked.every((word) => haystack(one).includes(word)));
    view.found = sorted ? found.sort(sorted) : found;
    view.page = 0;
    at("found").textContent = `${number.format(found.length)} of ${number.format(all.length)} ${what}`;
    list();
  }

  function list() {
    const pages = Math.max(1, Math.ceil(view.found.length / PAGE));
    const shown = view.found.slice(view.page * PAGE, (view.page + 1) * PAGE);
    at("list").replaceChildren(...shown.map((one) => {
      const button = element("button", { type: "button", onclick: () => open(one) }, element("b", { textContent: one.question }), element("small", {}, ...about(one)));
      button.setAttribute("aria-current", String(one === view.open));
      return element("li", {}, button);
    }));
    at("list").scrollTop = 0;
    at("page").textContent = `page ${view.page + 1} of ${pages}`;
    at("back").disabled = view.page === 0;
    at("forth").disabled = view.page >= pages - 1;
  }

  function turn(by) {
    view.page += by;
    list();
  }

  function open(one, keepHash) {
    view.open = one;
    const place = view.found.indexOf(one);
    [...at("list").querySelectorAll("button")].forEach((button, n) => button.setAttribute("aria-current", String(view.page * PAGE + n === place)));
    at("item").replaceChildren(...draw(one));
    if (!keepHash) history.replaceState(null, "", hash + encodeURIComponent(one.id));
  }

  // Open the one that the address names, or a good one to begin with.
  function begin(preferred) {
    search();
    const asked = location.hash.startsWith(hash) ? decodeURIComponent(location.hash.slice(hash.length)) : null;
    const first = all.find((one) => one.id === asked) || all.find(preferred) || all[0];
    if (first) open(first, true);
    if (first && first.id === asked) at("item").scrollIntoView();
    setTimeout(prepare, 0, 0);
  }

  at("search").addEventListener("input", search);
  at("back").addEventListener("click", () => turn(-1));
  at("forth").addEventListener("click", () => turn(1));
  return { search, begin, redraw: () => view.open && at("item").replaceChildren(...draw(view.open)) };
}

