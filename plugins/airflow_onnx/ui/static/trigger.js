// Form for a release: built from the parameters of the DAG, filled in from the address. Posts the changed parameters.
// All text from the address and the server is set as text, never as markup. page.js has the theme and followInAirflow.

// The tag that `release_dag` gives each of its DAGs. No other DAG is started here.
const RELEASE_TAG = "onnx-release:release";
const BASE = window.location.pathname.replace(/\/onnx-release\/trigger$/, "");
const API = `${BASE}/api/v2/dags`;
// Airflow opens only a section of this name in its own form.
const FIRST_SECTION = { name: "Run Parameters", title: "The release" };
const EXPERTS = "Experts: ";
const byId = (id) => document.getElementById(id);
const fields = new Map();
const sections = new Map();
// Errors of untouched fields are shown when the user has pressed the button.
let showAll = false;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

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
  if (answer.status === 403) throw new Error("Your account may not do this in Airflow. Ask an administrator for the right to trigger the DAG.");
  if (answer.status === 404) throw new Error("Airflow has no such DAG. Check its DAG list for import errors.");
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
const has = (schema, type) => types(schema).includes(type);
const isOptional = (schema) => has(schema, "null");
const choices = (schema) => (has(schema, "array") && schema.items && schema.items.enum) || null;
const isLines = (schema) => has(schema, "array") && !choices(schema) && (schema.items || {}).type === "string";
const isNumbers = (schema) => has(schema, "array") && ["integer", "number"].includes((schema.items || {}).type);
const isBlank = (value) => value === null || (typeof value === "object" && Object.keys(value).length === 0);
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

// Returns a value as the text of its input.
function asText(schema, value) {
  if (isBlank(value)) return "";
  if (Array.isArray(value) && isLines(schema) && value.every((item) => typeof item === "string")) return value.join("\n");
  if (Array.isArray(value) && isNumbers(schema) && value.every((item) => typeof item === "number")) return value.join(", ");
  if (typeof value === "number") return numberText(value);
  return typeof value === "string" && has(schema, "string") ? value : JSON.stringify(value);
}

// 1e-5 and not 0.00001, as in the documentation.
const numberText = (value) => (value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential() : String(value));

// Returns the element of a field, with functions that read and set its value. Reading throws an error for a wrong text.
function control(name, schema, standard) {
  if (has(schema, "boolean")) return switchControl(name);
  if (choices(schema)) return choicesControl(name, choices(schema));
  if (schema.enum) return selectControl(name, schema.enum);
  const long = has(schema, "object") || (has(schema, "array") && !isNumbers(schema));
  const number = has(schema, "number") || has(schema, "integer");
  const input = long
    ? make("textarea", { id: name, rows: 2, spellcheck: false })
    : make("input", { id: name, inputMode: number ? "decimal" : "text", spellcheck: false, autocomplete: "off" });
  if (isBlank(standard) && !isOptional(schema)) input.required = true;
  const read = () => parse(schema, input.value.trim(), standard);
  return { element: input, inputs: [input], read, set: (value) => (input.value = asText(schema, value)) };
}

function switchControl(name) {
  const input = make("input", { id: name, type: "checkbox" });
  const state = make("span", { className: "muted" });
  const set = (value) => {
    input.checked = value === true || value === "true";
    state.textContent = input.checked ? "on" : "off";
  };
  input.addEventListener("input", () => set(input.checked));
  return { element: make("div", { className: "switch" }, input, state), inputs: [input], read: () => input.checked, set };
}

function choicesControl(name, all) {
  const boxes = all.map((choice) => make("input", { type: "checkbox", value: choice, id: `${name}-${choice}` }));
  const labels = boxes.map((box) => make("label", { htmlFor: box.id }, box, box.value));
  const element = make("div", { className: "choices" }, ...labels);
  element.setAttribute("role", "group");
  const read = () => boxes.filter((box) => box.checked).map((box) => box.value);
  const set = (value) => boxes.forEach((box) => (box.checked = Array.isArray(value) && value.includes(box.value)));
  return { element, inputs: boxes, read, set, isGroup: true };
}

function selectControl(name, all) {
  const select = make("select", { id: name });
  for (const choice of all) select.append(make("option", { value: choice, textContent: choice }));
  const set = (value) => {
    const chosen = typeof value === "string" ? value : JSON.stringify(value);
    if (!all.includes(chosen)) select.append(make("option", { value: chosen, textContent: `${chosen} (not a choice)` }));
    select.value = chosen;
  };
  return { element: select, inputs: [select], read: () => select.value, set };
}

