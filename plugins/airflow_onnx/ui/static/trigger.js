// Builds the form from the DAG's own parameters, fills it in from the address, and posts what differs from the defaults.
// Everything that comes from the address or from the server is set as text, never as markup.
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
  // As Airflow's own pages do: a cookie that it did not sign is no login either.
  if (answer.status === 401 || (answer.status === 403 && body.detail === "Invalid JWT token")) {
    const next = encodeURIComponent(window.location.href);
    window.location.assign(`${BASE}/api/v2/auth/login?next=${next}`);
    throw new Error("Signing in …");
  }
  if (!answer.ok) throw new Error(words(body.detail) || `Airflow answered with status ${answer.status}.`);
  return body;
}

function words(detail) {
  if (typeof detail === "string") return detail;
  if (Array.isArray(detail)) return detail.map((item) => item.msg || JSON.stringify(item)).join("\n");
  return detail ? JSON.stringify(detail) : "";
}

// What the address asks for. Anything that is no JSON object is named, not guessed at.
function asked() {
  const text = new URLSearchParams(window.location.search).get("conf");
  if (!text) return {};
  let conf;
  try {
    conf = JSON.parse(text);
  } catch {
    throw new Error("The address carries parameters that are no JSON; the form shows the defaults.");
  }
  if (conf === null || typeof conf !== "object" || Array.isArray(conf)) {
    throw new Error("The address carries JSON that is no object of parameters; the form shows the defaults.");
  }
  return conf;
}

const WORDS = {
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

// The value of a field; text that is no JSON where a number, a list or an object is wanted is an error in words.
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

const needs = (schema) => `needs ${types(schema).filter((type) => type !== "null").map((type) => WORDS[type]).join(" or ")}`;

function isOf(type, value) {
  if (type === "array") return Array.isArray(value);
  if (type === "integer") return Number.isInteger(value);
  if (type === "object") return typeof value === "object" && value !== null && !Array.isArray(value);
  return type === "null" ? value === null : typeof value === type;
}

function limits(schema) {
  const said = [];
  if (schema.minimum !== undefined) said.push(`at least ${schema.minimum}`);
  if (schema.exclusiveMinimum !== undefined) said.push(`above ${schema.exclusiveMinimum}`);
  if (schema.maximum !== undefined) said.push(`at most ${schema.maximum}`);
  return said.length ? ` (${said.join(", ")})` : "";
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

// Marks what differs from the defaults and says what is wrong; returns the parameters to send, or null.
function check() {
  const conf = {};
  let good = true;
  for (const [name, field] of fields) {
    let problem = "";
    try {
      const value = read(name);
      if (!same(value, field.standard)) conf[name] = value;
      problem = broken(field.schema, value);
    } catch (error) {
      problem = error.message;
    }
    complain(field, problem);
    field.row.classList.toggle("changed", name in conf);
    good = good && !problem;
  }
  good = oneSubject() && good;
  const names = Object.keys(conf);
  byId("changed").textContent = names.length ? `Differs from the defaults: ${names.join(", ")}` : "All defaults";
  byId("submit").disabled = !good;
  return good ? conf : null;
}

// What the first task of a release would say; here it is said before there is one.
function oneSubject() {
  const [run, model] = ["training_run_id", "model_uri"].map((name) => fields.get(name));
  if (!run || !model || run.error.textContent || model.error.textContent) return true;
  const given = [run, model].filter((field) => field.input.value.trim() !== "").length;
  if (given === 1) return true;
  complain(model, given ? "give either this or a training run id, not both" : "give a training run id or a model URI");
  return false;
}

function complain(field, problem) {
  field.error.textContent = problem;
  field.input.setAttribute("aria-invalid", String(Boolean(problem)));
}

function broken(schema, value) {
  if (value === "") return "may not be empty";
  if (value === null) return types(schema).includes("null") ? "" : "may not be empty";
  if (!types(schema).some((type) => isOf(type, value))) return needs(schema);
  if (schema.pattern && !new RegExp(schema.pattern).test(value)) return `is not of the form that this takes: ${schema.pattern}`;
  if (schema.minimum !== undefined && value < schema.minimum) return `is below ${schema.minimum}`;
  if (schema.maximum !== undefined && value > schema.maximum) return `is above ${schema.maximum}`;
  if (schema.exclusiveMinimum !== undefined && value <= schema.exclusiveMinimum) return `must be above ${schema.exclusiveMinimum}`;
  if (schema.minItems !== undefined && value.length < schema.minItems) return `needs at least ${schema.minItems} in the list`;
  if (schema.enum && !schema.enum.includes(value)) return `is none of ${schema.enum.join(", ")}`;
  if (Array.isArray(value) && schema.items) {
    for (const item of value) {
      const problem = broken(schema.items, item);
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
    refused(error.message);
    byId("submit").disabled = false;
  }
}

// Airflow names the parameter that it does not take, says why, and then quotes the whole schema.
function refused(text) {
  const [, name, why] = /^Invalid input for param (\w+): (.*)/.exec(text) || [];
  if (!fields.has(name)) return fail(`Not triggered. ${text}`);
  const field = fields.get(name);
  complain(field, why);
  field.input.focus();
  return fail(`Not triggered. ${field.label}: ${why}`);
}

async function begin() {
  let conf = {};
  try {
    conf = asked();
  } catch (error) {
    fail(error.message);
  }
  const { params } = await call(`${API}/details`);
  const unknown = Object.keys(conf).filter((name) => !Object.hasOwn(params, name));
  if (unknown.length) fail(`The address names parameters that a release does not have, left out here: ${unknown.join(", ")}`);
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
