// What the pages cannot do without script: follow Airflow's theme, unfold long texts, and the SQL console.
"use strict";

// Inside Airflow the page is a frame of the same origin, and Airflow's own document carries its theme as a class.
(function followTheme() {
  let airflow = null;
  try {
    if (window.parent !== window) airflow = window.parent.document.documentElement;
  } catch (error) {
    if (!(error instanceof DOMException)) throw error; // a frame of another origin has no theme to follow
  }
  if (!airflow) return;
  const root = document.documentElement;
  root.dataset.framed = "";
  const apply = () => {
    const theme = ["dark", "light"].find((name) => airflow.classList.contains(name));
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  apply();
  new MutationObserver(apply).observe(airflow, { attributes: true, attributeFilter: ["class"] });
})();

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".excerpt.clamped").forEach(makeUnfolding);
  const place = document.getElementById("console");
  if (place) startConsole(place);
});

function makeUnfolding(text) {
  if (text.scrollHeight <= text.clientHeight + 4) {
    text.classList.remove("clamped");
    text.removeAttribute("tabindex");
    return;
  }
  const button = element("button", "More");
  button.type = "button";
  button.className = "more";
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => {
    const isOpen = text.classList.toggle("open");
    button.setAttribute("aria-expanded", String(isOpen));
    button.textContent = isOpen ? "Less" : "More";
  });
  text.after(button);
}

function startConsole(place) {
  const byId = (id) => document.getElementById(id);
  const [statement, ask, cancel, download, status, result] = ["statement", "ask", "cancel", "download", "status", "result"].map(byId);
  const examples = byId("examples");
  let running = null; // {id, controller, timer}

  const post = (address, body, signal) =>
    fetch(address, {
      method: "POST",
      headers: { "content-type": "application/json", "x-bliss-explorer": "1" },
      body: JSON.stringify(body),
      signal,
    });
  const say = (text, isError = false) => {
    status.textContent = text;
    status.classList.toggle("error", isError);
  };

  async function run(address, use) {
    if (running) return;
    const id = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    const begun = performance.now();
    const controller = new AbortController();
    const timer = setInterval(() => say(`Running, ${Math.round((performance.now() - begun) / 1000)} s`), 1000);
    running = { id, controller, timer };
    ask.disabled = download.disabled = true;
    cancel.disabled = false;
    result.hidden = true;
    say("Running");
    try {
      const response = await post(address, { id, statement: statement.value }, controller.signal);
      if (response.ok) await use(response);
      else if (response.headers.get("content-type")?.startsWith("application/json")) say((await response.json()).error, true);
      else say(response.status === 401 ? "You have been logged out: load the page again." : `The server answered ${response.status}.`, true);
    } catch (error) {
      if (error.name !== "AbortError" && !(error instanceof TypeError)) throw error;
      say("The server does not answer: is it still running?", true);
    } finally {
      clearInterval(timer);
      running = null;
      ask.disabled = download.disabled = false;
      cancel.disabled = true;
    }
  }

  ask.addEventListener("click", () => run(place.dataset.run, async (response) => show(await response.json())));
  download.addEventListener("click", () =>
    run(place.dataset.csv, async (response) => {
      const isCut = response.headers.get("x-bliss-cut") === "true";
      const link = element("a");
      link.href = URL.createObjectURL(await response.blob());
      link.download = "scores.csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      say(isCut ? `Downloaded, cut to its first ${number(place.dataset.csvRows)} rows or 64 MB: bliss sql --format csv writes all.` : "Downloaded.");
    }),
  );
  cancel.addEventListener("click", () => running && post(place.dataset.cancel, { id: running.id }));
  statement.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      ask.click();
    }
  });
  examples?.addEventListener("change", () => {
    const chosen = examples.selectedOptions[0];
    if (chosen.dataset.sql) {
      statement.value = chosen.dataset.sql;
      statement.focus();
    }
  });

  function show(answer) {
    const table = element("table");
    table.append(element("caption", "Result"));
    table.caption.className = "unseen";
    const head = table.createTHead().insertRow();
    for (const column of answer.columns) {
      const cell = element("th", column.name);
      cell.scope = "col";
      cell.title = column.type;
      if (!column.is_number) cell.className = "text";
      head.append(cell);
    }
    const body = table.createTBody();
    for (const values of answer.rows) {
      const row = body.insertRow();
      values.forEach((value, i) => {
        const cell = row.insertCell();
        cell.textContent = value ?? "null"; // text, never markup: it may come from any document of the corpus
        cell.className = (answer.columns[i].is_number ? "" : "text") + (value === null ? " null" : "");
      });
    }
    result.replaceChildren(table);
    result.hidden = false;
    const count = `${number(answer.rows.length)} row${answer.rows.length === 1 ? "" : "s"}`;
    say(
      answer.is_cut
        ? `The first ${number(answer.rows.length)} rows, in ${answer.seconds} s. There are more: add a limit, an aggregate, or download them.`
        : `${count} in ${answer.seconds} s.`,
    );
  }
}

function element(name, text = "") {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function number(value) {
  return Number(value).toLocaleString("en");
}