function parse(schema, text, standard) {
  if (text === "") {
    // An empty field is the default where that is empty too.
    if (standard !== null && isBlank(standard)) return standard;
    if (isOptional(schema)) return null;
    throw new Error("Must not be empty.");
  }
  if (has(schema, "string")) return text;
  if (isLines(schema) && !text.startsWith("[")) return text.split("\n").map((line) => line.trim()).filter(Boolean);
  if (has(schema, "number") || has(schema, "integer")) {
    const number = Number(text);
    if (!Number.isFinite(number)) throw new Error(needs(schema));
    return number;
  }
  try {
    return JSON.parse(isNumbers(schema) && !text.startsWith("[") ? `[${text}]` : text);
  } catch {
    throw new Error(needs(schema));
  }
}

function needs(schema) {
  if (isNumbers(schema)) return "Use numbers, such as 1, 8, 32.";
  if (has(schema, "array") && (schema.items || {}).type === "object") return 'Use a list of objects, such as [{"name": "x"}].';
  return `Use ${types(schema).filter((type) => type !== "null").map((type) => TYPE_NAMES[type]).join(" or ")}.`;
}

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
  const text = bounds.join(", ");
  return text && ` ${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
}

// The pattern begins with a comment in words, for the messages of Airflow. Only Python has such comments.
const COMMENT = /\(\?#([^)]*)\)/;

function violation(schema, value) {
  if (value === "") return "Must not be empty.";
  if (value === null) return isOptional(schema) ? "" : "Must not be empty.";
  if (!types(schema).some((type) => isOf(type, value))) return needs(schema);
  if (schema.pattern && !new RegExp(schema.pattern.replace(COMMENT, "")).test(value)) {
    return `Use ${schema.pattern_words || `the form ${schema.pattern}`}.`;
  }
  if (schema.maxLength !== undefined && value.length > schema.maxLength) return `Use at most ${schema.maxLength} characters.`;
  if (schema.minLength !== undefined && value.length < schema.minLength) return "Must not be empty.";
  if (schema.minimum !== undefined && value < schema.minimum) return `Use ${schema.minimum} or more.`;
  if (schema.maximum !== undefined && value > schema.maximum) return `Use ${schema.maximum} or less.`;
  if (schema.exclusiveMinimum !== undefined && value <= schema.exclusiveMinimum) return `Use more than ${schema.exclusiveMinimum}.`;
  if (schema.minItems !== undefined && value.length < schema.minItems) return schema.minItems === 1 ? "Choose at least one." : `Give at least ${schema.minItems}.`;
  if (schema.enum && !schema.enum.includes(value)) return `Use one of ${schema.enum.join(", ")}.`;
  for (const item of Array.isArray(value) && schema.items ? value : []) {
    const problem = violation(schema.items, item);
    if (problem) return `${JSON.stringify(item)}: ${problem}`;
  }
  return "";
}

function section(name) {
  if (!sections.has(name)) {
    const isExpert = name.startsWith(EXPERTS);
    if (isExpert && ![...sections.keys()].some((other) => other.startsWith(EXPERTS))) {
      byId("fields").append(make("h2", { textContent: "For experts" }));
    }
    const text = name === FIRST_SECTION.name ? FIRST_SECTION.title : name.replace(EXPERTS, "");
    const title = make("span", { textContent: text.charAt(0).toUpperCase() + text.slice(1) });
    const count = make("span", { className: "count" });
    const body = make("div", { className: "section" });
    const details = make("details", { open: !isExpert }, make("summary", {}, title, count), body);
    byId("fields").append(details);
    sections.set(name, { details, body, count });
  }
  return sections.get(name);
}

function addField(name, param, value) {
  const schema = param.schema || {};
  const standard = param.value ?? null;
  const part = control(name, schema, standard);
  const title = schema.title || name;
  const label = part.isGroup
    ? make("span", { className: "label", id: `${name}-label`, textContent: title })
    : make("label", { htmlFor: name, id: `${name}-label`, textContent: title });
  const help = make("small", { id: `${name}-help`, textContent: (schema.description_md || param.description || "") + limits(schema) });
  const error = make("small", { id: `${name}-error`, className: "error" });
  if (part.isGroup) part.element.setAttribute("aria-labelledby", label.id);
  (part.isGroup ? part.element : part.inputs[0]).setAttribute("aria-describedby", `${error.id} ${help.id}`);
  const row = make("div", { className: "field" }, label, part.element, error, help);
  const place = section(schema.section || FIRST_SECTION.name);
  place.body.append(row);
  const field = { name, schema, part, row, error, title, standard, place, isTouched: !same(value, standard), problem: "" };
  fields.set(name, field);
  part.set(value);
  for (const input of part.inputs) {
    input.addEventListener("input", () => { field.isTouched = true; check(); });
    input.addEventListener("blur", () => announce(field));
  }
}

// Returns the changed parameters. Marks changed fields and wrong ones.
function check() {
  const conf = {};
  for (const field of fields.values()) {
    field.problem = "";
    field.isChanged = true;
    try {
      field.value = field.part.read();
      field.isChanged = !same(field.value, field.standard);
      field.problem = violation(field.schema, field.value);
    } catch (error) {
      field.problem = error.message;
    }
    if (field.isChanged && !field.problem) conf[field.name] = field.value;
  }
  checkSource();
  showFields();
  showChanges();
  return conf;
}

// The first task of a release makes the same check. Here the user gets the error before the release starts.
function checkSource() {
  const [run, model] = ["training_run_id", "model_uri"].map((name) => fields.get(name));
  if (!run || !model || run.problem || model.problem) return;
  const given = [run, model].filter((field) => field.value !== null);
  if (given.length === 2) model.problem = "Give either this or a training run id, not both.";
  if (given.length === 0) run.problem = "Give a training run id or a model URI.";
}

const isShown = (field) => field.problem !== "" && (field.isTouched || showAll);

function showFields() {
  for (const field of fields.values()) {
    const wrong = isShown(field);
    if (field.error.textContent !== (wrong ? field.problem : "")) field.error.textContent = wrong ? field.problem : "";
    field.row.classList.toggle("changed", field.isChanged);
    field.row.classList.toggle("wrong", wrong);
    for (const input of field.part.inputs) input.setAttribute("aria-invalid", String(wrong));
  }
  for (const { details, count } of sections.values()) {
    const inside = [...fields.values()].filter((field) => field.place.details === details);
    const wrong = inside.filter(isShown).length;
    const changed = inside.filter((field) => field.isChanged).length;
    count.textContent = [wrong && `${wrong} wrong`, changed && `${changed} changed`].filter(Boolean).join(", ");
    count.classList.toggle("bad", wrong > 0);
  }
  const wrong = [...fields.values()].filter(isShown);
  byId("status").classList.toggle("bad", wrong.length > 0);
  const more = wrong.length > 3 ? ` and ${wrong.length - 2} more` : "";
  const titles = wrong.slice(0, more ? 2 : 3).map((field) => field.title);
  setStatus(wrong.length ? `To correct: ${titles.join(", ")}${more}` : changedText());
}

function setStatus(text) {
  if (byId("status").textContent !== text) byId("status").textContent = text;
}

function changedText() {
  const count = [...fields.values()].filter((field) => field.isChanged).length;
  return count === 1 ? "1 field changed from the defaults" : `${count || "No"} fields changed from the defaults`;
}

// A screen reader reads the error of a field when the user leaves it.
function announce(field) {
  if (isShown(field)) setStatus(`${field.title}: ${field.problem}`);
}

const shortText = (value) => {
  const text = value === null ? "empty" : typeof value === "boolean" ? (value ? "on" : "off") : typeof value === "string" ? value : typeof value === "number" ? numberText(value) : JSON.stringify(value);
  return text.length > 120 ? `${text.slice(0, 119)}…` : text;
};

function showChanges() {
  const changed = [...fields.values()].filter((field) => field.isChanged);
  const rows = changed.map((field) => {
    const link = make("a", { href: `#${field.name}-label`, textContent: field.title });
    link.addEventListener("click", (event) => { event.preventDefault(); focusField(field); });
    const standard = isBlank(field.standard) ? "" : ` (default ${shortText(field.standard)})`;
    const notes = isShown(field)
      ? [" ", make("span", { className: "error", textContent: field.problem })]
      : [shortText(field.value), make("small", { textContent: standard })];
    const undo = make("button", { type: "button", textContent: "Undo" });
    undo.setAttribute("aria-label", `Undo the change of ${field.title}`);
    undo.addEventListener("click", () => { field.part.set(field.standard); check(); focusField(field); });
    return make("li", {}, make("span", {}, link, ": ", ...notes), undo);
  });
  byId("changes").querySelector("ul").replaceChildren(...rows);
  byId("changes").hidden = rows.length === 0;
}

