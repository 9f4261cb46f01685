// Form for a release: built from the parameters of the DAG, filled in from the address. Posts the changed parameters.
// All text from the address and the server is set as text, never as markup.
"use strict";

const DAG_ID = "release_onnx";
const BASE = window.location.pathname.replace(/\/onnx-release\/trigger$/, "");
const API = `${BASE}/api/v2/dags/${DAG_ID}`;
const byId = (id) => document.getElementById(id);
const fields = new Map();

function fail(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = false;
  byId("problem").scrollIntoView({ block: "nearest" });
}

async function call(url, options = {}) {
  const answer = await fetch(url, { credentials: "same-origin", ...options });
  const body = await answer.json().catch(() => ({}));
  // Airflow answers 403 to a cookie that it did not sign. Its own pages redirect to the login then, too.
  if (answer.status === 401 || (answer.status === 403 && body.detail === "Invalid JWT token")) {
    const next = encodeURIComponent(window.location.href);
    window.location.assign(`${BASE}/api/v2/auth/login?next=${next}`);
    throw new Error("Signing in …");
  }
  if (!answer.ok) throw new Error(detailText(body.detail) || `Airflow answered with status ${answer.status}.`);
  return body;
}

function detailText(detail) {
  if (typeof detail === "string") return detail;
  if (Array.isArray(detail)) return detail.map((item) => item.msg || JSON.stringify(item)).join("\n");
  return detail ? JSON.stringify(detail) : "";
}

// Returns the parameters in the address. Throws an error for text that is not a JSON object.
function addressParams() {
  const text = new URLSearchParams(window.location.search).get("conf");
  if (!text) return {};
  let conf;
  try {
    conf = JSON.parse(text);
  } catch {
    throw new Error("The parameters in the address are not valid JSON. The form shows the defaults.");
  }
  if (conf === null || typeof conf !== "object" || Array.isArray(conf)) {
    throw new Error("The parameters in the address are not a JSON object. The form shows the defaults.");
  }
  return conf;
}

const TYPE_NAMES = {
  string: "text",
  array: "a list, such as [1, 8]",
  object: 'an object, such as {"name": 1}',
  integer: "a whole number",
  number: "a number",
  boolean: "true or false",
};
const types = (schema) => [].concat(schema.type || []);
const isText = (schema) => types(schema).includes("string");
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

function make(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

function control(name, schema, value) {
  const choices = schema.enum || (types(schema).includes("boolean") && ["false", "true"]);
  if (choices) {
    const select = make("select", { id: name });
    for (const choice of choices) select.append(make("option", { value: choice, textContent: choice }));
    const chosen = typeof value === "string" ? value : JSON.stringify(value);
    if (!choices.includes(chosen)) select.append(make("option", { value: chosen, textContent: `${chosen} (not a choice)` }));
    select.value = chosen;
    return select;
  }
  const number = types(schema).some((type) => type === "number" || type === "integer");
  const long = types(schema).some((type) => type === "array" || type === "object");
  const shown = value === null ? "" : typeof value === "string" && isText(schema) ? value : JSON.stringify(value);
  if (long) return make("textarea", { id: name, value: shown, spellcheck: false });
  return make("input", { id: name, value: shown, inputMode: number ? "decimal" : "text", spellcheck: false, autocomplete: "off" });
}

// Returns the value of a field. Throws an error for a number, list or object that is not valid JSON.
function read(name) {
  const { schema, input } = fields.get(name);
  const text = input.value.trim();
  if (text === "" && types(schema).includes("null")) return null;
  if (isText(schema)) return text;
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(needs(schema));
  }
}

const needs = (schema) => `needs ${types(schema).filter((type) => type !== "null").map((type) => TYPE_NAMES[type]).join(" or ")}`;

function isOf(type, value) {
  if (type === "array") return Array.isArray(value);
  if (type === "integer") return Number.isInteger(value);
  if (type === "object") return typeof value === "object" && value !== null && !Array.isArray(value);
  return type === "null" ? value === null : typeof value === type;
}

function limits(schema) {
  const bounds = [];
  if (schema.minimum !== undefined) bounds.push(`at least ${schema.minimum}`);
  if (schema.exclusiveMinimum !== undefined) bounds.push(`above ${schema.exclusiveMinimum}`);
  if (schema.maximum !== undefined) bounds.push(`at most ${schema.maximum}`);
  return bounds.length ? ` (${bounds.join(", ")})` : "";
}

