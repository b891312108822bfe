"use strict";
// The table of texts: search, filter, sort, leaf, open. All that comes from the data goes in as
// text, never as markup. Without this script the page says where the same stands.
(() => {
  const PAGE = 25;
  const data = JSON.parse(document.getElementById("texts-data").textContent);
  // Words that say less than a twentieth of the strongest have no colour, as in gencls_core/report/texts.py.
  const area = document.getElementById("texts-area");
  const find = name => area.querySelector(`[data-is="${name}"]`);
  const body = area.querySelector("tbody");
  const count = data.id.length;
  const whole = data.text;
  const state = {page: 0, sort: null, down: false, open: -1};
  let rows = [];

  const make = (tag, text, kind) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const percent = p => `${(100 * p).toFixed(1)}\u00a0%`;
  const nats = x => Math.abs(x).toFixed(2);
  const signed = x => (x < 0 ? "\u2212" : "+") + nats(x);
  const className = code => code < 0 ? "\u2013" : data.classes[code];
  const isAnswered = i => data.answer[i] >= 0;
  const isRight = i => isAnswered(i) && data.label[i] === data.answer[i];
  const isWrong = i => isAnswered(i) && data.label[i] >= 0 && !isRight(i);
  const kinds = {"": () => true, wrong: isWrong, right: isRight, unanswered: i => !isAnswered(i)};

  const keys = {
    text: i => (whole[i] || "").toLowerCase(),
    label: i => data.label[i],
    answer: i => data.answer[i],
    probability: i => data.probability[i],
    margin: i => data.margin[i],
    tokens: i => data.tokens[i],
  };

  function choose() {
    const words = find("search").value.toLowerCase();
    const label = find("label").value, answer = find("answer").value;
    const isKind = kinds[find("kind").value];
    rows = [];
    for (let i = 0; i < count; i++) {
      if (label !== "" && data.label[i] !== +label) continue;
      if (answer !== "" && data.answer[i] !== +answer) continue;
      if (!isKind(i)) continue;
      if (words && !keys.text(i).includes(words) && !data.id[i].toLowerCase().includes(words)) continue;
      rows.push(i);
    }
    if (state.sort) {
      const key = keys[state.sort], sign = state.down ? -1 : 1;
      rows.sort((a, b) => {
        const x = key(a), y = key(b);
        return x < y ? -sign : x > y ? sign : a - b;
      });
    }
    state.page = 0;
    state.open = -1;
    show();
  }

  function show() {
    const first = PAGE * state.page, shown = rows.slice(first, first + PAGE);
    body.replaceChildren(...shown.flatMap(i => i === state.open ? [line(i), opened(i)] : [line(i)]));
    find("status").textContent = rows.length
      ? `${(first + 1).toLocaleString("en")} to ${(first + shown.length).toLocaleString("en")} of ${rows.length.toLocaleString("en")} texts`
      : "No text is of this kind.";
    find("before").disabled = first === 0;
    find("after").disabled = first + PAGE >= rows.length;
    for (const head of area.querySelectorAll("th[data-sort]")) {
      const sorted = head.dataset.sort === state.sort;
      if (sorted) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }

  function line(i) {
    const row = make("tr", undefined, isWrong(i) ? "wrong" : "");
    const open = state.open === i;
    const button = make("button", whole[i] === null ? data.id[i] : (whole[i].trim() || "(blank)"), "open");
    button.type = "button";
    button.dataset.row = i;
    button.setAttribute("aria-expanded", open);
    button.dir = "auto";
    button.onclick = () => {
      state.open = open ? -1 : i;
      show();
      body.querySelector(`[data-row="${i}"]`).focus();
    };
    const first = make("th");
    first.scope = "row";
    first.append(button);
    row.append(first, make("td", className(data.label[i]), "class"));
    row.append(make("td", className(data.answer[i]), isWrong(i) ? "class to" : "class"));
    row.append(make("td", percent(data.probability[i])), make("td", nats(data.margin[i])));
    row.append(make("td", data.tokens[i].toLocaleString("en")));
    return row;
  }

  function opened(i) {
    const row = make("tr", undefined, "opened"), cell = make("td");
    cell.colSpan = 6;
    const inside = make("div", undefined, "inside"), text = make("p", undefined, "text");
    text.dir = "auto";
    const found = data.evidence[i];
    if (found && whole[i] !== null) {
      text.append(...coloured(found, whole[i]));
    } else {
      text.textContent = whole[i] === null ? "(the dataset no longer holds this text)" : whole[i];
    }
    if (data.leftOut[i]) text.append(make("i", ` \u2026 and ${data.leftOut[i].toLocaleString("en")} more characters`));
    inside.append(text);
    const facts = make("div", undefined, "facts-of-one");
    if (!isAnswered(i)) facts.append(make("p", `Not answered; reason: ${data.reasons[i]}`));
    if (found) facts.append(sum(found, i));
    facts.append(likeliest(i));
    inside.append(facts);
    cell.append(inside);
    row.append(cell);
    return row;
  }

  function coloured(found, text) {
    const most = Math.max(...found.hundredths.map(Math.abs), 1);
    let end = 0;
    return found.lengths.map((length, n) => {
      const word = text.slice(end, end += length), share = Math.abs(found.hundredths[n]) / most;
      // What stands before a word has no colour.
      const start = word.length - word.trimStart().length;
      const mark = make("span", word.slice(start));
      if (share >= .05) {
        mark.className = found.hundredths[n] > 0 ? "for" : "against";
        mark.style.setProperty("--w", `${Math.round(8 + 47 * share)}%`);
        mark.title = `${signed(found.hundredths[n] / 100)} nats`;
      }
      const both = document.createDocumentFragment();
      both.append(word.slice(0, start), mark);
      return both;
    });
  }

  function table(caption, lines) {
    const found = make("table"), rows = make("tbody");
    found.append(make("caption", caption), rows);
    for (const [name, value, strong] of lines) {
      const row = make("tr", undefined, strong ? "total" : "");
      const head = make("th", name);
      head.scope = "row";
      row.append(head, make("td", value));
      rows.append(row);
    }
    return found;
  }

  function sum(found, i) {
    const lines = found.items.map(([name, value]) => [name, signed(value)]);
    lines.push(["together", signed(found.odds), true]);
    const isTrue = found.against === data.label[i] ? " (the true class)" : "";
    const cut = found.cut ? "; the text was cut before it was scored" : "";
    return table(`Nats for ${className(data.likeliest[i][0])} against ${className(found.against)}${isTrue}${cut}`, lines);
  }

  function likeliest(i) {
    const found = data.likeliest[i], lines = [];
    for (let n = 0; n < found.length; n += 2) lines.push([className(found[n]), percent(found[n + 1])]);
    return table(`Probabilities of ${data.id[i]}`, lines);
  }

  for (const name of ["label", "answer"]) {
    data.classes.forEach((title, code) => {
      const option = make("option", title);
      option.value = code;
      find(name).append(option);
    });
  }
  for (const name of ["label", "answer", "kind"]) find(name).onchange = choose;
  find("search").oninput = choose;
  find("before").onclick = () => { state.page--; state.open = -1; show(); };
  find("after").onclick = () => { state.page++; state.open = -1; show(); };
  for (const head of area.querySelectorAll("th[data-sort]")) {
    head.querySelector("button").onclick = () => {
      const name = head.dataset.sort;
      // Numbers: the largest first.
      const falls = name !== "text" && name !== "label" && name !== "answer";
      state.down = state.sort === name ? !state.down : falls;
      state.sort = name;
      choose();
    };
  }
  area.hidden = false;
  choose();
})();
