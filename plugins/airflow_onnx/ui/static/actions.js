// Changes from the pages of releases: the move of an alias, and the answer to an approval.
// Each is one call of Airflow's own API, as the signed-in user, after a confirmation that names what changes.
"use strict";

// The tag that `move_alias_dag` gives its DAG.
const MOVE_TAG = "onnx-release:move-alias";

const airflowBase = () => document.body.dataset.airflow;

async function callAirflow(path, options = {}) {
  const answer = await fetch(`${airflowBase()}/api/v2${path}`, {
    credentials: "same-origin",
    headers: { Accept: "application/json", ...(options.body ? { "Content-Type": "application/json" } : {}) },
    ...options,
  });
  const body = await answer.json().catch(() => ({}));
  if (answer.status === 403 || answer.status === 401) throw new Error("Your account may not do this in Airflow.");
  if (!answer.ok) {
    const detail = typeof body.detail === "string" ? body.detail : JSON.stringify(body.detail || "");
    throw new Error(`Airflow refused it (${answer.status}). ${detail.split("\n")[0].slice(0, 300)}`);
  }
  return body;
}

const taskPath = (where) =>
  `/dags/${encodeURIComponent(where.dag)}/dagRuns/${encodeURIComponent(where.run)}/taskInstances/approve/-1/hitlDetails`;

// Shows the dialog of a button. The dialog's form does the work; its text comes from the page, escaped there.
function openDialog(event) {
  const button = event.target.closest && event.target.closest("button[data-dialog]");
  if (!button) return;
  const dialog = document.getElementById(button.dataset.dialog);
  dialog.querySelector(".problem").textContent = "";
  for (const [name, value] of Object.entries(button.dataset)) {
    const field = dialog.querySelector(`[name="${name}"]`);
    if (field) field.value = value;
  }
  if (dialog.dataset.action === "answer") {
    for (const name of ["choice", "dag", "run"]) dialog.dataset[name] = button.dataset[name];
    dialog.querySelector("h2").textContent = `${button.dataset.choice} ${button.dataset.subject}?`;
    dialog.querySelector('[type="submit"]').textContent = button.dataset.choice;
  }
  describeMove(dialog);
  dialog.showModal();
}

// The sentence of a move: the model, the alias, and both versions.
function describeMove(dialog) {
  const sentence = dialog.querySelector("[data-move]");
  if (!sentence) return;
  const alias = dialog.querySelector('[name="alias"]').selectedOptions[0];
  const version = dialog.querySelector('[name="version"]').value;
  const from = alias.dataset.version ? `from v${alias.dataset.version} ` : "";
  const same = alias.dataset.version === version;
  sentence.textContent = same
    ? `@${alias.value} is already at v${version}.`
    : `Move @${alias.value} of ${sentence.dataset.move} ${from}to v${version}.`;
  dialog.querySelector('[type="submit"]').disabled = same;
}

async function move(form) {
  const alias = form.elements.alias.selectedOptions[0];
  const conf = {
    model_name: form.dataset.model,
    alias: alias.value,
    version: Number(form.elements.version.value),
    expected_version: alias.dataset.version ? Number(alias.dataset.version) : null,
    reason: form.elements.reason.value.trim(),
  };
  const [dag] = (await callAirflow(`/dags?tags=${encodeURIComponent(MOVE_TAG)}&limit=1`)).dags;
  if (!dag) throw new Error("Airflow has no DAG that moves an alias. See docs/promotion.md.");
  const body = JSON.stringify({ logical_date: null, conf });
  const run = await callAirflow(`/dags/${encodeURIComponent(dag.dag_id)}/dagRuns`, { method: "POST", body });
  const text = `The move of @${conf.alias} to v${conf.version}`;
  const failed = `${text} was refused or has failed. Its log has the reason.`;
  return { dag: dag.dag_id, run: run.dag_run_id, sent: `${text} is sent.`, success: `${text} is done.`, failed };
}

async function answer(form, dialog) {
  const { choice, ...where } = dialog.dataset;
  const body = JSON.stringify({ chosen_options: [choice], params_input: { comment: form.elements.comment.value.trim() } });
  await callAirflow(taskPath(where), { method: "PATCH", body });
  // A rejected release fails.
  const ends = choice === "Reject"
    ? { success: "Nothing was rejected: the DAG run has succeeded.", failed: "Rejected. No alias has moved." }
    : { success: "Approved and moved.", failed: "The answer is Approve, but the DAG run has failed. Its log has the reason." };
  return { dag: where.dag, run: where.run, sent: `The answer ${choice} is sent.`, ...ends };
}

