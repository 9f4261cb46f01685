// Changes from the pages of releases: the move of an alias, and the answer to an approval.
// Each is one call of Airflow's own API, as the signed-in user, after a confirmation that names what changes.
"use strict";

const MOVE_DAG = "move_alias";

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
  const answer = dialog.querySelector("[data-answer-of]");
  if (answer) describeApproval(dialog, button);
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

async function describeApproval(dialog, button) {
  dialog.dataset.choice = button.dataset.choice;
  dialog.querySelector("h2").textContent = `${button.dataset.choice} this version?`;
  dialog.querySelector('[type="submit"]').textContent = button.dataset.choice;
  const where = dialog.querySelector("[data-answer-of]");
  try {
    const detail = await callAirflow(taskPath(where.dataset));
    where.textContent = [detail.subject, detail.body].filter(Boolean).join("\n\n");
  } catch (error) {
    dialog.querySelector(".problem").textContent = error.message;
  }
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
  const body = JSON.stringify({ logical_date: null, conf });
  const run = await callAirflow(`/dags/${MOVE_DAG}/dagRuns`, { method: "POST", body });
  return { dag: MOVE_DAG, run: run.dag_run_id, text: `The move of @${conf.alias} to v${conf.version}` };
}

async function answer(form, dialog) {
  const where = dialog.querySelector("[data-answer-of]").dataset;
  const choice = dialog.dataset.choice;
  const body = JSON.stringify({ chosen_options: [choice], params_input: { comment: form.elements.comment.value.trim() } });
  await callAirflow(taskPath(where), { method: "PATCH", body });
  return { dag: where.dag, run: where.run, text: `The answer "${choice}"` };
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
  say(`${started.text} is sent.`);
  for (let tries = 0; tries < 200; tries += 1) {
    await new Promise((resolve) => setTimeout(resolve, 2000));
    let state;
    try {
      state = (await callAirflow(`/dags/${encodeURIComponent(started.dag)}/dagRuns/${encodeURIComponent(started.run)}`)).state;
    } catch {
      return;
    }
    if (state === "success") {
      say(`${started.text} is done.`);
      await refresh().catch(() => {});
      return;
    }
    if (state === "failed") {
      say(`${started.text} was refused or has failed. Its log has the reason.`);
      return;
    }
  }
}

document.addEventListener("DOMContentLoaded", () => {
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
