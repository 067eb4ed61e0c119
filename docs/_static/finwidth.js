// The theme opens its drawers by labels, which no keyboard reaches: here they become buttons, and Escape shuts the drawers.
document.addEventListener("DOMContentLoaded", () => {
  let opened = null; // the button that opened a drawer
  const put = (box, open) => {
    box.checked = open;
    box.dispatchEvent(new Event("change"));
  };
  const replace = (label, drawer) => {
    const box = document.getElementById(label.htmlFor), button = document.createElement("button");
    button.type = "button";
    button.className = label.className;
    button.setAttribute("aria-label", box.getAttribute("aria-label"));
    button.append(...label.childNodes);
    button.addEventListener("click", () => {
      put(box, !box.checked);
      opened = button;
      if (box.checked) [...document.querySelectorAll(`${drawer} a`)].find((link) => link.getClientRects().length)?.focus();
    });
    const tell = () => button.setAttribute("aria-expanded", String(box.checked));
    box.addEventListener("change", tell);
    tell();
    label.replaceWith(button);
  };
  document.querySelectorAll("label.nav-overlay-icon").forEach((label) => replace(label, ".sidebar-drawer"));
  document.querySelectorAll("label.toc-overlay-icon").forEach((label) => replace(label, ".toc-drawer"));
  document.addEventListener("keydown", (event) => {
    const open = [...document.querySelectorAll(".sidebar-toggle:checked")];
    if (event.key !== "Escape" || !open.length) return;
    open.forEach((box) => put(box, false));
    opened?.focus();
  });
});
