// What is said to those who cannot see it: by a screen reader, once it has said what it is saying.

export function announce(text) {
  const announcer = document.getElementById("announcer")
  if (announcer) announcer.textContent = text
}