function focusField(field) {
  field.place.details.open = true;
  field.part.inputs[0].focus();
  field.row.scrollIntoView({ block: "center" });
}

// The note of the DAG run. Airflow shows it as Markdown, and the name comes from the address.
function noteText(conf) {
  const plain = (text) => String(text || "").replace(/[^\p{L}\p{N} .:/@_-]/gu, " ").replaceAll("://", ":/ /").trim().slice(0, 200);
  const name = plain(new URLSearchParams(window.location.search).get("name"));
  const source = name || plain(conf.training_run_id || conf.model_uri);
  return conf.model_name ? `${source} → ${plain(conf.model_name)}` : source;
}

// Returns the release DAG of the address. Without one it is the only release DAG, or the user chooses.
async function releaseDag() {
  const given = new URLSearchParams(window.location.search).get("dag");
  if (given) return given;
  const { dags } = await call(`${API}?tags=${encodeURIComponent(RELEASE_TAG)}&limit=100`);
  if (dags.length === 0) throw new Error("Airflow has no release DAG yet. Check its DAG list for import errors.");
  if (dags.length === 1) return dags[0].dag_id;
  byId("dags").querySelector("ul").replaceChildren(...dags.map((dag) => {
    const query = new URLSearchParams(window.location.search);
    query.set("dag", dag.dag_id);
    return make("li", {}, make("a", { href: `?${query}`, textContent: dag.dag_display_name || dag.dag_id }));
  }));
  byId("dags").hidden = false;
  byId("form").hidden = true;
  return "";
}

