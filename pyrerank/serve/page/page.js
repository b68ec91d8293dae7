"use strict";

const $ = (id) => document.getElementById(id);

/* Fills a fieldset with what a content has: a text, and pictures. */
function content(fieldset) {
  fieldset.append($("content").content.cloneNode(true));
  fieldset.querySelector("input").addEventListener("change", () => show(fieldset));
  return fieldset;
}

function addDocument() {
  const number = $("documents").children.length;
  const fieldset = document.createElement("fieldset");
  const legend = document.createElement("legend");
  legend.textContent = `Document ${number + 1}`;
  fieldset.append(legend);
  content(fieldset);
  fieldset.dataset.field = `documents[${number}]`;
  $("documents").append(fieldset);
  return fieldset;
}

function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function pictures(fieldset) {
  const files = [...fieldset.querySelector("input").files];
  return Promise.all(
    files.map(async (file) => ({
      kind: file.type.startsWith("video/") ? "video" : "image",
      name: file.name,
      uri: await dataUri(file),
    })),
  );
}

function thumbnails(list) {
  return list.map(({ kind, name, uri }) => {
    if (kind === "video") return document.createTextNode(`[${name}] `);
    const image = document.createElement("img");
    image.src = uri;
    image.alt = name;
    return image;
  });
}

async function show(fieldset) {
  fieldset.querySelector(".pictures").replaceChildren(...thumbnails(await pictures(fieldset)));
}

/* What a fieldset holds, for the request and for the ranking; null where it is empty. */
async function read(fieldset) {
  const text = fieldset.querySelector("textarea").value;
  const shown = await pictures(fieldset);
  if (!text && !shown.length) return null;
  const parts = shown.map(({ kind, uri }) => ({ type: `${kind}_url`, [`${kind}_url`]: { url: uri } }));
  if (text) parts.push({ type: "text", text });
  return { text, shown, value: shown.length ? { content: parts } : text };
}

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

function result({ relevance_score, logit, tokens }, { text, shown }) {
  const item = document.createElement("li");
  const numbers = document.createElement("p");
  numbers.className = "numbers";
  numbers.textContent = `${relevance_score.toFixed(6)} (logit ${logit.toFixed(4)}, ${tokens} tokens)`;
  const meter = document.createElement("meter");
  meter.value = relevance_score;
  meter.setAttribute("aria-hidden", "true");
  const words = document.createElement("p");
  words.append(...thumbnails(shown), text);
  item.append(numbers, meter, words);
  return item;
}

async function rank() {
  $("error").textContent = "";
  const query = await read($("query"));
  const fieldsets = [...$("documents").children];
  const all = await Promise.all(fieldsets.map(read));
  const given = all.flatMap((each, place) => (each ? [{ ...each, place }] : []));
  $("status").textContent = "Ranking …";
  const started = performance.now();
  const response = await fetch("rerank", {
    method: "POST",
    headers: headers(),
    body: JSON.stringify({
      query: query ? query.value : "",
      documents: given.map((each) => each.value),
      instruction: $("instruction").value || null,
      return_documents: false,
      return_details: true,
    }),
  });
  const answer = await response.json();
  if (!response.ok) {
    const found = /^documents\[(\d+)\]/.exec(answer.error.param ?? "");
    const fieldset = found ? fieldsets[given[found[1]].place] : $("query");
    if (answer.error.param) fieldset.querySelector("textarea").focus();
    throw new Error(answer.error.message);
  }
  const milliseconds = Math.round(performance.now() - started);
  $("results").replaceChildren(...answer.results.map((each) => result(each, given[each.index])));
  $("status").textContent =
    `${answer.results.length} documents, ${answer.usage.prompt_tokens} tokens, ${milliseconds} ms`;
}

let busy = false; // a disabled button would lose the focus

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (busy) return;
  busy = true;
  try {
    await rank();
  } catch (error) {
    $("status").textContent = "";
    $("results").replaceChildren();
    $("error").textContent = error.message;
  } finally {
    busy = false;
  }
});

$("add").addEventListener("click", () => addDocument().querySelector("textarea").focus());

async function name() {
  const response = await fetch("v1/models");
  if (response.ok) $("model").textContent = (await response.json()).data[0].id;
}

content($("query"));
name();
for (let number = 0; number < 3; number++) addDocument();
