// The selection in the page's address, so that a view can be sent: #attention&token=15&head=0.2&key=14&step=420

let writing = 0;

/** The section and the selection of an address's fragment. What it lacks or what can't be is left out. */
function fromAddress(hash) {
  const [section, ...parts] = hash.replace(/^#/, "").split("&");
  const found = {};
  const natural = (text, below) => (/^\d{1,7}$/.test(text ?? "") && Number(text) < below ? Number(text) : null);
  for (const [name, value] of parts.map((part) => part.split("="))) {
    if (name === "token" || name === "key") found[name] = natural(value, ids.length);
    if (name === "head") {
      const [layer, head] = (value ?? "").split(".");
      [found.layer, found.head] = [natural(layer, data.attention.layers), natural(head, data.attention.heads)];
      if (found.layer === null || found.head === null) found.layer = found.head = null;
    }
    if (name === "step" && data.learning) {
      const at = data.learning.steps.indexOf(Number(value));
      found.at = at < 0 ? null : at;
    }
    if (name === "neuron") {
      const [layer, neuron] = (value ?? "").split(".");
      [found.neurons, found.neuron] = [natural(layer, data.attention.layers), natural(neuron, 1e7)];
    }
  }
  const known = Object.fromEntries(Object.entries(found).filter(([, value]) => value !== null));
  return [/^[\w-]*$/.test(section) ? section : "", known];
}

/** Write the selection into the address, a moment after the last change: browsers limit how often it may change. */
function toAddress() {
  clearTimeout(writing);
  writing = setTimeout(() => {
    const [section] = fromAddress(location.hash);
    const parts = [section, `token=${state.token}`, `head=${state.layer}.${state.head}`];
    if (state.key !== null) parts.push(`key=${state.key}`);
    if (data.learning && state.at < data.learning.steps.length - 1) parts.push(`step=${data.learning.steps[state.at]}`);
    if (state.neuron !== null) parts.push(`neuron=${state.neurons}.${state.neuron}`);
    history.replaceState(null, "", `#${parts.join("&")}`);
  }, 150);
}

/** Follow the address at the start and when it changes. Returns the selection at the start. */
function followAddress() {
  const go = () => {
    const [section, selection] = fromAddress(location.hash);
    select(selection);
    const target = section && document.getElementById(section);
    if (target && Object.keys(selection).length) {
      refresh(true);
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", () => {
    go();
    toAddress();
  }, listening);
  go();
}
