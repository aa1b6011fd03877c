// Announcements to screen readers: a live region, politely.

export function announce(text) {
  const announcer = document.getElementById("announcer")
  if (announcer) announcer.textContent = text
}
