// Elements that several views use: tokens, tables, bars, keyboard navigation.

/** A token in its own element, so that right-to-left text does not move its neighbours. */
function tokenOf(id) {
  return el("span", { class: "token" }, word(id));
}

/**
 * A table. A column is a name, [name, "r"] for numbers, or [name, "extra"] to hide it on small screens. A row is an array
 * of cells: text, nodes or numbers; the first cell is the row's header. `dress(row element, row, i)` may change a row.
 */
function table(columns, rows, { caption, dress, hidden = [] } = {}) {
  const kinds = columns.map((column) => (Array.isArray(column) ? column[1] : ""));
  const head = columns.map((column, c) => {
    const name = Array.isArray(column) ? column[0] : column;
    return el(
      "th",
      { scope: "col", class: kinds[c] || null },
      hidden.includes(c) ? el("span", { class: "unseen" }, name) : name,
    );
  });
  const styles = columns.map((_, c) => decimalsOf(rows.map((row) => row[c])));
  const body = rows.map((row, i) => {
    const cells = row.map((cell, c) => {
      const shown = alike(typeof cell === "number" ? format(cell) : cell, styles[c]);
      return c === 0
        ? el("th", { scope: "row", class: kinds[c] || null }, shown)
        : el("td", { class: kinds[c] || null }, shown ?? "–");
    });
    const tr = el("tr", {}, cells);
    if (dress) dress(tr, row, i);
    return tr;
  });
  const parts = [
    caption ? el("caption", {}, caption) : null,
    el("thead", {}, el("tr", {}, head)),
    el("tbody", {}, body),
  ];
  return el(
    "div",
    { class: "scroll", tabindex: 0, role: "group", "aria-label": caption ?? "table" },
    el("table", {}, parts),
  );
}

/** A folded table, created when it is first opened: it may have thousands of cells. */
function tableBehind(title, make) {
  const details = el("details", {}, el("summary", {}, title));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    details.append(make());
    reach(details);
  });
  return details;
}

const NUMBER = /^[+−]?\d+(\.\d+)?$/;

/** The most decimals of a column's numbers, which may be numbers or their text. */
function decimalsOf(cells) {
  const texts = cells.map((cell) => (typeof cell === "number" ? format(cell) : cell));
  return Math.max(0, ...texts.map((text) => (NUMBER.test(text) ? (text.split(".")[1] ?? "").length : 0)));
}

/** A number's text with decimals where the others of its column have some: 1 next to 0.25 is 1.00. */
function alike(text, decimals) {
  return decimals && typeof text === "string" && NUMBER.test(text) && !text.includes(".")
    ? `${text}.${"0".repeat(decimals)}`
    : text;
}

/** A bar from 0 to `value` on a scale from `low` <= 0 to `high` >= 0. */
function bar(value, low, high) {
  const room = high - low || 1;
  const inner = el("i", { class: value < 0 ? "minus" : null });
  inner.style.setProperty("--from", (Math.min(value, 0) - low) / room);
  inner.style.setProperty("--length", Math.abs(value) / room);
  const outer = el("span", { class: low < 0 ? "bar signed" : "bar", "aria-hidden": "true" }, inner);
  outer.style.setProperty("--zero", -low / room);
  return outer;
}

/**
 * Arrow keys move within a group of elements; Tab reaches one of them (a roving tabindex). `items` are in rows of
 * `width`; `choose(i)` is called on a click or a key.
 */
function roving(root, items, width, choose) {
  const go = (i) => {
    if (i < 0 || i >= items.length || items[i].hidden) return;
    choose(i);
    items[i].focus({ preventScroll: false });
  };
  items.forEach((item, i) => {
    item.addEventListener("click", () => go(i));
    item.addEventListener("keydown", (event) => {
      const moves = {
        ArrowLeft: i - 1,
        ArrowRight: i + 1,
        Home: 0,
        End: items.length - 1,
        ArrowUp: width ? i - width : i - 1,
        ArrowDown: width ? i + width : i + 1,
        Enter: i,
        " ": i,
      };
      if (!(event.key in moves) || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      go(moves[event.key]);
    });
  });
}

/** Mark the selected item, also for screen readers and Tab. */
function mark(items, chosen) {
  items.forEach((item, i) => {
    item.setAttribute("aria-selected", i === chosen);
    item.tabIndex = i === chosen ? 0 : -1;
  });
}

/** A list to choose from, with a label. `options` are [value, name]. */
function chooser(label, options, value, choose) {
  const list = el(
    "select",
    { onchange: (event) => choose(event.target.value) },
    options.map(([key, name]) => el("option", { value: key, selected: key === value }, name)),
  );
  return el("label", {}, label, list);
}

/** A figure with its caption. */
function figure(caption, ...children) {
  return el("figure", {}, caption ? el("figcaption", {}, caption) : null, children);
}