async function submit(event, dagId) {
  event.preventDefault();
  showAll = true;
  const conf = check();
  const wrong = [...fields.values()].filter((field) => field.problem);
  if (wrong.length) {
    focusField(wrong[0]);
    return;
  }
  byId("submit").disabled = true;
  byId("problem").hidden = true;
  setStatus("Starting …");
  try {
    const run = await call(`${API}/${encodeURIComponent(dagId)}/dagRuns`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ logical_date: null, conf, note: noteText(conf) }),
    });
    setStatus("Started. Opening the DAG run …");
    followInAirflow(`${window.location.origin}${BASE}/dags/${encodeURIComponent(dagId)}/runs/${encodeURIComponent(run.dag_run_id)}`, false);
  } catch (error) {
    showRefusal(error.message);
    byId("submit").disabled = false;
  }
}

// Airflow's message has the name of the refused parameter, the reason, and then the whole schema.
function showRefusal(text) {
  const [, name, reason] = /^Invalid input for param (\w+): (.*)/.exec(text) || [];
  setStatus("");
  if (!fields.has(name)) return fail(`Not started. ${text}`);
  const field = fields.get(name);
  const [, words] = COMMENT.exec(reason) || [];
  field.error.textContent = words ? `Use ${words}.` : reason;
  field.row.classList.add("wrong");
  focusField(field);
  return fail(`Not started. ${field.title}: ${field.error.textContent}`);
}

async function begin() {
  let conf = {};
  try {
    conf = addressParams();
  } catch (error) {
    fail(error.message);
  }
  const dagId = await releaseDag();
  if (!dagId) return;
  const { params, tags } = await call(`${API}/${encodeURIComponent(dagId)}/details`);
  if (!tags.some((tag) => tag.name === RELEASE_TAG)) throw new Error(`${dagId} is not a DAG of releases. Nothing can be started here.`);
  byId("dag").textContent = dagId;
  const unknown = Object.keys(conf).filter((name) => !Object.hasOwn(params, name));
  for (const [name, param] of Object.entries(params)) {
    addField(name, param, Object.hasOwn(conf, name) ? conf[name] : param.value ?? null);
  }
  // A box can only be on or off.
  const lost = [...fields.values()].filter(({ name, part }) =>
    part.inputs[0].type === "checkbox" && Object.hasOwn(conf, name) && String(part.read()) !== String(conf[name]));
  const left = [...unknown, ...lost.map((field) => `${field.title} (${shortText(conf[field.name])})`)];
  if (left.length) fail(`The address has unknown parameters or values, which are left out: ${left.join(", ")}`);
  check();
  for (const field of fields.values()) if (isShown(field)) field.place.details.open = true;
  byId("form").addEventListener("submit", (event) => submit(event, dagId));
  byId("submit").disabled = false;
}

begin().catch((error) => fail(error.message));
