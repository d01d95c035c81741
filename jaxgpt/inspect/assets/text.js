// Text and numbers in readable form. Uses no other file.

// Characters that can't be seen or that would move their neighbours: control, format (with direction marks), surrogate,
// private and unassigned characters, line and paragraph separators, white space.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Zs}]/gu;
const SIGNS = { " ": "␣", "\n": "↵", "\t": "⇥" };

/** A text with every character visible: a space is ␣, a newline ↵, other invisible characters their code, ⟨U+202E⟩. */
function visible(text) {
  if (text === "") return "⟨empty⟩";
  const shown = text.replace(UNSEEN, (c) => {
    return SIGNS[c] ?? `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
  return /^\p{M}/u.test(shown) ? `◌${shown}` : shown; // a combining accent needs a base character
}

/** A token as readable text; bytes that are not valid UTF-8 are shown as ⟨e2 80⟩. */
function shownToken({ text, hex }) {
  return hex ? `⟨${hex}⟩` : visible(text);
}

/** A number with 3 decimals, or fewer if it is large; a dash if it is missing. */
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

/** A number with a fixed number of decimals, for boxes: small numbers are 0.00. */
function fixed(x, digits = 2) {
  return x === null || x === undefined ? "–" : minus(x.toFixed(digits).replace(/^-(0\.?0*)$/, "$1"));
}

/** A probability with 3 decimals; one too small for them is "<0.001". */
function chance(p) {
  if (p === null || p === undefined) return "–";
  return p > 0 && p < 0.0005 ? "<0.001" : p.toFixed(3);
}

/** A word with a number: "1 token", "3 tokens". */
function count(n, what) {
  return `${format(n)} ${what}${n === 1 ? "" : "s"}`;
}

/** Like `format`, with a plus sign for positive numbers. */
function signed(x, digits = 3) {
  return x > 0 ? `+${format(x, digits)}` : format(x, digits);
}

function minus(text) {
  return text.replace("-", "−");
}

function percent(x) {
  return x === null || x === undefined ? "–" : `${format(100 * x, x < 0.001 ? 3 : x < 0.1 ? 1 : 0)} %`;
}