function addField(section, name, param, value) {
  const schema = param.schema || {};
  const row = make("div", { className: "field" });
  const input = control(name, schema, value);
  const help = (schema.description_md || param.description || "").replaceAll("`", "").replaceAll("**", "");
  const label = make("label", { htmlFor: name, textContent: schema.title || name });
  const note = make("small", { id: `${name}-help`, textContent: help + limits(schema) });
  const error = make("small", { id: `${name}-error`, className: "error" });
  input.setAttribute("aria-describedby", `${name}-help ${name}-error`);
  row.append(label, input, note, error);
  section.append(row);
  fields.set(name, { schema, input, row, error, label: label.textContent, standard: param.value ?? null });
  input.addEventListener("input", check);
}

// Marks changed fields and shows errors. Returns the changed parameters, or null if a field is wrong.
function check() {
  const conf = {};
  let good = true;
  for (const [name, field] of fields) {
    let problem = "";
    try {
      const value = read(name);
      if (!same(value, field.standard)) conf[name] = value;
      problem = violation(field.schema, value);
    } catch (error) {
      problem = error.message;
    }
    showProblem(field, problem);
    field.row.classList.toggle("changed", name in conf);
    good = good && !problem;
  }
  good = checkSource() && good;
  const names = Object.keys(conf);
  byId("changed").textContent = names.length ? `Changed: ${names.join(", ")}` : "No field changed";
  byId("submit").disabled = !good;
  return good ? conf : null;
}

// The first task of a release makes the same check. Here the user gets the error before the release starts.
function checkSource() {
  const [run, model] = ["training_run_id", "model_uri"].map((name) => fields.get(name));
  if (!run || !model || run.error.textContent || model.error.textContent) return true;
  const count = [run, model].filter((field) => field.input.value.trim() !== "").length;
  if (count === 1) return true;
  showProblem(model, count ? "give either this or a training run id, not both" : "give a training run id or a model URI");
  return false;
}

function showProblem(field, problem) {
  field.error.textContent = problem;
  field.input.setAttribute("aria-invalid", String(Boolean(problem)));
}

function violation(schema, value) {
  if (value === "") return "must not be empty";
  if (value === null) return types(schema).includes("null") ? "" : "must not be empty";
  if (!types(schema).some((type) => isOf(type, value))) return needs(schema);
  if (schema.pattern && !new RegExp(schema.pattern).test(value)) return `does not match the pattern ${schema.pattern}`;
  if (schema.minimum !== undefined && value < schema.minimum) return `is below ${schema.minimum}`;
  if (schema.maximum !== undefined && value > schema.maximum) return `is above ${schema.maximum}`;
  if (schema.exclusiveMinimum !== undefined && value <= schema.exclusiveMinimum) return `is not above ${schema.exclusiveMinimum}`;
  if (schema.minItems !== undefined && value.length < schema.minItems) return `has fewer items than ${schema.minItems}`;
  if (schema.enum && !schema.enum.includes(value)) return `is not one of ${schema.enum.join(", ")}`;
  if (Array.isArray(value) && schema.items) {
    for (const item of value) {
      const problem = violation(schema.items, item);
      if (problem) return `${JSON.stringify(item)} in the list ${problem}`;
    }
  }
  return "";
}

async function submit(event) {
  event.preventDefault();
  const conf = check();
  if (!conf) return;
  byId("submit").disabled = true;
  byId("problem").hidden = true;
  try {
    const run = await call(`${API}/dagRuns`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ logical_date: null, conf }),
    });
    window.location.assign(`${BASE}/dags/${DAG_ID}/runs/${encodeURIComponent(run.dag_run_id)}`);
  } catch (error) {
    showRefusal(error.message);
    byId("submit").disabled = false;
  }
}

// Airflow's message has the name of the refused parameter, the reason, and then the whole schema.
function showRefusal(text) {
  const [, name, reason] = /^Invalid input for param (\w+): (.*)/.exec(text) || [];
  if (!fields.has(name)) return fail(`Not triggered. ${text}`);
  const field = fields.get(name);
  showProblem(field, reason);
  field.input.focus();
  return fail(`Not triggered. ${field.label}: ${reason}`);
}

async function begin() {
  let conf = {};
  try {
    conf = addressParams();
  } catch (error) {
    fail(error.message);
  }
  const { params } = await call(`${API}/details`);
  const unknown = Object.keys(conf).filter((name) => !Object.hasOwn(params, name));
  if (unknown.length) fail(`The address has unknown parameters, which are left out: ${unknown.join(", ")}`);
  const sections = new Map();
  for (const [name, param] of Object.entries(params)) {
    const title = (param.schema && param.schema.section) || "Parameters";
    if (!sections.has(title)) {
      const section = make("fieldset");
      section.append(make("legend", { textContent: title }));
      sections.set(title, section);
      byId("fields").append(section);
    }
    addField(sections.get(title), name, param, Object.hasOwn(conf, name) ? conf[name] : param.value ?? null);
  }
  check();
  byId("form").addEventListener("submit", submit);
}

begin().catch((error) => fail(error.message));
