// Text and numbers as people see them. Needs nothing else.

// Control, format (direction marks among them), surrogate, private and unassigned characters, line and paragraph
// separators, and every white space: what can't be seen, or what would move its neighbours.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Zs}]/gu;
const SIGNS = { " ": "␣", "\n": "↵", "\t": "⇥" };

/** A text with nothing hidden in it: a space is ␣, a line's end ↵, what has no picture its code, ⟨U+202E⟩. */
function visible(text) {
  if (text === "") return "⟨empty⟩";
  const shown = text.replace(UNSEEN, (c) => {
    return SIGNS[c] ?? `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
  return /^\p{M}/u.test(shown) ? `◌${shown}` : shown; // an accent alone needs something to stand on
}

/** A token; bytes that are no whole character are shown as bytes, ⟨e2 80⟩. */
function shownToken({ text, hex }) {
  return hex ? `⟨${hex}⟩` : visible(text);
}

/** A number as people read it: 3 digits behind the point, fewer where it is large, a dash where there is none. */
function format(x, digits = 3) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (x === Infinity) return "∞";
  if (x === -Infinity) return "−∞";
  const size = Math.abs(x);
  if (Number.isInteger(x) && size < 1e15) return minus(x.toLocaleString("en"));
  if (size >= 1000) return minus(Math.round(x).toLocaleString("en"));
  if (size !== 0 && size < 0.5 * 10 ** -digits) return minus(x.toExponential(1));
  return minus(x.toFixed(digits));
}

/** Always so many digits, for numbers in boxes: what is small is 0.00 there. */
function fixed(x, digits = 2) {
  return x === null || x === undefined ? "–" : minus(x.toFixed(digits).replace(/^-(0\.?0*)$/, "$1"));
}

/** The same with a sign in front of what is more than 0. */
function signed(x, digits = 3) {
  return x > 0 ? `+${format(x, digits)}` : format(x, digits);
}

function minus(text) {
  return text.replace("-", "−");
}

function percent(x) {
  return x === null || x === undefined ? "–" : `${format(100 * x, x < 0.001 ? 3 : x < 0.1 ? 1 : 0)} %`;
}