async function submitDialog(event) {
  const form = event.target;
  const dialog = form.closest("dialog[data-action]");
  if (!dialog) return;
  event.preventDefault();
  const button = form.querySelector('[type="submit"]');
  button.disabled = true;
  dialog.querySelector(".problem").textContent = "";
  try {
    const done = dialog.dataset.action === "move" ? await move(form) : await answer(form, dialog);
    dialog.close();
    showStarted(done);
  } catch (error) {
    dialog.querySelector(".problem").textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

// One line with a link to the DAG run, which follows the run until it has ended.
async function showStarted(started) {
  const line = document.getElementById("started");
  const link = Object.assign(document.createElement("a"), {
    href: `${airflowBase()}/dags/${encodeURIComponent(started.dag)}/runs/${encodeURIComponent(started.run)}`,
    textContent: "Open its DAG run",
  });
  link.dataset.top = "";
  const say = (text) => {
    line.replaceChildren(document.createTextNode(`${text} `), link);
    line.hidden = false;
  };
  say(started.sent);
  await refresh().catch(() => {});
  for (let tries = 0; tries < 200; tries += 1) {
    await new Promise((resolve) => setTimeout(resolve, 2000));
    let state;
    try {
      state = (await callAirflow(`/dags/${encodeURIComponent(started.dag)}/dagRuns/${encodeURIComponent(started.run)}`)).state;
    } catch {
      return;
    }
    if (started[state]) {
      say(started[state]);
      await refresh().catch(() => {});
      return;
    }
  }
}

// Questions of releases and moves: Markdown with paragraphs, lists and tables, whose foreign text Airflow's tasks escape.
// Everything is set as text.
function plainText(markdown) {
  return markdown
    .replace(/\[((?:[^\]\\]|\\.)*)\]\(https?:[^)\s]*\)/g, "$1")
    .replace(/(?<!\\)(\*\*|`)/g, "")
    .replace(/\\([\\`*~|#_(])/g, "$1")
    .replace(/&#(\d{1,3});/g, (_, code) => String.fromCharCode(Number(code)))
    .replace(/&lt;/g, "<")
    .replace(/&gt;/g, ">")
    .replace(/&amp;/g, "&");
}

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function tableOf(lines) {
  const rows = lines.map((line) => line.split(/(?<!\\)\|/).slice(1, -1).map((cell) => plainText(cell.trim())));
  const [heads, , ...body] = rows;
  const scope = (cell, value) => Object.assign(cell, { scope: value });
  const head = element("thead", element("tr", ...heads.map((text) => scope(element("th", text), "col"))));
  const lineOf = ([first, ...rest]) => element("tr", scope(element("th", first), "row"), ...rest.map((text) => element("td", text)));
  const caption = Object.assign(element("caption", "Gates"), { className: "unseen" });
  const table = element("table", caption, head, element("tbody", ...body.map(lineOf)));
  const scroll = Object.assign(element("div", table), { className: "scroll", tabIndex: 0 });
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", "Gates");
  return scroll;
}

function markdownParts(text) {
  const groups = [];
  for (const line of text.split("\n")) {
    const kind = line.startsWith("- ") ? "list" : line.startsWith("|") ? "table" : line.trim() ? "text" : "";
    if (kind && kind !== "text" && groups.at(-1)?.kind === kind) groups.at(-1).lines.push(line);
    else groups.push({ kind, lines: [line] });
  }
  return groups.filter((one) => one.kind).map(({ kind, lines }) => {
    if (kind === "table" && lines.length > 2) return tableOf(lines);
    if (kind === "list") return element("ul", ...lines.map((line) => element("li", plainText(line.slice(2)))));
    return element("p", plainText(lines.join(" ")));
  });
}

async function showQuestions() {
  for (const place of document.querySelectorAll("[data-question]:not([data-read])")) {
    place.dataset.read = "";
    try {
      const detail = await callAirflow(taskPath(place.dataset));
      place.replaceChildren(element("h2", detail.subject || "Approval"), ...markdownParts(detail.body || ""));
    } catch (error) {
      place.replaceChildren(Object.assign(element("p", error.message), { className: "muted" }));
    }
  }
}

// The check of the deployment. Its result is in the live part of the page.
async function checkDeployment(event) {
  const button = event.target.closest && event.target.closest("button[data-check]");
  if (!button) return;
  const problem = document.getElementById("check-problem");
  problem.hidden = true;
  button.disabled = true;
  button.textContent = "Checking…";
  try {
    const headers = { Accept: "application/json", "Content-Type": "application/json" };
    const answer = await fetch(`${document.body.dataset.base}/check`, { method: "POST", credentials: "same-origin", headers, body: "{}" });
    if (answer.status === 403 || answer.status === 401) throw new Error("Your account may not trigger the DAGs of releases, so it may not check them.");
    const body = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(typeof body.detail === "string" ? body.detail : `The check was not made (${answer.status}).`);
    document.getElementById("announcement").textContent = body.summary;
    await refresh();
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
  } finally {
    button.disabled = false;
    button.textContent = "Check now";
  }
}

document.addEventListener("DOMContentLoaded", () => {
  showQuestions();
  document.addEventListener("click", checkDeployment);
  document.addEventListener("refreshed", showQuestions);
  document.addEventListener("click", openDialog);
  document.addEventListener("submit", submitDialog);
  document.addEventListener("change", (event) => {
    const dialog = event.target.closest && event.target.closest("dialog[data-action='move']");
    if (dialog) describeMove(dialog);
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest && event.target.closest("button[data-close]")) event.target.closest("dialog").close();
  });
});
