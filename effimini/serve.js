"use strict";
const form = document.querySelector("form"), file = form.elements.image, drop = document.querySelector(".drop");
const result = document.querySelector(".result"), show = (name) => result.querySelector(`[data-${name}]`);

function preview() {
  const image = drop.querySelector("img");
  URL.revokeObjectURL(image.src);
  image.hidden = !file.files.length;
  if (file.files.length) image.src = URL.createObjectURL(file.files[0]);
  drop.querySelector("span").textContent = file.files.length ? file.files[0].name : "Drop an image here, or choose one";
}
file.addEventListener("change", preview);
form.addEventListener("reset", () => setTimeout(() => { preview(); result.hidden = true; }));
for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
drop.addEventListener("dragover", () => drop.classList.add("over"));
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  file.files = event.dataTransfer.files;
  preview();
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("[type=submit]");
  button.disabled = true;
  let answer;
  try {
    answer = await (await fetch("predict", { method: "POST", body: new FormData(form) })).json();
  } catch {
    answer = { error: "the service does not answer" };
  }
  button.disabled = false;
  result.hidden = false;
  result.classList.toggle("failed", "error" in answer);
  show("error").textContent = answer.error ?? "";
  if ("error" in answer) return;
  const place = (stars) => `${((stars - 1) / 4) * 100}%`, ranged = "low" in answer;
  show("score").textContent = answer.score.toFixed(2);
  show("point").style.left = place(answer.score);
  show("range").hidden = show("ends").hidden = !ranged;
  if (!ranged) return;
  show("range").style.left = place(answer.low);
  show("range").style.width = `${((answer.high - answer.low) / 4) * 100}%`;
  show("low").textContent = answer.low.toFixed(2);
  show("high").textContent = answer.high.toFixed(2);
});
