// Fields that grow with their text, and take Enter for sending.

const FITS_ITSELF = CSS.supports("field-sizing", "content");

export function grows(field) {
  if (FITS_ITSELF) return;
  let asked = false;
  const fit = () => {
    asked = false;
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight}px`;
  };
  field.addEventListener("input", () => {
    if (!asked) requestAnimationFrame(fit);
    asked = true;
  });
}

// Calls `send` on Enter without Shift, but not while a word is being composed.
export function sends(field, send) {
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
}

export function fill(field, text) {
  field.value = text;
  field.dispatchEvent(new Event("input"));
}
