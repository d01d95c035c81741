// Colours for numbers: one hue for amounts, two hues with a neutral middle for signed numbers. Both work with every kind
// of colour vision, and the number is always shown as text too.

const RAMPS = {
  light: {
    much: ["#f3f4f3", "#d3e0ec", "#a3c1dd", "#6a99c6", "#33719f", "#0f3f6b"],
    signed: ["#8b3c08", "#cf7b3f", "#f1cba9", "#f5f3ee", "#b5d0e8", "#4f8cc2", "#133f6e"],
  },
  dark: {
    much: ["#1d2024", "#223a52", "#2c5a85", "#4585bd", "#84b6e6", "#d9eafa"],
    signed: ["#ffc793", "#d3803c", "#704421", "#24272b", "#24486b", "#4a8dc8", "#bcdcfa"],
  },
};

function theme() {
  const chosen = document.documentElement.dataset.theme;
  if (chosen) return chosen;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/** Show the theme button. Views with colours listen for `themechange`. */
function offerThemes() {
  const button = document.getElementById("theme");
  const changed = () => {
    button.textContent = theme() === "dark" ? "Light" : "Dark";
    document.dispatchEvent(new Event("themechange"));
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  changed();
}

/** The colour [r, g, b] (0 to 255) of a ramp ("much" or "signed") at x from 0 to 1. */
function shade(ramp, x) {
  const stops = RAMPS[theme()][ramp];
  const at = Math.min(Math.max(x || 0, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  return [1, 3, 5].map((c) => {
    const [a, b] = [stops[i], stops[i + 1]].map((stop) => parseInt(stop.slice(c, c + 2), 16));
    return Math.round(a + (b - a) * (at - i));
  });
}

/** Colour an element, with black or white text: the contrast is at least 4.58 to 1. */
function paint(node, rgb) {
  const linear = rgb.map((c) => (c <= 10 ? c / 3295 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  const bright = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  node.style.backgroundColor = `rgb(${rgb.join(",")})`;
  node.style.color = bright > 0.179 ? "#000" : "#fff";
}

/** A colour ramp between the meanings of its ends. */
function legend(ramp, low, high) {
  const canvas = el("canvas", { width: 64, height: 1, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  for (let x = 0; x < 64; x++) {
    context.fillStyle = `rgb(${shade(ramp, x / 63).join(",")})`;
    context.fillRect(x, 0, 1, 1);
  }
  return el("p", { class: "legend" }, low, canvas, high);
}
