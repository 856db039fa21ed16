// The list of conversations, which on narrow screens lies over the page.

const list = document.getElementById("conversations");
const open = document.getElementById("open-sidebar");
const narrow = window.matchMedia("(max-width: 52rem)");

export function setOpen(isOpen) {
  document.body.classList.toggle("side-open", isOpen);
  open.setAttribute("aria-expanded", String(isOpen));
  if (narrow.matches) (isOpen ? document.getElementById("new") : open).focus();
}

export const isOpen = () => document.body.classList.contains("side-open") && narrow.matches;

// Shows the conversations; `choose` and `remove` are called with one of them.
export function show(conversations, current, { choose, remove }) {
  list.replaceChildren(...conversations.map((conversation) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "open";
    button.textContent = button.title = conversation.title;
    if (conversation.id === current) button.setAttribute("aria-current", "page");
    button.addEventListener("click", () => choose(conversation));
    const bin = document.createElement("button");
    bin.type = "button";
    bin.className = "remove";
    bin.textContent = "Delete";
    bin.setAttribute("aria-label", `Delete “${conversation.title}”`);
    bin.addEventListener("click", () => {
      // Asked in place: the second click, or key, deletes.
      if (bin.textContent === "Delete") {
        bin.textContent = "Really?";
        bin.addEventListener("blur", () => (bin.textContent = "Delete"), { once: true });
      } else {
        remove(conversation);
      }
    });
    item.append(button, bin);
    return item;
  }));
}

open.addEventListener("click", () => setOpen(true));
for (const id of ["close-sidebar", "scrim"]) document.getElementById(id).addEventListener("click", () => setOpen(false));
