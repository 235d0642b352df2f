"use strict";
(() => {
  const grid = document.getElementById("suspects");
  const status = document.getElementById("status");
  const focused = document.getElementById("focused");
  const actions = document.getElementById("actions");
  const other = document.getElementById("other");
  const items = Array.from(grid.children);
  const cardOf = (item) => item.querySelector(".card");
  const openOnly = grid.dataset.status === "open";
  let current = items.find((item) => cardOf(item).hasAttribute("aria-current"));

  const say = (text, problem = false) => {
    status.toggleAttribute("data-problem", problem);
    status.textContent = text;
  };

  // What is not stored yet survives a reload of the page and a restart of the server. Each request is an entry of its
  // own, so that tabs do not overwrite each other's, and carries a key, so that sending it twice stores it once.
  const prefix = `review-${grid.dataset.run}-${encodeURIComponent(grid.dataset.reviewer)}-`;
  let made = 0;
  const waiting = () => Object.keys(localStorage).filter((name) => name.startsWith(prefix)).sort();
  const push = (path, fields) => {
    const body = new URLSearchParams({ ...fields, key: crypto.randomUUID() }).toString();
    const name = `${prefix}${String(Date.now()).padStart(15, "0")}-${String(made++).padStart(6, "0")}-${crypto.randomUUID()}`;
    localStorage.setItem(name, JSON.stringify({ path, body }));
    pump();
  };

  let sending = false;
  let failures = 0;
  const pump = async () => {
    if (sending) return;
    sending = true;
    try {
      for (let [name] = waiting(); name; [name] = waiting()) {
        const entry = localStorage.getItem(name);
        if (entry === null) continue;
        const { path, body } = JSON.parse(entry);
        const response = await fetch(path, {
          method: "POST",
          headers: { Accept: "application/json", "Content-Type": "application/x-www-form-urlencoded" },
          body,
        });
        const reply = await response.json();
        if (response.status === 403 || response.status >= 500) throw new Error(reply.problem);
        localStorage.removeItem(name);
        failures = 0;
        if (response.ok) {
          apply(reply);
          announce(path, reply);
        } else {
          say(`Not stored: ${reply.problem}`, true);
          refresh();
        }
      }
    } catch (error) {
      failures += 1;
      const count = waiting().length;
      const why = error instanceof TypeError || error instanceof SyntaxError ? "the server does not answer" : error.message;
      say(`${count} decision${count === 1 ? "" : "s"} not stored yet: ${why}. They are kept here and sent again.`, true);
      setTimeout(pump, Math.min(500 * 2 ** failures, 5000));
      return;
    } finally {
      sending = false;
    }
    settle();
  };

  const paint = (holder, mark) => {
    const own = holder.querySelector(".mark");
    own.textContent = mark.own;
    own.dataset.kind = mark.kind;
    holder.querySelector(".others").textContent = mark.others;
    holder.querySelector(".flag").hidden = !mark.disputed;
  };
  const apply = (reply) => {
    for (const mark of reply.marks) {
      const item = items.find((one) => Number(one.dataset.row) === mark.row);
      if (!item) continue;
      item.toggleAttribute("data-open", mark.open);
      item.toggleAttribute("data-settled", mark.kind !== "");
      paint(cardOf(item), mark);
      paint(item.querySelector("template").content, mark);
      if (item === current) paint(focused, mark);
    }
    for (const [name, value] of Object.entries(reply.progress)) {
      const place = document.querySelector(`[data-field="${name}"]`);
      if (place) place.textContent = value;
    }
    document.getElementById("bar").value = reply.progress.decided;
  };
  const announce = (path, reply) => {
    const [mark] = reply.marks;
    const count = `${reply.progress.decided} of ${reply.progress.suspects} decided.`;
    if (!mark) say("There is nothing to take back.");
    else if (path === "/undo") say(`${mark.name}: decision taken back. ${count}`);
    else say(`${mark.name}: ${mark.own}. ${count}`);
    if (path === "/undo" && mark) {
      const item = items.find((one) => Number(one.dataset.row) === mark.row);
      if (item) select(item, true);
      else if (!waiting().length) location.assign(reply.address);
    }
  };

  const done = (item) => !item.hasAttribute("data-open") || item.hasAttribute("data-settled");
  // keys that are pressed before the next page is there are meant for suspects that nobody has seen yet
  const leave = (leaving) => {
    if (leaving) grid.setAttribute("aria-busy", "true");
    else grid.removeAttribute("aria-busy");
  };
  const settle = () => {
    if (!grid.hasAttribute("aria-busy")) return;
    if (items.every(done)) location.assign(grid.dataset.after || grid.dataset.again);
    else leave(false);
  };
  const refresh = async () => {
    if (document.hidden || sending || waiting().length || !items.length) return;
    try {
      const rows = items.map((item) => item.dataset.row).join(",");
      const response = await fetch(`/state?rows=${rows}`, { headers: { Accept: "application/json" } });
      if (response.ok && !waiting().length) apply(await response.json());
    } catch {
      // the next decision says so if the server is gone
    }
  };
  setInterval(refresh, 4000);

  const narrow = matchMedia("(max-width: 900px)");
  let remembered = 0;
  const select = (item, focus) => {
    if (!item) return;
    for (const one of items) {
      const card = cardOf(one);
      card.removeAttribute("aria-current");
      card.setAttribute("aria-selected", String(one === item));
      card.tabIndex = one === item ? 0 : -1;
    }
    current = item;
    focused.replaceChildren(item.querySelector("template").content.cloneNode(true));
    const { row, given, suggested } = item.dataset;
    for (const field of actions.querySelectorAll("[name=row]")) field.value = row;
    const accept = actions.querySelector("[data-action=accept]");
    const keep = actions.querySelector("[data-action=keep]");
    accept.value = suggested;
    accept.querySelector("b").textContent = item.querySelector(".labels b").textContent;
    keep.value = given;
    keep.querySelector("b").textContent = item.querySelector(".given").textContent;
    other.value = "";
    // in a narrow window the sample in focus is above the list, and stays in sight
    if (focus) cardOf(item).focus({ preventScroll: narrow.matches });
    clearTimeout(remembered);
    remembered = setTimeout(() => history.replaceState(null, "", cardOf(item).href), 300);
  };
  const step = (by, focus = true) => select(items[Math.max(0, Math.min(items.length - 1, items.indexOf(current) + by))], focus);
  const line = (direction) => {
    const box = cardOf(current).getBoundingClientRect();
    const away = (item) => {
      const one = cardOf(item).getBoundingClientRect();
      return [direction * (one.top - box.top), Math.abs(one.left - box.left)];
    };
    const beyond = items.map((item) => [item, ...away(item)]).filter(([, down]) => down > 1);
    beyond.sort((a, b) => a[1] - b[1] || a[2] - b[2]);
    if (beyond.length) select(beyond[0][0], true);
  };

  const act = (fields) => {
    if (!current || grid.hasAttribute("aria-busy")) return;
    const inGrid = document.activeElement === other || !actions.contains(document.activeElement);
    const row = current.dataset.row;
    const own = fields.label === "skip" ? "skipped" : "storing";
    paint(cardOf(current), { own, kind: "", others: "", disputed: false });
    current.setAttribute("data-settled", "");
    const place = items.indexOf(current);
    const next = openOnly
      ? [...items.slice(place + 1), ...items.slice(0, place)].find((item) => !done(item))
      : items[place + 1];
    if (next) select(next, inGrid);
    else if (openOnly) leave(true);
    else if (inGrid) cardOf(current).focus({ preventScroll: narrow.matches });
    push("/decide", { row, back: location.search.slice(1), ...fields });
  };
  const undo = () => push("/undo", { back: location.search.slice(1) });
  const follow = (id) => document.getElementById(id)?.click();

  const keys = document.getElementById("keys");
  const letters = document.querySelector("#letters input");
  const press = {
    a: () => act({ label: current.dataset.suggested }),
    k: () => act({ label: current.dataset.given }),
    s: () => act({ label: "skip" }),
    u: undo,
    o: () => other.focus(),
    j: () => step(-1),
    l: () => step(1),
    n: () => follow("after"),
    p: () => follow("before"),
    "?": () => {
      keys.open = !keys.open;
      if (keys.open) keys.querySelector("summary").focus();
    },
  };
  const move = {
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    ArrowUp: () => line(-1),
    ArrowDown: () => line(1),
    Home: () => select(items[0], true),
    End: () => select(items[items.length - 1], true),
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
    const on = event.target;
    if (on === other && event.key === "Escape") {
      other.value = "";
      select(current, true);
    }
    if (on.closest("input, select, textarea")) return;
    const inGrid = on === document.body || grid.contains(on) || actions?.contains(on);
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    let what = null;
    if (!letters || letters.checked) what = press[name];
    if (!what && inGrid) what = move[name];
    if (!what || (!items.length && what !== undo) || event.repeat && !(name in move)) return;
    event.preventDefault();
    what();
  });

  if (items.length) {
    // a list box passes keys on to the page where a list of links would keep them for the screen reader
    grid.setAttribute("role", "listbox");
    grid.setAttribute("aria-labelledby", "list-title");
    for (const item of items) {
      item.setAttribute("role", "presentation");
      cardOf(item).setAttribute("role", "option");
      item.toggleAttribute("data-settled", item.querySelector(".mark").dataset.kind !== "");
    }
    grid.addEventListener("click", (event) => {
      const item = event.target.closest("li");
      if (!item || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      select(item, true);
    });
    select(current, !location.hash);
    document.getElementById("letters").hidden = false;
    letters.checked = localStorage.getItem("review-letters") !== "off";
    letters.addEventListener("change", () => localStorage.setItem("review-letters", letters.checked ? "on" : "off"));
  }
  addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    event.preventDefault();
    const button = event.submitter;
    if (button?.dataset.action === "undo") undo();
    else if (form.classList.contains("other")) {
      const known = Array.from(other.list.options).some((option) => option.value === other.value.trim());
      if (known) act({ class: other.value });
      else say(`There is no class '${other.value}'.`, true);
    } else if (button) act({ label: button.value });
  });
  addEventListener("beforeunload", (event) => {
    if (failures && waiting().length) event.preventDefault();
  });
  addEventListener("online", pump);
  pump();
})();
